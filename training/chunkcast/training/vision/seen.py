"""What a run's settings show a policy with cameras of its demonstrations."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from chunkcast.training.demonstrations.episodes import Demonstrations
from chunkcast.training.demonstrations.lerobot.frames import decode_frames
from chunkcast.training.demonstrations.lerobot.layout import is_lerobot
from chunkcast.training.errors import DemonstrationsError
from chunkcast.training.frames.frame_files import read_frames, read_settings
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.vision.frame_tensors import FrameTensors
from chunkcast.training.vision.privileged import privileged_targets
from chunkcast.training.windows import Seen


def what_is_seen(
    config: TrainConfig,
    demonstrations: Demonstrations,
    episodes: npt.NDArray[np.int64],
    device: torch.device,
    *,
    held: bool = True,
) -> Seen | None:
    """The frames and the part of the state that are shown; ``None`` for a policy of states.

    Args:
        episodes: those that are trained on.
        device: where decoded frames are held.
        held: whether to hold them decoded, where there is room.

    Raises:
        DemonstrationsError: there are no frames of these views, fewer entries in the state, or none to tell.
    """
    if not config.cameras:
        return None
    if demonstrations.states.shape[1] < config.proprioception:
        raise DemonstrationsError(
            f"--proprioception is {config.proprioception}, the recorded state has "
            f"{demonstrations.states.shape[1]} entries"
        )
    folder = frames_folder(config, demonstrations)
    if is_lerobot(config.data):
        _decode_videos(config, demonstrations, folder)
    compressed = read_frames(folder, demonstrations.sha256, demonstrations.episode_index)
    if config.observation_steps > 1 and compressed.settings.every > 1:
        raise DemonstrationsError(
            f"--observation-steps is {config.observation_steps}, the frames are of every {compressed.settings.every}. "
            "tick; render every tick (chunkcast-render --every 1 --overwrite)"
        )
    room = int(config.frame_memory_gb * 1e9) if held else 0
    frames = FrameTensors(compressed, config.cameras, len(demonstrations.states), device, room)
    told = privileged_targets(demonstrations, config.proprioception, episodes) if config.privileged_weight else None
    if told is not None and not told.shape[1]:
        raise DemonstrationsError(
            f"{config.data} has recorded no more than the {config.proprioception} entries that the policy is shown: "
            "there is nothing for the image encoder to tell; pass --privileged-weight 0"
        )
    return Seen(config.proprioception, frames, told)


def image_shapes(config: TrainConfig, seen: Seen | None) -> dict[str, Any]:
    """The part of ``PolicyConfig`` that images decide."""
    if seen is None:
        return {}
    return {
        "views": config.cameras,
        "image_sizes": seen.frames.sizes,
        "image_encoder": config.image_encoder,
        "image_features": config.image_features,
        "privileged_size": 0 if seen.privileged is None else seen.privileged.shape[1],
    }


def frames_folder(config: TrainConfig, demonstrations: Demonstrations) -> Path:
    """Whose ``frames`` the policy sees: the demonstrations' folder, or that of a LeRobotDataset's decoded videos."""
    if not is_lerobot(config.data):
        return config.data
    which = f"{'+'.join(config.cameras)}-{config.image_size}"
    return config.memory.folder_of(config.data, demonstrations.sha256) / which


def _decode_videos(config: TrainConfig, demonstrations: Demonstrations, into: Path) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("decoding videos"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(demonstrations.episode_tasks))
        decode_frames(
            config.data, demonstrations, into, config.cameras, config.image_size, lambda: progress.advance(bar)
        )


def frames_facts(config: TrainConfig, demonstrations: Demonstrations) -> dict[str, Any] | None:
    """How the frames of a run were made, as a checkpoint's JSON has it; ``None`` for a policy of states."""
    if not config.cameras:
        return None
    found = read_settings(frames_folder(config, demonstrations))
    assert found is not None  # they were read
    settings = asdict(found[0])
    settings["cameras"] = [asdict(camera) for camera in found[0].cameras if camera.view in config.cameras]
    if not settings["videos_sha256"]:
        del settings["videos_sha256"]  # runs with rendered frames are who they were
    facts: dict[str, Any] = json.loads(json.dumps(settings))
    return facts
