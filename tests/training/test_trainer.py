"""A run cut in two equals one run; histories compare; bad input is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chunkcast.training.checkpoint import (
    BEST_CHECKPOINT,
    LAST_CHECKPOINT,
    load_policy,
    read_checkpoint,
    write_checkpoint,
)
from chunkcast.training.demonstrations.sources import read_demonstrations
from chunkcast.training.errors import CheckpointError, TrainingError
from chunkcast.training.history import HistoryWriter, read_history
from chunkcast.training.train_cli import choose_bf16, train_command
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.trainer import Trainer
from tests.training.conftest import train_in_two_parts

CPU = torch.device("cpu")


def test_a_run_cut_in_two_equals_one_run(
    small_config: TrainConfig, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = replace(small_config, out=tmp_path / "cut")
    train_in_two_parts(cut, 2, monkeypatch)

    whole, resumed = (read_checkpoint(folder / LAST_CHECKPOINT) for folder in (small_run, cut.out))
    assert whole.tensors.keys() == resumed.tensors.keys()
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, resumed.tensors[name]), name
    assert whole.progress == resumed.progress
    assert [record.measurements() for record in read_history(small_run)] == [
        record.measurements() for record in read_history(cut.out)
    ]


def test_records_after_the_last_checkpoint_are_cut_off_on_resume(small_run: Path, tmp_path: Path) -> None:
    """A crash between the history's line and the checkpoint's rename leaves one line too many."""
    (tmp_path / "history.jsonl").write_text((small_run / "history.jsonl").read_text())
    with HistoryWriter(tmp_path, keep_epochs=3):
        pass
    assert read_history(tmp_path) == read_history(small_run)[:3]


def test_the_loss_falls_and_everything_is_written(small_run: Path) -> None:
    records = read_history(small_run)
    assert [record.epoch for record in records] == [1, 2, 3, 4]
    assert records[-1].validation_loss < records[0].validation_loss
    assert records[-1].train_loss < records[0].train_loss
    assert set(records[0].validation_noise_mse_by_timestep) == {f"{10 * i}-{10 * i + 9}" for i in range(10)}
    assert list((small_run / "tensorboard").glob("events.out.tfevents.*"))
    assert json.loads((small_run / "config.json").read_text())["width"] == 32
    best = min(records, key=lambda record: record.validation_loss)
    assert read_checkpoint(small_run / BEST_CHECKPOINT).progress.best_epoch == best.epoch


def test_validation_uses_the_same_noise_and_timesteps_each_time(small_config: TrainConfig) -> None:
    trainer = Trainer(small_config, read_demonstrations(small_config.data), torch.device("cpu"), bf16=False)
    assert trainer._validate() == trainer._validate()


def test_early_stopping(small_config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A learning rate this low changes no weight: no epoch is better than the first.
    train_command(
        replace(small_config, out=tmp_path / "run", epochs=50, patience=2, learning_rate=1e-12, precision="fp32")
    )
    records = read_history(tmp_path / "run")
    best = min(records, key=lambda record: record.validation_loss)
    assert len(records) == best.epoch + 2 < 50
    assert "no lower validation loss for 2 epochs" in capsys.readouterr().out


def test_resuming_a_run_that_stopped_early_changes_nothing(small_config: TrainConfig, tmp_path: Path) -> None:
    config = replace(small_config, out=tmp_path / "run", epochs=50, patience=1, learning_rate=1e-12, precision="fp32")
    train_command(config)
    before = (config.out / LAST_CHECKPOINT).read_bytes(), (config.out / "history.jsonl").read_bytes()
    train_command(replace(config, resume=True))
    assert ((config.out / LAST_CHECKPOINT).read_bytes(), (config.out / "history.jsonl").read_bytes()) == before


def test_divergence_ends_the_run_and_keeps_the_last_good_checkpoint(small_config: TrainConfig, tmp_path: Path) -> None:
    config = replace(small_config, out=tmp_path / "run", epochs=1, learning_rate=1e-3)
    train_command(config)
    good = (config.out / LAST_CHECKPOINT).read_bytes()
    trainer = Trainer(
        replace(config, resume=True), read_demonstrations(config.data), torch.device("cpu"), choose_bf16("auto", CPU)
    )
    trainer.config = replace(config, epochs=2)
    with torch.no_grad():
        next(trainer.policy.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"training diverged \(epoch 2: .*; the checkpoint of epoch 1 is kept"):
        trainer.run(lambda record, findings: None)
    assert (config.out / LAST_CHECKPOINT).read_bytes() == good


def test_a_torn_last_line_of_the_history_is_left_out(small_run: Path, tmp_path: Path) -> None:
    text = (small_run / "history.jsonl").read_text()
    (tmp_path / "history.jsonl").write_text(text + text[:100])
    assert read_history(tmp_path) == read_history(small_run)


def test_a_run_is_not_overwritten(small_config: TrainConfig, small_run: Path) -> None:
    with pytest.raises(CheckpointError, match="already holds a run; pass --resume"):
        train_command(small_config)


def test_a_run_is_not_resumed_with_other_settings(small_config: TrainConfig, small_run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"begun with other settings \(learning_rate\)"):
        train_command(replace(small_config, resume=True, learning_rate=0.5))


def test_damaged_checkpoints_are_refused(small_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "cut.safetensors"
    file.write_bytes((small_run / LAST_CHECKPOINT).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_checkpoint(file)
    with pytest.raises(CheckpointError, match="is missing; expected a checkpoint that chunkcast-train wrote"):
        read_checkpoint(tmp_path / "nowhere.safetensors")


def test_checkpoints_round_trip(small_run: Path, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(small_run / LAST_CHECKPOINT)
    write_checkpoint(tmp_path / "again.safetensors", checkpoint)
    again = read_checkpoint(tmp_path / "again.safetensors")
    assert again.policy_config == checkpoint.policy_config
    assert again.run == checkpoint.run
    averaged, trained = checkpoint.part("ema"), checkpoint.part("model")
    assert averaged.keys() == trained.keys()
    assert any(not torch.equal(averaged[name], trained[name]) for name in averaged)
    assert not load_policy(again).training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"execute_steps": 17}, r"--execute-steps must lie in \[1, --horizon 16\], got 17"),
        ({"width": 30}, "--width must be a multiple of 4"),
        ({"validation_fraction": 1.0}, r"--validation-fraction must lie in \(0, 1\)"),
    ],
)
def test_bad_settings_are_refused(small_config: TrainConfig, changes: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        replace(small_config, **changes)  # type: ignore[arg-type]


def test_an_unknown_device_is_refused(small_config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--device 'gpu9' cannot be used"):
        train_command(replace(small_config, out=tmp_path, device="gpu9"))
