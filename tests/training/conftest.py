"""Real demonstrations of two tasks, few enough to train on within seconds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from chunkcast.training.checkpoint import LAST_CHECKPOINT
from chunkcast.training.choices import Precision
from chunkcast.training.collect.cli import CollectConfig, collect_command
from chunkcast.training.export.exporter import Exported, export_bundle
from chunkcast.training.history import EpochRecord, read_history
from chunkcast.training.train_cli import train_command
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.trainer import Trainer
from tests.conftest import require_gl

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


@pytest.fixture(scope="session")
def frames_folder(demonstrations_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same demonstrations with small frames of two views."""
    require_gl()
    folder = tmp_path_factory.mktemp("frames") / "two"
    shutil.copytree(demonstrations_folder, folder)
    # A process of its own: here mujoco was imported without a GL library.
    flags = ("--cameras", "corner2-close", "gripper:48", "--image-size", "32", "--every", "2", "--workers", "2")
    subprocess.run(
        [Path(sys.executable).parent / "chunkcast-render", str(folder), *flags], check=True, capture_output=True
    )
    return folder


@pytest.fixture(scope="session")
def seeing_run(frames_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a policy with two cameras."""
    config = TrainConfig(
        data=frames_folder,
        out=tmp_path_factory.mktemp("runs") / "seeing",
        cameras=("corner2-close", "gripper"),
        epochs=2,
        batch_size=32,
        width=32,
        blocks=2,
        warmup_steps=2,
        image_features=16,
        noise_draws=2,
        device="cpu",
    )
    train_command(config)
    return config.out


def train_in_two_parts(config: TrainConfig, first: int, monkeypatch: pytest.MonkeyPatch, **then: Any) -> None:
    """Train as ``config`` says, interrupted after ``first`` epochs and resumed, with the settings in ``then``."""
    finish = Trainer._finish_epoch

    def interrupted(self: Trainer, record: EpochRecord) -> None:
        finish(self, record)
        if record.epoch == first:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_finish_epoch", interrupted)
        with pytest.raises(SystemExit, match="130"):
            train_command(config)
    assert len(read_history(config.out)) == first
    train_command(replace(config, resume=True, **then))


class Export(NamedTuple):
    """A bundle and what its exporter says of it."""

    folder: Path
    facts: Exported


ExportSeeing = Callable[[int, Precision], Export]
"""Of the policy with cameras: evaluations, precision."""


@pytest.fixture(scope="session")
def export_seeing(seeing_run: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportSeeing:
    """Exports the policy with cameras, each way once: two encoders take half a minute."""

    @cache
    def export(steps: int, precision: Precision) -> Export:
        folder = tmp_path_factory.mktemp("seeing") / "bundle"
        file = seeing_run / LAST_CHECKPOINT
        return Export(folder, export_bundle(file, folder, name="seeing", steps=steps, precision=precision))

    return export
