"""``chunkcast-collect``: demonstrations from MetaWorld's scripted experts."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from chunkcast.simulation.metaworld_tasks import (
    ACTION_ELEMENTS,
    CONTROL_RATE_HZ,
    SIX_TASKS,
    STATE_ELEMENTS,
    STATE_MEANING,
)
from chunkcast.training.errors import TrainingError, run_command
from chunkcast.training.frames.frame_flags import FrameFlags, frame_cameras

if TYPE_CHECKING:
    from chunkcast.training.collect.parallel import TaskDemonstrations
    from chunkcast.training.demonstrations.episodes import Episode


@dataclass(frozen=True)
class CollectConfig(FrameFlags):
    """Record demonstrations of MetaWorld's scripted experts: successful episodes only, reproducible by seed."""

    out: Path = field(kw_only=True)
    """Folder to write."""
    format: Literal["chunkcast", "lerobot"] = "chunkcast"
    """Of the folder: this project's table (demonstrations.parquet and manifest.json), or a LeRobotDataset v3, whose
    frames are videos. chunkcast-train takes both."""
    tasks: tuple[str, ...] = SIX_TASKS
    """MetaWorld task names; mt50 stands for all fifty."""
    episodes: int = 88
    """Successful episodes to keep for each task."""
    seed: int = 0
    """First episode seed; further episodes take the following ones. Never evaluate on these."""
    noise: float = 0.4
    """Standard deviation of the pushes on the executed action, in action units. The expert's own action is what is
    learned, so the demonstrations show how to come back from states off the expert's path."""
    workers: int = os.cpu_count() or 1
    """Parallel processes."""
    ray_address: str = ""
    """A Ray cluster that records in place of --workers, an episode a processor, such as auto or ray://HOST:10001. The
    same seeds give the same table there."""
    overwrite: bool = False
    """Replace demonstrations that exist."""

    def __post_init__(self) -> None:
        """Refuse values that no run could use."""
        super().__post_init__()
        if self.episodes < 1 or self.workers < 1:
            raise TrainingError(f"--episodes and --workers must be at least 1, got {self.episodes} and {self.workers}")
        if len(set(self.tasks)) < len(self.tasks):
            raise TrainingError(f"--tasks names a task twice: {' '.join(self.tasks)}")
        if not self.tasks:
            raise TrainingError("--tasks is empty, expected MetaWorld names such as " + ", ".join(SIX_TASKS))
        if not 0.0 <= self.noise <= 2.0:
            raise TrainingError(f"--noise must lie in [0, 2] (actions span [-1, 1]), got {self.noise}")
        if self.format == "lerobot" and self.every > 1:
            raise TrainingError(f"a LeRobotDataset has a picture for every tick; leave out --every {self.every}")
        if self.seed < 0:
            raise TrainingError(f"--seed must not be negative, got {self.seed}")


def main() -> None:
    """Console script."""
    run_command(CollectConfig, collect_command)


def collect_command(config: CollectConfig) -> None:
    """Collect, write, and print a table of what was kept."""
    from chunkcast.simulation.metaworld_tasks import MT50, all_tasks, make_expert
    from chunkcast.simulation.rendering import choose_gl
    from chunkcast.training.demonstrations.lerobot.layout import LEROBOTS_OWN, is_lerobot
    from chunkcast.training.demonstrations.lerobot.videos import require_ffmpeg
    from chunkcast.training.demonstrations.table import MANIFEST_NAME

    there = (config.out / MANIFEST_NAME).exists() or is_lerobot(config.out)
    if there and not config.overwrite:
        raise TrainingError(
            f"{config.out} holds demonstrations; pass --overwrite to replace them, or choose another --out"
        )
    if there and is_lerobot(config.out) != (config.format == "lerobot"):
        raise TrainingError(f"{config.out} holds demonstrations of the other --format; choose another --out")
    if config.format == "lerobot":
        # The folder is replaced as a whole.
        held = config.out.iterdir() if config.out.is_dir() else ()
        if other := [each.name for each in held if not LEROBOTS_OWN.fullmatch(each.name)]:
            raise TrainingError(f"{config.out} holds other files ({other[0]}); choose another --out")
    tasks = all_tasks() if config.tasks == (MT50,) else config.tasks
    if frame_cameras(config):  # refuses an unknown one
        choose_gl(software=True)  # and a machine on which nothing can be rendered
        if config.format == "lerobot":
            require_ffmpeg()
    for task in tasks:
        make_expert(task)  # refuses an unknown one, before any process is started
    # A long collection must not be lost for want of a place to write it.
    config.out.mkdir(parents=True, exist_ok=True)
    results = _collect(config, tasks)
    manifest = _manifest(config, results)
    episodes = [episode for result in results for episode in result.episodes]
    if config.format == "lerobot":
        _write_lerobot(config, episodes, manifest)
    else:
        _write_table(config, config.out, episodes, manifest)
    _print_table(config, manifest)


def _collect(config: CollectConfig, tasks: Sequence[str]) -> list[TaskDemonstrations]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from chunkcast.training.collect.parallel import collect

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("collecting", total=len(tasks) * config.episodes)

        def on_episode(task: str, kept: bool) -> None:
            progress.update(bar, description=task, advance=1 if kept else 0)

        return collect(
            tasks, config.episodes, config.seed, config.noise, config.workers, on_episode, config.ray_address
        )


def _manifest(config: CollectConfig, results: Sequence[TaskDemonstrations]) -> dict[str, Any]:
    """What the recorder knows."""
    return {
        "recorder": "MetaWorld scripted experts",
        "command": shlex.join(["chunkcast-collect", *sys.argv[1:]]),
        "state": {"meaning": STATE_MEANING, "elements": [list(element) for element in STATE_ELEMENTS]},
        "action": {"elements": [list(element) for element in ACTION_ELEMENTS]},
        "noise": config.noise,
        "first_seed": config.seed,
        "last_seed": config.seed + max(result.attempts for result in results) - 1,
        "tasks": {
            result.task: {
                "episodes": len(result.episodes),
                "attempts": result.attempts,
                "expert_success_rate": round(result.expert_success_rate, 4),
                "frames": sum(len(episode.actions) for episode in result.episodes),
            }
            for result in results
        },
        "versions": {
            "chunkcast": version("chunkcast"),
            "metaworld": version("metaworld"),
            "mujoco": version("mujoco"),
            "numpy": version("numpy"),
            "python": platform.python_version(),
        },
    }


def _write_table(config: CollectConfig, folder: Path, episodes: list[Episode], manifest: dict[str, Any]) -> None:
    """This project's table, and its frames."""
    from chunkcast.training.demonstrations.memory import mapped_copies
    from chunkcast.training.demonstrations.table import write_demonstrations
    from chunkcast.training.frames.frame_files import FOLDER
    from chunkcast.training.frames.render_cli import render_frames

    write_demonstrations(folder, episodes, CONTROL_RATE_HZ, manifest)
    # Of the demonstrations that were replaced.
    for derived in (folder / FOLDER, *mapped_copies(folder)):
        shutil.rmtree(derived, ignore_errors=True)
    if frame_cameras(config):
        render_frames(folder, config, config.workers, overwrite=False)


def _write_lerobot(config: CollectConfig, episodes: list[Episode], manifest: dict[str, Any]) -> None:
    """A LeRobotDataset; frames are rendered aside first, from a table that goes when the videos are there."""
    from chunkcast.training.demonstrations.lerobot.convert import write_lerobot

    if not frame_cameras(config):
        write_lerobot(config.out, episodes, CONTROL_RATE_HZ, manifest)
        return
    aside = config.out.with_name(f".{config.out.name}.frames")
    try:
        _write_table(config, aside, episodes, manifest)
        write_lerobot(config.out, episodes, CONTROL_RATE_HZ, manifest, frames=aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _print_table(config: CollectConfig, manifest: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "kept", "attempts", "expert success", "frames", title=str(config.out))
    for task, facts in manifest["tasks"].items():
        table.add_row(
            task,
            str(facts["episodes"]),
            str(facts["attempts"]),
            f"{facts['expert_success_rate']:.0%}",
            str(facts["frames"]),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
