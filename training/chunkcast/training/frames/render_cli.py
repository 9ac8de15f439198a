"""``chunkcast-render``: camera frames of demonstrations, rendered from what was recorded."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from chunkcast.simulation.cameras import Quality
from chunkcast.training.errors import TrainingError, run_command


@dataclass(frozen=True)
class FrameConfig:
    """Which frames to make.

    Shared by chunkcast-render and chunkcast-collect.
    """

    cameras: tuple[str, ...] = ("corner2-close",)
    """Views to render: corner2 (of the published protocols), corner2-close (its middle, magnified), gripper (carried by
    the hand), or one of MetaWorld's own cameras."""
    image_size: int = 128
    """Height and width of a frame, pixels."""
    rendering: Quality = "fast"
    """full draws as MuJoCo does and published policies saw it; fast leaves out shadows, reflections, sky and smoothing."""
    every: int = 1
    """Control ticks between two frames."""
    image_quality: int = 95
    """Of the stored JPEGs, 1 to 100; 0 stores PNG, without loss."""

    def __post_init__(self) -> None:
        """Refuse what cannot be rendered."""
        if not 16 <= self.image_size <= 1024:
            raise TrainingError(f"--image-size must lie in [16, 1024], got {self.image_size}")
        if self.every < 1:
            raise TrainingError(f"--every must be at least 1, got {self.every}")
        if not 0 <= self.image_quality <= 100:
            raise TrainingError(f"--image-quality must lie in [0, 100], got {self.image_quality}")
        if len(set(self.cameras)) < len(self.cameras) or not self.cameras:
            raise TrainingError(
                f"--cameras must name at least one view, each once, got {' '.join(self.cameras) or 'none'}"
            )


def render_frames(data: Path, config: FrameConfig, workers: int, *, overwrite: bool) -> None:
    """Render what is missing of the demonstrations' frames.

    Raises:
        DemonstrationsError: the demonstrations cannot be read or replayed, or have other frames already.
        SimulationError: a camera is unknown, or nothing can be rendered here.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from chunkcast.simulation.cameras import cameras
    from chunkcast.simulation.rendering import choose_gl
    from chunkcast.training.demonstrations import read_demonstrations
    from chunkcast.training.frames.frame_files import FOLDER, FrameSettings, read_settings
    from chunkcast.training.frames.render import render

    choose_gl(software=True)
    demonstrations = read_demonstrations(data)
    made = cameras(config.cameras, config.image_size, config.rendering)
    settings = FrameSettings(demonstrations.sha256, made, config.every, config.image_quality)
    if overwrite:
        shutil.rmtree(data / FOLDER, ignore_errors=True)
    found = read_settings(data)
    if found and (found[0] != settings or found[2]):
        raise TrainingError(
            f"{data} has {'' if found[2] else 'a part of '}frames of {', '.join(found[0].views)} already; pass "
            "--overwrite to replace them"
        )
    columns = (TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(demonstrations.episode_tasks))
        render(data, demonstrations, settings, found[1] if found else [], workers, lambda: progress.advance(bar))


@dataclass(frozen=True)
class RenderConfig(FrameConfig):
    """Render camera frames of demonstrations that have none, by replaying what was recorded."""

    data: tyro.conf.Positional[Path] = field(kw_only=True)
    """Folder of demonstrations, made by chunkcast-collect."""
    workers: int = os.cpu_count() or 1
    """Parallel processes."""
    overwrite: bool = False
    """Replace frames that exist."""


def main() -> None:
    """Console script."""
    run_command(RenderConfig, render_command)


def render_command(config: RenderConfig) -> None:
    """Render, and say what is there."""
    from chunkcast.training.frames.frame_files import FOLDER

    render_frames(config.data, config, config.workers, overwrite=config.overwrite)
    size = sum(file.stat().st_size for file in (config.data / FOLDER).iterdir())
    print(f"{config.data / FOLDER}: {', '.join(config.cameras)}, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
