"""Episodes' pictures as MP4, and MP4 as pictures, by ffmpeg, which runs as a program of its own."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.training.errors import DemonstrationsError, TrainingError

CODEC = "libx264"
PIXELS = "yuv420p"
QUALITY = ["-crf", "8", "-g", "2", "-preset", "medium"]
"""A quarter of the JPEGs' size, and a brightness that differs by 1.5 of 255 in small pictures; every second picture
stands alone, so that a random one is found at once."""


def require_ffmpeg() -> str:
    """The ffmpeg that imageio-ffmpeg brings.

    Raises:
        TrainingError: it is not installed.
    """
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ModuleNotFoundError:
        raise TrainingError(
            "videos of a LeRobotDataset need imageio-ffmpeg, which is not installed; run "
            "pip install 'chunkcast[lerobot]'"
        ) from None
    return str(get_ffmpeg_exe())


class VideoWriter:
    """One MP4 file, to which episodes' pictures are appended.

    Args:
        file: to write.
        fps: pictures a second.
        height, width: of a picture, even.

    Raises:
        DemonstrationsError: the size is odd.

    Attributes:
        frames: pictures so far.
    """

    def __init__(self, file: Path, fps: int, height: int, width: int) -> None:
        if height % 2 or width % 2:
            raise DemonstrationsError(f"a video's height and width are even, got {height} and {width}; choose others")
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._fps, self._height, self._width = file, fps, height, width
        raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
        command = [require_ffmpeg(), "-loglevel", "error", "-y", *raw, "-c:v", CODEC, "-pix_fmt", PIXELS, *QUALITY]
        # A session of its own: Ctrl-C reaches this program, which then ends it.
        self._ffmpeg = subprocess.Popen([*command, str(file)], stdin=subprocess.PIPE, start_new_session=True)
        self.frames = 0

    @property
    def bytes_written(self) -> int:
        """Of the file so far."""
        return self._file.stat().st_size if self._file.is_file() else 0

    def write(self, pictures: npt.NDArray[np.uint8]) -> None:
        """Append ``pictures``, uint8 ``[T, H, W, 3]``."""
        assert self._ffmpeg.stdin is not None
        for picture in pictures:
            self._ffmpeg.stdin.write(np.ascontiguousarray(picture).tobytes())
            self.frames += 1

    def abandon(self) -> None:
        """End ffmpeg, whatever becomes of the file."""
        self._ffmpeg.kill()
        self._ffmpeg.wait()
        if self._ffmpeg.stdin is not None:
            with suppress(BrokenPipeError):
                self._ffmpeg.stdin.close()

    def close(self) -> dict[str, Any]:
        """End the file; returns what ``meta/info.json`` says of it.

        Raises:
            DemonstrationsError: ffmpeg could not write it; its own words are on standard error.
        """
        assert self._ffmpeg.stdin is not None
        with suppress(BrokenPipeError):
            self._ffmpeg.stdin.close()
        if self._ffmpeg.wait():
            raise DemonstrationsError(f"{self._file} could not be written; is there room for it?")
        return {
            "video.height": self._height,
            "video.width": self._width,
            "video.codec": "h264",
            "video.pix_fmt": PIXELS,
            "video.is_depth_map": False,
            "video.fps": self._fps,
            "video.channels": 3,
            "has_audio": False,
        }


def read_pictures(file: Path, height: int, width: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Every picture of a video in order, uint8 ``[H, W, 3]``; lerobot's are evenly spaced from the file's beginning.

    Args:
        height, width: of its pictures.

    Raises:
        DemonstrationsError: it is missing, or cannot be decoded.
    """
    if not file.is_file():
        raise DemonstrationsError(f"{file} is missing; expected a whole LeRobotDataset")
    # Its content might name other files, or other machines.
    only = ["-protocol_whitelist", "file,pipe", "-f", "mov", "-xerror"]
    raw = ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-"]
    command = [require_ffmpeg(), "-loglevel", "error", "-nostdin", *only, "-i", str(file), *raw]
    # Not a pipe: what nobody reads would fill it, and ffmpeg would wait.
    with (
        tempfile.TemporaryFile() as complaints,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, start_new_session=True) as ffmpeg,
    ):
        assert ffmpeg.stdout is not None
        try:
            while len(frame := ffmpeg.stdout.read(height * width * 3)) == height * width * 3:
                yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
            failed = ffmpeg.wait()
        finally:
            ffmpeg.kill()  # who has seen enough does not wait for the rest
        complaints.seek(0)
        said = complaints.read(1000).decode(errors="replace").strip().splitlines()
    if failed or said:
        raise DemonstrationsError(f"{file} cannot be decoded ({said[0][:200] if said else 'ffmpeg failed'})")
