"""Real demonstrations of two tasks, few enough to train on within seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from chunkcast.training.collect.cli import CollectConfig, collect_command
from chunkcast.training.train_cli import train_command
from chunkcast.training.train_config import TrainConfig

TASKS = ("drawer-close-v3", "pick-place-v3")
EPISODES = 3


@pytest.fixture(scope="session")
def demonstrations_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes each of two tasks, collected by two processes."""
    folder = tmp_path_factory.mktemp("data") / "two"
    collect_command(CollectConfig(out=folder, tasks=TASKS, episodes=EPISODES, workers=2))
    return folder


@pytest.fixture(scope="session")
def small_config(demonstrations_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A network of some thousand parameters, trained for four epochs."""
    return TrainConfig(
        data=demonstrations_folder,
        out=tmp_path_factory.mktemp("runs") / "small",
        epochs=4,
        batch_size=32,
        width=32,
        blocks=2,
        warmup_steps=5,
        observation_steps=2,
        device="cpu",
    )


@pytest.fixture(scope="session")
def small_run(small_config: TrainConfig) -> Path:
    """A finished run."""
    train_command(small_config)
    return small_config.out
