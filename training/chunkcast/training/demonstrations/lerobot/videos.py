"""Episodes' pictures as MP4, and MP4 as pictures, by PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.training.errors import DemonstrationsError, TrainingError

CODEC = "libx264"
PIXELS = "yuv420p"
OPTIONS = {"crf": "8", "g": "2", "preset": "medium"}
"""A quarter of the JPEGs' size, and a brightness that differs by 1.5 of 255 in small pictures; every second picture
stands alone, so that a random one is found at once."""


def require_av() -> Any:
    """PyAV.

    Raises:
        TrainingError: it is not installed.
    """
    try:
        import av
    except ModuleNotFoundError:
        raise TrainingError(
            "videos of a LeRobotDataset need PyAV, which is not installed; run pip install 'chunkcast[lerobot]'"
        ) from None
    return av


class VideoWriter:
    """One MP4 file, to which episodes' pictures are appended.

    Args:
        file: to write.
        fps: pictures a second.
        size: height and width, pixels, even.

    Raises:
        DemonstrationsError: the size is odd.
    """

    def __init__(self, file: Path, fps: int, size: int) -> None:
        if size % 2:
            raise DemonstrationsError(f"a video's height and width are even, got {size}; choose another --image-size")
        av = require_av()
        file.parent.mkdir(parents=True, exist_ok=True)
        self._av, self._file, self._fps, self._size = av, file, fps, size
        self._container = av.open(str(file), "w")
        self._stream = self._container.add_stream(CODEC, rate=fps, options=OPTIONS)
        self._stream.width = self._stream.height = size
        self._stream.pix_fmt = PIXELS
        self._stream.time_base = Fraction(1, fps)
        self._open = True
        self.frames = 0
        self.bytes_written = 0

    def write(self, pictures: npt.NDArray[np.uint8]) -> None:
        """Append ``pictures``, uint8 ``[T, H, W, 3]``."""
        for picture in pictures:
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = self.frames, Fraction(1, self._fps)
            self._mux(self._stream.encode(frame))
            self.frames += 1

    def _mux(self, packets: Any) -> None:
        for packet in packets:
            self.bytes_written += packet.size
            self._container.mux(packet)

    def close(self) -> dict[str, Any]:
        """End the file; returns what ``meta/info.json`` says of it."""
        if self._open:
            self._mux(self._stream.encode())
            self._container.close()
            self._open = False
        return {
            "video.height": self._size,
            "video.width": self._size,
            "video.codec": "h264",
            "video.pix_fmt": PIXELS,
            "video.is_depth_map": False,
            "video.fps": self._fps,
            "video.channels": 3,
            "has_audio": False,
        }


def read_pictures(file: Path) -> Iterator[tuple[float, npt.NDArray[np.uint8]]]:
    """Every picture of a video in order, with its time in seconds; uint8 ``[H, W, 3]``.

    Raises:
        DemonstrationsError: it cannot be decoded.
    """
    av = require_av()
    try:
        with av.open(str(file)) as container:
            for frame in container.decode(video=0):
                yield float(frame.time), frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, OSError) as error:
        raise DemonstrationsError(f"{file} cannot be decoded ({error})") from None
