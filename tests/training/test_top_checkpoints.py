"""The checkpoints that a run keeps: by success that is measured through the server, and by validation loss."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chunkcast.training import run_checkpoints
from chunkcast.training.checkpoint import LAST_CHECKPOINT, read_checkpoint, top_checkpoint
from chunkcast.training.demonstrations.sources import read_demonstrations
from chunkcast.training.errors import CheckpointError, TrainingError
from chunkcast.training.export.cli import ExportConfig, export_command
from chunkcast.training.top_checkpoints import Candidate, TopCheckpoints, by_success, most_successful, read_top
from chunkcast.training.train_cli import train_command
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.trainer import Trainer


def candidate(epoch: int, loss: float, success: float | None = None) -> Candidate:
    return Candidate(epoch, loss, success, 10, (0.0, 1.0)) if success is not None else Candidate(epoch, loss)


def offer(top: TopCheckpoints, run: Path, one: Candidate) -> None:
    file = run / top_checkpoint(one.epoch)
    file.parent.mkdir(exist_ok=True)
    file.write_text(str(one.epoch))
    top.add(one)


def files(run: Path) -> list[str]:
    return sorted(file.stem for file in (run / "checkpoints").glob("top-*"))


def test_the_best_of_both_rankings_are_kept(tmp_path: Path) -> None:
    top = TopCheckpoints(tmp_path, keep=1)
    offer(top, tmp_path, candidate(1, 0.9, 0.5))
    assert not top.wants(0.95)
    assert top.wants(0.8)
    offer(top, tmp_path, candidate(2, 0.8, 0.4))
    assert files(tmp_path) == ["top-0001", "top-0002"]  # one succeeds more, the other has the lower loss
    offer(top, tmp_path, candidate(3, 0.7, 0.5))
    # Epoch 3 has both: as much success and a later epoch, and the lowest loss.
    assert files(tmp_path) == ["top-0003"]
    offer(top, tmp_path, candidate(4, 0.6))
    assert files(tmp_path) == ["top-0003", "top-0004"]
    assert most_successful(tmp_path) == tmp_path / top_checkpoint(3)
    kept, played = read_top(tmp_path)
    assert [one.epoch for one in kept] == [3, 4]
    assert [one.epoch for one in played] == [1, 2, 3]
    again = TopCheckpoints(tmp_path, keep=1)
    again.resume(3)
    assert [one.epoch for one in again.candidates] == [3]
    assert again.has_played(2)
    assert not again.has_played(4)


def test_an_epoch_that_is_played_later_counts_once(tmp_path: Path) -> None:
    top = TopCheckpoints(tmp_path, keep=3)
    for epoch in (98, 99, 100):
        offer(top, tmp_path, candidate(epoch, 1.0 / epoch))
    offer(top, tmp_path, candidate(100, 0.01, 0.5))
    assert files(tmp_path) == ["top-0098", "top-0099", "top-0100"]
    kept, played = read_top(tmp_path)
    assert [one.epoch for one in kept] == [98, 99, 100]
    assert [one.epoch for one in played] == [100]


def test_nothing_is_kept_where_nothing_is_asked_for(tmp_path: Path) -> None:
    top = TopCheckpoints(tmp_path, keep=0)
    assert not top.wants(0.0)
    with pytest.raises(CheckpointError, match="train with --rollout-every"):
        most_successful(tmp_path)


def test_a_run_plays_its_checkpoints_through_the_server(
    small_config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(small_config, out=tmp_path / "run", epochs=2, rollout_every=2, rollout_episodes=1, keep_best=1)
    train_command(config)
    printed = capsys.readouterr()
    kept, played = read_top(config.out)
    assert [one.epoch for one in played] == [2]
    assert all(one.episodes == 2 and one.first_seed == 500_000 for one in played)
    best = by_success(kept)[0]
    assert f"{top_checkpoint(best.epoch)}: success" in printed.out.replace("\n", "")
    # What was played is on record, as chunkcast-sim said it.
    record = json.loads(next((config.out / "rollouts").glob("top-0002-*.json")).read_text())
    assert record["summary"]["episodes"] == 2
    assert record["summary"]["first_seed"] == 500_000
    assert len(files(config.out)) <= 2
    export_command(ExportConfig(config.out, tmp_path / "bundle", most_successful=True))
    facts = json.loads((tmp_path / "bundle/policy.json").read_text())
    assert facts["training"]["epochs"] == best.epoch


def test_what_was_interrupted_while_it_was_played_is_played_on_resuming(
    small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(small_config, out=tmp_path / "run", epochs=2, rollout_every=1, rollout_episodes=1)
    plays: list[int] = []

    def interrupted(config: TrainConfig, one: Candidate) -> Candidate:
        plays.append(one.epoch)
        raise KeyboardInterrupt

    def instantly(config: TrainConfig, one: Candidate) -> Candidate:
        plays.append(one.epoch)
        return replace(one, success=0.5, episodes=2, ci95=(0.1, 0.9))

    def trainer(**changes: Any) -> Trainer:
        return Trainer(replace(config, **changes), read_demonstrations(config.data), torch.device("cpu"), bf16=False)

    monkeypatch.setattr(run_checkpoints, "played", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer().run(lambda record, findings: None)
    monkeypatch.setattr(run_checkpoints, "played", instantly)
    trainer(resume=True).run(lambda record, findings: None)
    assert plays == [1, 1, 2]


def test_the_last_epochs_rollout_is_made_up_for(
    small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run had begun without rollouts, so that nobody kept the epoch's weights for them."""
    config = replace(small_config, out=tmp_path / "run", epochs=2, keep_best=1, keep_epochs=())
    train_command(config)
    (config.out / top_checkpoint(2)).unlink(missing_ok=True)
    monkeypatch.setattr(
        run_checkpoints, "played", lambda config, one: replace(one, success=1.0, episodes=2, ci95=(0, 1))
    )
    train_command(replace(config, rollout_every=5, resume=True))
    assert [one.epoch for one in read_top(config.out)[1]] == [2]
    averaged = read_checkpoint(config.out / top_checkpoint(2))
    last = read_checkpoint(config.out / LAST_CHECKPOINT)
    assert set(averaged.tensors) == {name for name in last.tensors if name.startswith("ema.")}
    assert all(torch.equal(value, last.tensors[name]) for name, value in averaged.tensors.items())


def test_a_run_that_stops_early_is_played_too(
    small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(small_config, out=tmp_path / "run", epochs=50, patience=1, learning_rate=1e-12, rollout_every=40)
    monkeypatch.setattr(
        run_checkpoints, "played", lambda config, one: replace(one, success=1.0, episodes=2, ci95=(0, 1))
    )
    trainer = Trainer(config, read_demonstrations(config.data), torch.device("cpu"), bf16=False)
    assert trainer.run(lambda record, findings: None).startswith("no lower validation loss")
    assert [one.epoch for one in read_top(config.out)[1]] == [trainer.progress.epoch]
    assert trainer.progress.epoch < 40


def test_two_kinds_of_best_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="pass one of them"):
        ExportConfig(tmp_path, tmp_path / "bundle", best=True, most_successful=True)
