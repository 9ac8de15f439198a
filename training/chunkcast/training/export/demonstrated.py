"""Demonstrated observations and chunks as a graph's inputs: what a variant is calibrated on and compared with."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chunkcast.training.checkpoint import Checkpoint
from chunkcast.training.demonstrations.sources import read_training_data
from chunkcast.training.errors import ExportError
from chunkcast.training.export.policy_graph import (
    ACTIONS_INPUT,
    INSTRUCTION_INPUT,
    NOISE_INPUT,
    PREFIX_ACTIONS_INPUT,
    PREFIX_LENGTH_INPUT,
    STATE_INPUT,
    image_inputs,
)
from chunkcast.training.export.variants import Feeds
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.vision.seen import frames_facts, what_is_seen
from chunkcast.training.windows import Windows, split_by_episode

BATCH = 16
PATHS = ("rehearsal", "mapped_folder")
"""Settings that JSON has as text, and that reading the demonstrations needs."""
NOISE_SEED = 20_244


def demonstrated_observations(
    checkpoint: Checkpoint, data: Path | None, *, calibrating: int, comparing: int
) -> tuple[list[Feeds], list[Feeds]]:
    """Observations of the episodes that were trained on, and of those that were held out, in batches.

    Args:
        data: the run's demonstrations; ``None`` looks where they were.
        calibrating, comparing: how many of each.

    Raises:
        DemonstrationsError: the demonstrations cannot be read.
        ExportError: they are other ones than the run's.
    """
    facts = {**checkpoint.run["config"], "data": data or Path(checkpoint.run["config"]["data"])}
    # Settings that a run had are this version's, or have a default.
    known = {field.name for field in fields(TrainConfig)}
    settings: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()
    }
    for name in PATHS:
        settings[name] = Path(settings[name]) if settings.get(name) else None
    config = TrainConfig(**{name: value for name, value in settings.items() if name in known and value is not None})
    demonstrations, _ = read_training_data(config)
    if demonstrations.sha256 != checkpoint.run["data_sha256"]:
        raise ExportError(f"{config.data} has other demonstrations than the run's; name the run's with --data")
    trained, held_out = split_by_episode(demonstrations, config.validation_fraction, config.seed)
    device = torch.device("cpu")
    seen = what_is_seen(config, demonstrations, trained, device, held=False)
    if frames_facts(config, demonstrations) != checkpoint.run["frames"]:
        raise ExportError(
            f"{config.data} has other frames than the run's; render these again, or name its own with --data"
        )
    generator = torch.Generator().manual_seed(NOISE_SEED)

    def some(episodes: Any, count: int) -> list[Feeds]:
        windows = Windows(
            demonstrations,
            episodes,
            observation_steps=config.observation_steps,
            horizon=config.horizon,
            instructions=checkpoint.instructions,
            device=device,
            limit=count,
            seen=seen,
        )
        feeds = [_feeds(checkpoint, batch, generator) for batch in windows.in_order(BATCH)]
        # The quantiser's histograms take batches of one size only.
        return feeds[:-1] if len(feeds) > 1 and len(feeds[-1][STATE_INPUT]) < BATCH else feeds

    return some(trained, calibrating), some(held_out, comparing)


def _feeds(checkpoint: Checkpoint, batch: Any, generator: torch.Generator) -> Feeds:
    config, shape = checkpoint.policy_config, batch.actions.shape
    feeds = {
        STATE_INPUT: batch.state.numpy(),
        INSTRUCTION_INPUT: batch.instruction.numpy(),
        NOISE_INPUT: torch.randn(shape, generator=generator).numpy(),
        ACTIONS_INPUT: batch.actions.numpy(),
        **{name: view.numpy() for name, view in zip(image_inputs(config), batch.images, strict=True)},
    }
    if config.max_committed_steps:
        feeds[PREFIX_ACTIONS_INPUT] = np.zeros(shape, np.float32)
        feeds[PREFIX_LENGTH_INPUT] = np.zeros(shape[0], np.int64)
    return feeds
