"""New tasks for a policy that is there: its weights are kept, its old demonstrations rehearsed, both played after."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chunkcast.training.checkpoint import LAST_CHECKPOINT, load_policy, read_checkpoint
from chunkcast.training.collect.cli import CollectConfig, collect_command
from chunkcast.training.errors import CheckpointError, TrainingError
from chunkcast.training.export.demonstrated import demonstrated_observations
from chunkcast.training.export.policy_graph import INSTRUCTION_INPUT
from chunkcast.training.language.instructions import task_names
from chunkcast.training.policy import DiffusionPolicy
from chunkcast.training.presets import config_of
from chunkcast.training.rehearsal import Rehearsal
from chunkcast.training.sampling import sample_chunk, sampling_scheduler
from chunkcast.training.train_cli import train_command
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.warm_start import start_from
from tests.training.conftest import TASKS

NEW_TASK = "drawer-open-v3"  # between the two that are known, by name


def test_every_batch_has_its_share_of_old_windows() -> None:
    old = torch.arange(100) >= 6
    order = Rehearsal(old, 0.25).order(10, 16, torch.Generator().manual_seed(0)).view(10, 16)
    assert old[order].sum(1).tolist() == [4] * 10
    # New windows come again and again, none more than once oftener than another; old ones not before all were there.
    counts = torch.bincount(order.flatten(), minlength=100)
    assert int(counts[:6].max() - counts[:6].min()) <= 1
    assert counts[:6].sum() == 120
    assert int(counts[6:].max()) <= 1
    # Where in a batch a window stands decides how it is noised: old ones stand anywhere.
    assert len({tuple(row) for row in old[order].tolist()}) > 5
    with pytest.raises(TrainingError, match="no windows to train on"):
        Rehearsal(torch.ones(5, dtype=torch.bool), 0.5)


def test_more_tasks_change_nothing_of_the_old_ones(small_run: Path) -> None:
    checkpoint = read_checkpoint(small_run / LAST_CHECKPOINT)
    known = load_policy(checkpoint)
    told = task_names(sorted([*TASKS, NEW_TASK]))
    torch.manual_seed(5)
    wider = DiffusionPolicy(
        replace(known.config, instruction_size=3),
        torch.zeros_like(known.state_mean),
        torch.ones_like(known.state_std),
        *told.moments(),
        known.action_low,
        known.action_high,
    ).eval()
    start_from(wider, told, small_run, LAST_CHECKPOINT)
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(4, known.config.observation_steps, known.config.state_size, generator=generator)
    noise = torch.randn(4, known.config.horizon, known.config.action_size, generator=generator)
    nothing = torch.zeros(4, dtype=torch.int64)
    sampler = sampling_scheduler(known.config, 2)
    for number, task in enumerate(TASKS):
        before, after = (
            sample_chunk(policy, sampler, state, codes.expand(4, -1), noise, torch.zeros_like(noise), nothing)
            for policy, codes in (
                (known, checkpoint.instructions.embeddings[number]),
                (wider, told.embeddings[told.tasks.index(task)]),
            )
        )
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    new = sample_chunk(wider, sampler, state, told.embeddings[1].expand(4, -1), noise, torch.zeros_like(noise), nothing)
    assert not torch.allclose(new, before, atol=1e-3)


def test_old_and_new_tasks_are_played_at_the_end(
    small_run: Path, small_config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collect_command(CollectConfig(out=tmp_path / "new", tasks=(NEW_TASK,), episodes=2, workers=1))
    config = replace(
        small_config,
        data=tmp_path / "new",
        rehearsal=small_config.data,
        start_from=small_run,
        out=tmp_path / "run",
        epochs=1,
        rollout_every=5,
        rollout_episodes=1,
        data_memory_gb=0,  # both are mapped
        mapped_folder=tmp_path / "mapped",
    )
    with pytest.raises(CheckpointError, match="begin with its sizes: --width 32"):
        train_command(replace(config, width=64, embedding_size=32))
    with pytest.raises(CheckpointError, match=f"knows {', '.join(TASKS)}, which no demonstrations here are of"):
        train_command(replace(config, rehearsal=None, rollout_every=0))
    train_command(config)
    report = json.loads((tmp_path / "run/fine-tuning.json").read_text())
    assert report["new_tasks"] == [NEW_TASK]
    assert report["old_tasks"] == list(TASKS)
    assert report["old tasks before"]["episodes"] == report["old tasks after"]["episodes"] == 2
    assert report["new tasks"]["episodes"] == 1
    assert "old tasks before" in capsys.readouterr().out
    facts = read_checkpoint(tmp_path / "run" / LAST_CHECKPOINT)
    assert facts.instructions.tasks == tuple(sorted([*TASKS, NEW_TASK]))
    assert len(facts.run["data_manifest"]["sources"]) == 2
    # What an int8 export is calibrated on are episodes of all three.
    calibrating, _ = demonstrated_observations(facts, None, calibrating=512, comparing=16)
    told = np.concatenate([feeds[INSTRUCTION_INPUT] for feeds in calibrating])
    np.testing.assert_array_equal(
        np.unique(told, axis=0), np.unique(facts.instructions.embeddings.flatten(0, 1), axis=0)
    )


def test_rehearsal_has_settings_of_its_own(tmp_path: Path) -> None:
    flags = ["--data", str(tmp_path), "--out", str(tmp_path / "run"), "--start-from", "x"]
    tuned = config_of([*flags, "--rehearsal", "y"])
    assert tuned.learning_rate < config_of(flags).learning_rate
    assert tuned.rollout_every > 0
    assert config_of([*flags, "--rehearsal", "y", "--learning-rate", "0.1"]).learning_rate == 0.1
    with pytest.raises(TrainingError, match="--batch-size must be at least 2 with --rehearsal, got 1"):
        config_of([*flags, "--rehearsal", "y", "--batch-size", "1"])
    with pytest.raises(TrainingError, match="--rehearsal goes with --start-from"):
        TrainConfig(data=tmp_path, out=tmp_path, rehearsal=tmp_path)
