"""Other objectives, networks, words and presets: each trains on real demonstrations and exports for the server."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from chunkcast.server.bundle import read_bundle
from chunkcast.simulation.metaworld_tasks import STATE_ELEMENTS
from chunkcast.training.checkpoint import LAST_CHECKPOINT, read_checkpoint
from chunkcast.training.choices import DenoiserName
from chunkcast.training.demonstrations.sources import read_demonstrations
from chunkcast.training.denoisers.denoiser import DenoiserConfig, make_denoiser
from chunkcast.training.draws import Draws
from chunkcast.training.errors import CheckpointError, ExportError, TrainingError
from chunkcast.training.export.bundle_writer import write_expectations
from chunkcast.training.export.exporter import export_bundle
from chunkcast.training.export.policy_graph import (
    INSTRUCTION_INPUT,
    NOISE_INPUT,
    PREFIX_ACTIONS_INPUT,
    PREFIX_LENGTH_INPUT,
    STATE_INPUT,
)
from chunkcast.training.history import read_history
from chunkcast.training.language.instructions import EncoderIdentity, task_names
from chunkcast.training.loss import DenoisingLoss
from chunkcast.training.presets import PRESETS, config_of
from chunkcast.training.state_differences import previous_of
from chunkcast.training.train_cli import main, train_command
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.trainer import Trainer
from chunkcast.training.warm_start import start_from
from chunkcast.training.windows import Batch
from chunkcast.v1 import policy_pb2 as pb
from tests.conftest import SHIPPED_ENCODER


def trained(config: TrainConfig, out: Path, **changes: Any) -> TrainConfig:
    config = replace(config, out=out, epochs=2, **changes)
    train_command(config)
    records = read_history(out)
    assert records[-1].train_loss < records[0].train_loss
    return config


@pytest.mark.parametrize(
    ("changes", "sampler"),
    [
        ({"objective": "mip"}, ("MIP", pb.PREDICTION_TYPE_SAMPLE, 2)),
        ({"prediction_type": "v_prediction"}, ("DDIM", pb.PREDICTION_TYPE_V_PREDICTION, 100)),
        ({"denoiser": "unet", "batch_size": 8}, ("DDIM", pb.PREDICTION_TYPE_SAMPLE, 100)),
        ({"differences": False, "max_committed_steps": 0}, ("DDIM", pb.PREDICTION_TYPE_SAMPLE, 100)),
        ({"denoiser": "unet", "batch_size": 8, "max_committed_steps": 0}, ("DDIM", pb.PREDICTION_TYPE_SAMPLE, 100)),
        ({"denoiser": "transformer", "width": 64, "max_committed_steps": 0}, ("DDIM", pb.PREDICTION_TYPE_SAMPLE, 100)),
    ],
)
def test_it_trains_and_exports(
    small_config: TrainConfig, tmp_path: Path, changes: dict[str, Any], sampler: tuple[str, int, int]
) -> None:
    config = trained(small_config, tmp_path / "run", **changes)
    export_bundle(config.out / LAST_CHECKPOINT, tmp_path / "bundle", name="it", steps=2)
    spec = read_bundle(tmp_path / "bundle").spec
    assert (spec.sampler.name, spec.sampler.prediction_type, spec.sampler.train_timesteps) == sampler
    assert spec.action.max_committed_steps == config.max_committed_steps
    graph = onnxruntime.InferenceSession(tmp_path / "bundle" / "policy.onnx", providers=["CPUExecutionProvider"])
    committed = {PREFIX_ACTIONS_INPUT, PREFIX_LENGTH_INPUT} if config.max_committed_steps else set()
    assert {each.name for each in graph.get_inputs()} == {STATE_INPUT, INSTRUCTION_INPUT, NOISE_INPUT} | committed


def minimized(config: TrainConfig) -> tuple[torch.Tensor, DenoisingLoss]:
    """Of the same windows, with the same noise, before anything is trained."""
    trainer = Trainer(config, read_demonstrations(config.data), torch.device("cpu"), bf16=False)
    return trainer.objective.loss(trainer.training.take(torch.arange(64)), Draws(torch.Generator().manual_seed(0)))


def test_a_run_hides_how_the_robot_moved(
    small_config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden: list[tuple[tuple[int, int], ...]] = []
    stilled = Batch.stilled

    def recorded(batch: Batch, windows: torch.Tensor, previous: tuple[tuple[int, int], ...]) -> Batch:
        hidden.append(previous)
        return stilled(batch, windows, previous)

    monkeypatch.setattr(Batch, "stilled", recorded)
    minimized(replace(small_config, motion_dropout=0.5, out=tmp_path / "run"))
    minimized(replace(small_config, motion_dropout=0.0, out=tmp_path / "run"))
    assert hidden == [previous_of(STATE_ELEMENTS)]
    assert len(hidden[0]) > 3


def test_a_policy_that_is_told_in_sentences(small_config: TrainConfig, tmp_path: Path) -> None:
    config = trained(small_config, tmp_path / "run", text_encoder=SHIPPED_ENCODER)
    checkpoint = read_checkpoint(config.out / LAST_CHECKPOINT)
    assert checkpoint.policy_config.instruction_size == 384
    export_bundle(config.out / LAST_CHECKPOINT, tmp_path / "bundle", name="told", steps=1)
    spec = read_bundle(tmp_path / "bundle").spec
    assert [(each.text, each.task) for each in spec.instructions] == [
        ("close the drawer", "drawer-close-v3"),
        ("pick up the puck and place it at the goal", "pick-place-v3"),
    ]
    assert "shut the drawer" in spec.instructions[0].paraphrases
    assert "push the drawer closed" not in spec.instructions[0].paraphrases  # held out
    assert spec.text_encoder.name == "all-minilm-l6-v2"
    assert len(spec.text_encoder.sha256) == 64
    # Simulations and demonstrations know a task by its plain name.
    measured = pb.ExpectedSuccess(source=pb.SUCCESS_SOURCE_MEASURED, task="drawer-close-v3", ratio=1, low=0.8, high=1)
    write_expectations(tmp_path / "bundle", [measured])
    assert read_bundle(tmp_path / "bundle").spec.expected_success[0].task == "close the drawer"
    # An interrupted run goes on, wherever the encoder lies now.
    elsewhere = tmp_path / "encoder"
    shutil.copytree(SHIPPED_ENCODER, elsewhere)
    train_command(replace(config, resume=True, text_encoder=elsewhere))


def test_a_student_learns_what_its_teacher_samples(small_config: TrainConfig, small_run: Path, tmp_path: Path) -> None:
    student = replace(small_config, teacher=small_run, out=tmp_path / "student", epochs=2, learning_rate=1e-4)
    train_command(student)
    # It begins with its teacher's weights, and the teacher's chunks are near what it predicts at once.
    records = read_history(student.out)
    assert records[0].train_loss < read_history(small_run)[-1].train_loss
    assert set(records[0].validation_noise_mse_by_timestep) == {"90-99"}
    exported = export_bundle(student.out / LAST_CHECKPOINT, tmp_path / "bundle", name="student")
    assert exported.spec.sampler.evaluations == 1
    assert not exported.spec.expected_success  # its loss is not that of denoising
    for huber in (0.0, 0.1):
        _, loss = minimized(replace(student, huber=huber, out=tmp_path / "untrained"))
        assert torch.equal(loss.minimized, loss.objective) == (not huber)
    with pytest.raises(ExportError, match="--steps 2: the run is a one-step student's"):
        export_bundle(student.out / LAST_CHECKPOINT, tmp_path / "two", name="student", steps=2)
    with pytest.raises(CheckpointError, match="other shapes than the student's"):
        train_command(replace(student, out=tmp_path / "other", width=64))
    with pytest.raises(TrainingError, match="--teacher needs --objective diffusion"):
        replace(student, prediction_type="epsilon")


@pytest.mark.parametrize("denoiser", ["unet", "transformer"])
def test_every_weight_of_a_network_is_in_its_bundle(
    small_config: TrainConfig, tmp_path: Path, denoiser: DenoiserName
) -> None:
    """By name and as it was: the exporter would fold some away."""
    config = replace(small_config, denoiser=denoiser, width=64, epochs=2, out=tmp_path / "run")
    train_command(config)
    export_bundle(config.out / LAST_CHECKPOINT, tmp_path / "bundle", name="it", steps=1)
    again = replace(config, start_from=tmp_path / "bundle", out=tmp_path / "again")
    trainer = Trainer(again, read_demonstrations(config.data), torch.device("cpu"), bf16=False)
    for name, value in read_checkpoint(config.out / LAST_CHECKPOINT).part("ema").items():
        torch.testing.assert_close(trainer.policy.state_dict()[name], value, msg=name)


def test_a_bundle_or_a_run_is_trained_on(small_config: TrainConfig, small_run: Path, tmp_path: Path) -> None:
    export_bundle(small_run / LAST_CHECKPOINT, tmp_path / "bundle", name="small", steps=2)
    averaged = read_checkpoint(small_run / LAST_CHECKPOINT).part("ema")
    for source in (tmp_path / "bundle", small_run):
        config = replace(small_config, start_from=source, out=tmp_path / f"from-{source.name}")
        trainer = Trainer(config, read_demonstrations(config.data), torch.device("cpu"), bf16=False)
        for name, value in trainer.policy.state_dict().items():
            torch.testing.assert_close(value, averaged[name], msg=name)
    with pytest.raises(CheckpointError, match=r"its .* is \[.*32.*\], the new one's \[.*64"):
        train_command(replace(config, width=64, start_from=tmp_path / "bundle"))
    with pytest.raises(CheckpointError, match="begin with its sizes: --width 32"):
        train_command(replace(config, width=64))
    with pytest.raises(CheckpointError, match="it has no denoiser"):
        train_command(replace(config, denoiser="unet", blocks=1, start_from=tmp_path / "bundle"))
    with pytest.raises(CheckpointError, match=r"was trained for .*'sample', 100.*, the new network is for .*'epsilon'"):
        train_command(replace(config, prediction_type="epsilon"))
    with pytest.raises(
        CheckpointError, match=r"knows drawer-close-v3, pick-place-v3, which no demonstrations here are"
    ):
        start_from(trainer.policy, task_names(("other", "tasks")), tmp_path / "bundle", LAST_CHECKPOINT)
    in_sentences = replace(trainer.instructions, encoder=EncoderIdentity("of sentences", "its-sha256"))
    with pytest.raises(
        CheckpointError, match=r"is told its tasks by .*drawer-close-v3.*, the new network by .*its-sha"
    ):
        start_from(trainer.policy, in_sentences, tmp_path / "bundle", LAST_CHECKPOINT)
    graph = tmp_path / "bundle" / "policy.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=r"not the one that policy\.json names"):
        train_command(replace(config, start_from=tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "mip", "prediction_type": "epsilon"}, "--objective mip predicts the clean chunk"),
        ({"noise_only_fraction": 1.5}, r"--noise-only-fraction must lie in \[0, 1\], got 1.5"),
        ({"instructions": Path("table.toml")}, "--instructions needs --text-encoder"),
        ({"chunk_discount": 0.0}, r"--chunk-discount must lie in \(0, 1\], got 0.0"),
        ({"windows_per_episode": -1}, "--windows-per-episode must not be negative"),
        ({"adam_beta2": 1.0}, r"--adam-beta2 must lie in \[0, 1\)"),
        ({"huber": -1.0}, "--huber must be finite and not negative, got -1.0"),
        ({"huber": float("inf")}, "--huber must be finite"),
        ({"rollout_every": 1, "keep_best": 0}, "--keep-best must be at least 1"),
        ({"motion_dropout": 1.5}, r"--motion-dropout must lie in \[0, 1\], got 1.5"),
    ],
)
def test_what_no_run_could_use_is_refused(small_config: TrainConfig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        replace(small_config, **changes)


def test_a_preset_holds_where_no_flag_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    configs: list[TrainConfig] = []
    monkeypatch.setattr("chunkcast.training.train_cli.train_command", configs.append)
    for flags in ("", "--preset tinyvla-73m", "--preset=tinyvla-73m --epochs 3 --ema-decay 0.9"):
        monkeypatch.setattr(sys, "argv", ["chunkcast-train", "--data", str(tmp_path), "--out", "run", *flags.split()])
        main()
    plain, seed, changed = configs
    assert (plain.preset, plain) == ("default", TrainConfig(data=tmp_path, out=Path("run")))
    assert (seed.denoiser, seed.prediction_type, seed.batch_size, seed.epochs) == ("unet", "epsilon", 8, 10)
    assert (seed.huber, seed.motion_dropout, seed.differences) == (0.0, 0.0, False)
    assert changed == replace(seed, epochs=3, ema_decay=0.9)
    assert set(PRESETS) == {"default", "tinyvla-73m"}

    def settings(flags: str) -> TrainConfig:
        return config_of(["--data", str(tmp_path), "--out", "run", *flags.split()])

    assert replace(settings("--denoiser unet --width 32"), width=64) == settings("--denoiser=unet") != plain
    for prediction_type in ("epsilon", "v_prediction"):
        predicted = settings(f"--prediction_type {prediction_type}")
        assert (
            (predicted.noise_only_fraction, predicted.huber) == (0.0, 0.0) != (plain.noise_only_fraction, plain.huber)
        )
    # The preset's own settings stand, whatever its denoiser would get by itself.
    assert settings("--preset tinyvla-73m --denoiser unet") == seed
    for denoiser in ("unet", "transformer"):
        chosen = settings(f"--denoiser {denoiser}")
        make_denoiser(
            chosen.denoiser,
            DenoiserConfig(chosen.horizon, 4, chosen.embedding_size, chosen.width, chosen.blocks, sees_committed=True),
        )
    monkeypatch.setattr(sys, "argv", ["chunkcast-train", "--data", "d", "--out", "o", "--preset", "tinyvla"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "tinyvla-73m" in capsys.readouterr().err
