"""``chunkcast-render``: camera frames of demonstrations, rendered from what was recorded."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from chunkcast.training.errors import TrainingError, not_installed, run_command

try:
    import tyro
except ModuleNotFoundError as error:
    raise not_installed(error) from None

from chunkcast.training.frames.frame_flags import FrameFlags, FramePreset, frame_cameras


def render_frames(data: Path, config: FrameFlags, workers: int, *, overwrite: bool) -> None:
    """Render what is missing of the demonstrations' frames.

    Raises:
        DemonstrationsError: the demonstrations cannot be read or replayed, or have other frames already.
        SimulationError: a camera is unknown, or nothing can be rendered here.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from chunkcast.simulation.rendering import choose_gl
    from chunkcast.training.demonstrations.sources import read_demonstrations
    from chunkcast.training.frames.frame_files import FOLDER, FrameSettings, read_settings
    from chunkcast.training.frames.render import render

    choose_gl(software=True)
    demonstrations = read_demonstrations(data)
    made = frame_cameras(config)
    settings = FrameSettings(demonstrations.sha256, made, config.every, config.image_quality)
    if overwrite:
        shutil.rmtree(data / FOLDER, ignore_errors=True)
    found = read_settings(data)
    if found and found[2]:
        raise TrainingError(
            f"{data} has frames of {', '.join(found[0].views)} already; pass --overwrite to replace them"
        )
    if found and found[0] != settings:
        raise TrainingError(
            f"{data} has a part of its frames by other settings ({', '.join(found[0].views)}, every "
            f"{found[0].every}. tick, quality {found[0].quality}); pass what it was begun with, or --overwrite"
        )
    columns = (TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(demonstrations.episode_tasks))
        render(data, demonstrations, settings, found[1] if found else [], workers, lambda: progress.advance(bar))


@dataclass(frozen=True)
class RenderConfig(FrameFlags):
    """Render camera frames of demonstrations that have none, by replaying what was recorded."""

    data: tyro.conf.Positional[Path] = field(kw_only=True)
    """Folder of demonstrations, made by chunkcast-collect."""
    workers: int = os.cpu_count() or 1
    """Parallel processes."""
    frames: FramePreset = "fast"
    """Which frames: fast (seen from near, drawn quickly), or published (as published policies on MetaWorld see it)."""
    overwrite: bool = False
    """Replace frames that exist."""

    def __post_init__(self) -> None:
        """Refuse what cannot be rendered."""
        super().__post_init__()
        if self.frames == "none":
            raise TrainingError("--frames none renders nothing; expected fast or published")


def main() -> None:
    """Console script."""
    run_command(RenderConfig, render_command)


def render_command(config: RenderConfig) -> None:
    """Render, and say what is there."""
    from chunkcast.training.frames.frame_files import FOLDER

    render_frames(config.data, config, config.workers, overwrite=config.overwrite)
    size = sum(file.stat().st_size for file in (config.data / FOLDER).iterdir())
    views = ", ".join(camera.view for camera in frame_cameras(config))
    print(f"{config.data / FOLDER}: {views}, {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
