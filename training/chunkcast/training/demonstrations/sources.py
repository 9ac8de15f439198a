"""Demonstrations from whatever format lies in a folder."""

from __future__ import annotations

from pathlib import Path

from chunkcast.training.demonstrations.episodes import Demonstrations, joined
from chunkcast.training.demonstrations.lerobot.layout import INFO, is_lerobot
from chunkcast.training.demonstrations.lerobot.reader import read_lerobot
from chunkcast.training.demonstrations.memory import Memory
from chunkcast.training.demonstrations.table import MANIFEST_NAME, read_table
from chunkcast.training.errors import DemonstrationsError
from chunkcast.training.train_config import TrainConfig

IN_MEMORY = Memory()


def read_demonstrations(folder: Path, memory: Memory = IN_MEMORY) -> Demonstrations:
    """Read what ``chunkcast-collect`` or lerobot wrote.

    Args:
        folder: of this project's table and manifest, or of a LeRobotDataset v3.
        memory: what may be held of it; the rest is mapped from a copy.

    Raises:
        DemonstrationsError: there is neither, or it is damaged or of another version.
    """
    if not _holds_demonstrations(folder):
        near = [each for each in (folder.parent, *_folders_in(folder)) if _holds_demonstrations(each)]
        what = "holds" if folder.is_dir() else "is no folder, so it holds"
        raise DemonstrationsError(
            f"{folder} {what} neither {MANIFEST_NAME} nor {INFO}; "
            + (f"did you mean {near[0]}?" if near else "make demonstrations with chunkcast-collect --out")
        )
    return read_lerobot(folder, memory) if is_lerobot(folder) else read_table(folder, memory)


def _holds_demonstrations(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).is_file() or is_lerobot(folder)


def _folders_in(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []


def read_training_data(config: TrainConfig) -> tuple[Demonstrations, int | None]:
    """What a run trains on: its new demonstrations and then those that it rehearses; and how many episodes are new,
    ``None`` where nothing is rehearsed.

    Raises:
        DemonstrationsError: as ``read_demonstrations``, or they are of different robots.
    """
    new = read_demonstrations(config.data, config.memory)
    if config.rehearsal is None:
        return new, None
    return joined([new, read_demonstrations(config.rehearsal, config.memory)]), len(new.episode_tasks)
