"""Recorded episodes, and the frames that were rendered of them, as a LeRobotDataset."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.training.demonstrations.episodes import Episode
from chunkcast.training.demonstrations.lerobot.frames import IMAGES
from chunkcast.training.demonstrations.lerobot.writer import LeRobotWriter, whole_fps
from chunkcast.training.demonstrations.table import MANIFEST_NAME
from chunkcast.training.frames.frame_files import CompressedFrames, read_frames
from chunkcast.training.language.instruction_table import METAWORLD_INSTRUCTIONS, read_instruction_table


def write_lerobot(
    folder: Path,
    episodes: Sequence[Episode],
    control_rate_hz: float,
    manifest: Mapping[str, Any],
    frames: Path | None = None,
) -> None:
    """Write ``episodes`` to ``folder``, aside and then renamed.

    Args:
        control_rate_hz: a whole number of ticks a second.
        manifest: what the recorder knows.
        frames: demonstrations of these same episodes, whose frames become videos.

    Raises:
        DemonstrationsError: there is no episode, or the control rate is no whole number.
    """
    from rich.console import Console
    from rich.progress import track

    table = read_instruction_table(METAWORLD_INSTRUCTIONS)
    tasks = sorted({episode.task for episode in episodes})
    sentences = {task: table[task].instruction if task in table else task for task in tasks}
    read = _read(frames, episodes) if frames else None
    cameras = read.settings.cameras if read else ()
    writer = LeRobotWriter(
        folder,
        whole_fps(control_rate_hz),
        {**manifest, "cameras": [asdict(camera) for camera in cameras]},
        sentences,
        {IMAGES + camera.view: camera.size for camera in cameras},
    )
    try:
        first = 0
        for episode in track(episodes, "writing", console=Console(stderr=True), transient=True):
            pictures = _pictures(read, first, len(episode.actions)) if read else None
            writer.add(episode, pictures)
            first += len(episode.actions)
        writer.finish()
    except BaseException:
        writer.abandon()
        raise


def _read(folder: Path, episodes: Sequence[Episode]) -> CompressedFrames:
    sha256 = json.loads((folder / MANIFEST_NAME).read_text())["sha256"]
    lengths = [len(episode.actions) for episode in episodes]
    return read_frames(folder, sha256, np.repeat(np.arange(len(episodes), dtype=np.int32), lengths))


def _pictures(frames: CompressedFrames, first: int, length: int) -> dict[str, npt.NDArray[np.uint8]]:
    """Of each view, uint8 ``[T, H, W, 3]``: those of ``length`` rows from ``first`` on, all of which have one."""
    from PIL import Image

    return {
        IMAGES + view: np.stack(
            [np.asarray(Image.open(io.BytesIO(picture.as_py()))) for picture in pictures[first : first + length]]
        )
        for view, pictures in frames.pictures.items()
    }
