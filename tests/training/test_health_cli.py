"""``chunkcast-health check`` on what people have, and the same rules while a run trains."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chunkcast.server.bundle import read_bundle
from chunkcast.training.checkpoint import (
    BEST_CHECKPOINT,
    LAST_CHECKPOINT,
    epoch_checkpoint,
    read_checkpoint,
    read_run_facts,
)
from chunkcast.training.collect.cli import CollectConfig, collect_command
from chunkcast.training.demonstrations.sources import read_demonstrations
from chunkcast.training.errors import TrainingError
from chunkcast.training.export.exporter import export_bundle
from chunkcast.training.files import write_json
from chunkcast.training.health.calibration import Calibration, PlayedCheckpoint
from chunkcast.training.health.cli import main
from chunkcast.training.health.commands import Check, Expect, check_command, expect_command
from chunkcast.training.health.findings import Finding
from chunkcast.training.health.judge import judge, run_settings
from chunkcast.training.health.loss_curve import curve_of_records
from chunkcast.training.history import EpochRecord, read_history
from chunkcast.training.run_identity import run_identity
from chunkcast.training.train_cli import train_command
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.trainer import Trainer
from tests.training.conftest import TASKS

HEALTHY = "epoch,train_loss,val_loss\n" + "".join(
    f"{epoch},{loss},{1.2 * loss}\n" for epoch, loss in enumerate((22.5, 0.66, 0.52, 0.41, 0.36, 0.3, 0.26, 0.22), 1)
)
CPU = torch.device("cpu")


@pytest.fixture
def health(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``chunkcast-health`` with arguments, in this process; returns its exit code."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["chunkcast-health", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return run


def written(folder: Path, content: str, name: str = "history.csv") -> Path:
    (folder / name).write_text(content)
    return folder / name


def refuse_constant(text: str) -> None:
    raise AssertionError(f"{text} is no strict JSON")


def strict_json(file: Path) -> Any:
    return json.loads(file.read_text(), parse_constant=refuse_constant)


# Exit codes.


def test_a_healthy_history(tmp_path: Path, health: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert health("check", written(tmp_path, HEALTHY)) == 0
    printed = capsys.readouterr()
    assert "errors: 0, warnings: 0" in printed.out
    assert "losses are hypotheses" in " ".join(printed.out.split())
    assert printed.err == ""


def test_a_warning_is_no_error(tmp_path: Path, health: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, "epoch,loss\n" + "".join(f"{epoch},0.7\n" for epoch in range(9)))
    assert health("check", file) == 0
    assert "no_improvement" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "code"), [("1,0.5\n2,nan\n", "non_finite"), ("1,0.5\n2,101\n", "explosion"), ("1,1.5\n", "variance")]
)
def test_an_error(
    tmp_path: Path, health: Callable[..., int], capsys: pytest.CaptureFixture[str], rows: str, code: str
) -> None:
    assert health("check", written(tmp_path, f"epoch,loss\n{rows}")) == 1
    printed = capsys.readouterr()
    assert code in printed.out
    assert printed.err == ""


@pytest.mark.parametrize("content", ["", "epoch;loss\n1;0,5\n", "step,loss\n1,0.5\n", "epoch,loss\n1,low\n"])
def test_bad_input_is_one_line(
    tmp_path: Path, health: Callable[..., int], capsys: pytest.CaptureFixture[str], content: str
) -> None:
    file = written(tmp_path, content)
    assert health("check", file) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(rf"error: {re.escape(str(file))}.*\n", printed.err)


def test_paths_that_are_no_history(
    tmp_path: Path, health: Callable[..., int], capsys: pytest.CaptureFixture[str], small_run: Path
) -> None:
    file = written(tmp_path, HEALTHY)
    for path in (tmp_path / "nowhere", tmp_path, small_run / LAST_CHECKPOINT, small_run / "config.json", file / "x"):
        assert health("check", path) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert re.fullmatch(rf"error: {re.escape(str(path))}.*expected.*\n", printed.err)


@pytest.mark.parametrize("option", ["--samples", "--batch-size"])
@pytest.mark.parametrize("value", ["0", "-5"])
def test_sizes_that_no_run_has_are_refused(
    tmp_path: Path, health: Callable[..., int], capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert health("check", written(tmp_path, HEALTHY), option, value) == 2
    assert re.fullmatch(rf"error: {option} must be at least 1, got {value}\n", capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [["check"], [], ["check", "a.csv", "--loss", "huber"], ["play"]])
def test_a_command_that_is_not_understood(health: Callable[..., int], arguments: list[str]) -> None:
    assert health(*arguments) == 2


def test_the_console_script(tmp_path: Path) -> None:
    """As a process of its own; the other tests stay in this one."""

    def run(content: str) -> subprocess.CompletedProcess[str]:
        file = written(tmp_path, content)
        command = [sys.executable, "-m", "chunkcast.training.health.cli", "check", str(file)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    failed = run("epoch,loss\n1,nan\n")
    assert (failed.returncode, failed.stderr) == (1, "")
    assert "non_finite" in failed.stdout
    refused = run("nothing")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.fullmatch(r"error: .*\n", refused.stderr)


# What is written.


def test_findings_are_written_as_strict_json(tmp_path: Path, health: Callable[..., int]) -> None:
    file, out = written(tmp_path, "epoch,loss\n1,0.5\n2,nan\n"), tmp_path / "new" / "findings.json"
    assert health("check", file, "--json", out) == 1
    facts = strict_json(out)
    assert (facts["history"], facts["epochs"]) == (str(file), 2)
    first = facts["findings"][0]
    assert set(first) == {"code", "severity", "epoch", "evidence", "advice"}
    assert (first["code"], first["severity"], first["epoch"]) == ("non_finite", "error", 2)
    assert [each.name for each in out.parent.iterdir()] == ["findings.json"]


def test_findings_are_written_for_a_healthy_history_too(tmp_path: Path) -> None:
    out = tmp_path / "findings.json"
    check_command(Check(written(tmp_path, HEALTHY), json=out))
    assert {each["severity"] for each in strict_json(out)["findings"]} == {"info"}


def test_bad_input_leaves_earlier_findings(tmp_path: Path, health: Callable[..., int]) -> None:
    out = written(tmp_path, "{}", "findings.json")
    assert health("check", tmp_path / "nowhere.csv", "--json", out) == 2
    assert out.read_text() == "{}"


def test_findings_that_cannot_be_written(
    tmp_path: Path, health: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, HEALTHY)
    assert health("check", file, "--json", file / "findings.json") == 2
    assert re.fullmatch(r"error: .*\n", capsys.readouterr().err)


def test_a_history_is_not_replaced_by_its_findings(tmp_path: Path, health: Callable[..., int]) -> None:
    file = written(tmp_path, HEALTHY)
    assert health("check", file, "--json", file) == 2
    assert file.read_text() == HEALTHY


def codes(findings: list[dict[str, Any]]) -> set[str]:
    return {finding["code"] for finding in findings}


def test_of_another_loss_only_the_course_is_judged(tmp_path: Path, health: Callable[..., int]) -> None:
    out = tmp_path / "findings.json"
    rows = "epoch,loss\n" + "".join(f"{epoch},{60 - 3 * epoch}\n" for epoch in range(12))
    assert health("check", written(tmp_path, rows), "--json", out) == 1
    assert {"loss_band", "variance_explained"} <= codes(strict_json(out)["findings"])
    assert health("check", written(tmp_path, rows), "--json", out, "--loss", "other") == 0
    assert strict_json(out)["findings"] == []


def test_the_advice_by_data_size(tmp_path: Path, health: Callable[..., int]) -> None:
    out = tmp_path / "findings.json"
    assert health("check", written(tmp_path, HEALTHY), "--json", out, "--samples", 3000, "--batch-size", 8) == 0
    assert {"target_loss", "batch_size"} <= codes(strict_json(out)["findings"])
    assert health("check", written(tmp_path, HEALTHY), "--json", out, "--samples", 528, "--batch-size", 8) == 0
    assert "batch_size" not in codes(strict_json(out)["findings"])


def test_a_name_with_markup_is_printed_as_it_is(
    tmp_path: Path, health: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "[bold]run[" / "x"
    folder.mkdir(parents=True)
    assert health("check", written(folder, HEALTHY)) == 0
    assert health("check", folder / "no[/bold].csv") == 2
    assert "no[/bold].csv is missing" in capsys.readouterr().err


# A run of chunkcast-train.


def test_a_run_is_judged_by_its_own_settings(small_run: Path, tmp_path: Path, health: Callable[..., int]) -> None:
    out = tmp_path / "findings.json"
    exit_code = health("check", small_run, "--json", out)
    findings = strict_json(out)["findings"]
    settings = run_settings(read_checkpoint(small_run / LAST_CHECKPOINT).run)
    assert settings.samples
    expected = judge(curve_of_records(read_history(small_run)), settings)
    assert findings == [finding.as_json() for finding in expected]
    assert exit_code == int(any(finding.severity == "error" for finding in expected))
    assert {"epochs", "batch_size"} <= codes(findings)


def test_a_runs_history_is_judged_like_the_run_but_for_its_settings(
    small_run: Path, tmp_path: Path, health: Callable[..., int]
) -> None:
    out = tmp_path / "findings.json"
    health("check", small_run / "history.jsonl", "--json", out)
    assert [finding.as_json() for finding in judge(curve_of_records(read_history(small_run)))] == strict_json(out)[
        "findings"
    ]


def test_a_run_that_has_no_epoch_yet(
    tmp_path: Path, health: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "history.jsonl").touch()
    assert health("check", tmp_path) == 2
    assert re.fullmatch(rf"error: {re.escape(str(tmp_path))}.*\n", capsys.readouterr().err)


def test_a_run_whose_history_is_torn(small_run: Path, tmp_path: Path, health: Callable[..., int]) -> None:
    written(tmp_path, (small_run / "history.jsonl").read_text() + '{"epoch": 5, "st', "history.jsonl")
    out = tmp_path / "findings.json"
    health("check", tmp_path, "--json", out)
    assert strict_json(out)["epochs"] == 4


def test_a_run_of_an_older_release(
    small_run: Path, tmp_path: Path, health: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (small_run / "history.jsonl").read_text().splitlines()]
    for row in rows:
        del row["validation_action_variance"]
    written(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "history.jsonl")
    assert health("check", tmp_path) == 2
    assert re.fullmatch(r"error: .*validation_action_variance.*\n", capsys.readouterr().err)


# While a run trains.

Heard = list[tuple[int, list[str]]]
"""Epoch, and the codes that are new in it."""


def listener(heard: Heard) -> Callable[[EpochRecord, list[Finding]], None]:
    return lambda record, findings: heard.append((record.epoch, [finding.code for finding in findings]))


@pytest.fixture(scope="module")
def diverging(small_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A learning rate that grows without end: good epochs first, and then none."""
    out = tmp_path_factory.mktemp("runs") / "diverging"
    return replace(small_config, out=out, epochs=60, learning_rate=1e3, warmup_steps=10_000, precision="fp32")


@pytest.fixture(scope="module")
def diverged(diverging: TrainConfig) -> tuple[Path, str]:
    """The run's folder, and what was said when it ended."""
    with pytest.raises(TrainingError) as said:
        train_command(diverging)
    return diverging.out, str(said.value)


def test_a_diverging_run_stops_and_its_history_holds_the_fatal_epoch(diverged: tuple[Path, str]) -> None:
    run, said = diverged
    records = read_history(run)
    fatal = records[-1].epoch
    assert [record.epoch for record in records] == list(range(1, fatal + 1))
    assert 2 <= fatal < 60
    assert all(record.train_loss <= 100.0 for record in records[:-1])
    assert not records[-1].train_loss <= 100.0
    assert said.startswith("training diverged (")
    assert f"the checkpoint of epoch {fatal - 1} is kept: lower --learning-rate" in said
    assert said.splitlines() == [said]


def test_a_diverging_run_keeps_the_last_good_checkpoint(diverged: tuple[Path, str]) -> None:
    run, _ = diverged
    good = read_history(run)[:-1]
    checkpoint = read_checkpoint(run / LAST_CHECKPOINT)
    assert checkpoint.progress.epoch == good[-1].epoch
    assert all(bool(torch.isfinite(tensor).all()) for tensor in checkpoint.tensors.values())
    best = min(good, key=lambda record: record.validation_loss)
    assert read_checkpoint(run / BEST_CHECKPOINT).progress.epoch == best.epoch


def test_a_diverged_run_is_an_error_afterwards(
    diverged: tuple[Path, str], tmp_path: Path, health: Callable[..., int]
) -> None:
    run, _ = diverged
    out = tmp_path / "findings.json"
    for history in (run, run / "history.jsonl"):
        assert health("check", history, "--json", out) == 1
        facts = strict_json(out)
        assert facts["epochs"] == read_history(run)[-1].epoch
        fatal = [each for each in facts["findings"] if each["code"] in ("explosion", "non_finite")]
        assert {(each["severity"], each["epoch"]) for each in fatal} == {("error", facts["epochs"])}


def test_a_diverged_run_diverges_again_when_resumed(diverged: tuple[Path, str], diverging: TrainConfig) -> None:
    run, said = diverged
    history = [record.measurements() for record in read_history(run)]
    checkpoint = (run / LAST_CHECKPOINT).read_bytes()
    with pytest.raises(TrainingError, match="training diverged") as again:
        train_command(replace(diverging, resume=True))
    assert str(again.value) == said
    assert [record.measurements() for record in read_history(run)] == history
    assert (run / LAST_CHECKPOINT).read_bytes() == checkpoint


@pytest.fixture(scope="module")
def stillborn(small_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run that diverges in its first epoch."""
    out = tmp_path_factory.mktemp("runs") / "stillborn"
    with pytest.raises(TrainingError) as said:
        train_command(replace(small_config, out=out, learning_rate=1e3, warmup_steps=1, precision="fp32"))
    return out, str(said.value)


def test_a_run_that_diverges_in_its_first_epoch_keeps_no_checkpoint_and_says_so(stillborn: tuple[Path, str]) -> None:
    run, said = stillborn
    assert [record.epoch for record in read_history(run)] == [1]
    assert not (run / "checkpoints").exists()
    assert "training diverged (" in said
    assert "the checkpoint of epoch 0 is kept" not in said


def test_a_run_that_diverged_in_its_first_epoch_is_an_error_afterwards(
    stillborn: tuple[Path, str], health: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert health("check", stillborn[0]) == 1
    printed = capsys.readouterr()
    assert "non_finite" in printed.out or "explosion" in printed.out
    assert printed.err == ""


def test_a_trainer_that_diverged_does_not_go_on_when_it_is_run_again(small_config: TrainConfig, tmp_path: Path) -> None:
    """Weights that met NaN are never written, however often one tries."""
    config = replace(small_config, out=tmp_path / "run", learning_rate=1e3, warmup_steps=1, precision="fp32")
    trainer = Trainer(config, read_demonstrations(config.data), CPU, bf16=False)
    for _ in range(2):
        with pytest.raises(TrainingError, match="training diverged"):
            trainer.run(lambda record, findings: None)
    assert not (config.out / LAST_CHECKPOINT).exists()


@pytest.fixture(scope="module")
def standing_still(small_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A learning rate this low changes no weight: no epoch is better than the first."""
    out = tmp_path_factory.mktemp("runs") / "still"
    return replace(small_config, out=out, epochs=9, patience=0, learning_rate=1e-12, precision="fp32", keep_epochs=(7,))


def test_a_warning_is_heard_at_the_epoch_at_which_it_begins_and_not_again(standing_still: TrainConfig) -> None:
    heard: Heard = []
    trainer = Trainer(standing_still, read_demonstrations(standing_still.data), CPU, bf16=False)
    assert trainer.run(listener(heard)) == "all epochs done"
    assert [epoch for epoch, _ in heard] == list(range(1, 10))
    assert [epoch for epoch, found in heard if "no_improvement" in found] == [6]
    # Trained on and judged afterwards, by the same rules.
    records = [EpochRecord(**record) for record in trainer.run_facts["history"]]
    afterwards = {finding.code for finding in judge(curve_of_records(records))}
    assert {code for _, found in heard for code in found} <= afterwards


def test_a_warning_is_not_heard_again_when_the_run_is_resumed(standing_still: TrainConfig, tmp_path: Path) -> None:
    """The result equals an uninterrupted run, and so does what is said of it."""
    config = replace(standing_still, out=tmp_path / "run")
    demonstrations = read_demonstrations(config.data)
    heard: Heard = []

    def interrupted_in_the_eighth(record: EpochRecord, findings: list[Finding]) -> None:
        listener(heard)(record, findings)
        if record.epoch == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(config, demonstrations, CPU, bf16=False).run(interrupted_in_the_eighth)
    Trainer(replace(config, resume=True), demonstrations, CPU, bf16=False).run(listener(heard))
    assert [epoch for epoch, _ in heard] == [1, 2, 3, 4, 5, 6, 7, 8, 8, 9]
    assert [epoch for epoch, found in heard if "no_improvement" in found] == [6]


def test_the_command_prints_each_finding_once_in_a_line_of_its_own(
    standing_still: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_command(replace(standing_still, out=tmp_path / "run"))
    lines = capsys.readouterr().err.splitlines()
    (said,) = [number for number, line in enumerate(lines) if "no_improvement" in line]
    # In a log, which is searched by line.
    assert re.match(r"warning: no_improvement: lowest loss .* 5 epochs before epoch 6; .*training longer$", lines[said])
    (epoch,) = [number for number, line in enumerate(lines) if line.startswith("epoch 6/9")]
    assert abs(said - epoch) <= 4


# Checkpoints along a run.


def test_epochs_are_kept_as_told(small_config: TrainConfig, tmp_path: Path) -> None:
    config = replace(small_config, out=tmp_path / "run", epochs=3, keep_epochs=(2, 3, 99), keep_best=0)
    train_command(config)
    assert sorted(file.name for file in (config.out / "checkpoints").iterdir()) == [
        "best.safetensors",
        "epoch-0002.safetensors",
        "epoch-0003.safetensors",
        "last.safetensors",
    ]


def test_a_kept_epoch_is_what_the_run_was_then(small_run: Path) -> None:
    last = read_checkpoint(small_run / LAST_CHECKPOINT)
    for epoch in (1, 2, 4):
        kept = read_checkpoint(small_run / epoch_checkpoint(epoch))
        assert kept.progress.epoch == epoch
        assert [record["epoch"] for record in kept.run["history"]] == list(range(1, epoch + 1))
        assert kept.run["history"] == last.run["history"][:epoch]
        assert set(kept.tensors) == {f"ema.{name}" for name in kept.part("ema")}
    for name, tensor in read_checkpoint(small_run / epoch_checkpoint(4)).part("ema").items():
        assert torch.equal(tensor, last.part("ema")[name])


def test_a_kept_epoch_is_exported_with_what_was_found_until_then(small_run: Path, tmp_path: Path) -> None:
    file = small_run / epoch_checkpoint(2)
    exported = export_bundle(file, tmp_path / "kept", name="kept", steps=2)
    assert exported.epoch == 2
    spec = read_bundle(tmp_path / "kept").spec
    records = read_history(small_run)[:2]
    assert spec.training.epochs == 2
    assert spec.training.validation_noise_mse == records[-1].validation_noise_mse
    expected = judge(curve_of_records(records), run_settings(read_checkpoint(file).run))
    assert [(each.code, each.evidence) for each in spec.training.findings] == [
        (finding.code, finding.evidence) for finding in expected
    ]


# An earlier calibration on a new bundle.


@pytest.fixture(scope="module")
def held_out_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "held-out"
    collect_command(CollectConfig(out=folder, tasks=TASKS, episodes=1, seed=400_000, workers=2))
    return folder


def calibration_facts(data: Path, runs: tuple[str, ...], tasks: tuple[str, ...] = TASKS) -> dict[str, Any]:
    """As calibrate writes it, of checkpoints that were never played."""
    return {
        "format": "chunkcast-calibration",
        "version": 1,
        "checkpoints": [
            {
                "run": run,
                "run_identity": run,
                "epoch": epoch,
                "tasks": {
                    task: {"successes": 5 * epoch, "episodes": 20, "metrics": {"action_mse": 0.1 / epoch}}
                    for task in tasks
                },
            }
            for run in runs
            for epoch in (1, 2, 4)
        ],
        "held_out": None,
        "data_sha256": read_demonstrations(data).sha256,
        "evaluations": 2,
    }


@pytest.fixture
def bundle(small_run: Path, tmp_path: Path) -> Path:
    export_bundle(small_run / LAST_CHECKPOINT, tmp_path / "bundle", name="bundle", steps=2)
    return tmp_path / "bundle"


def test_a_calibration_of_other_runs_fits(small_run: Path, bundle: Path, held_out_data: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "calibration.json", calibration_facts(held_out_data, ("a", "b")))
    expect_command(Expect(small_run, bundle, tmp_path / "calibration.json", held_out_data))
    assert "of 2 other runs" in " ".join(each.evidence for each in read_bundle(bundle).spec.expected_success)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"evaluations": 8}, "8 evaluations|evaluations.* 8", id="another sampler"),
        pytest.param({"data_sha256": None}, "calibrat", id="no data"),
        pytest.param({"checkpoints": []}, "expected at least 2", id="no checkpoint"),
    ],
)
def test_a_calibration_that_does_not_fit_is_refused(
    small_run: Path, bundle: Path, held_out_data: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write_json(tmp_path / "calibration.json", {**calibration_facts(held_out_data, ("a", "b")), **change})
    before = (bundle / "policy.json").read_bytes()
    with pytest.raises(TrainingError, match=message):
        expect_command(Expect(small_run, bundle, tmp_path / "calibration.json", held_out_data))
    assert (bundle / "policy.json").read_bytes() == before


def test_a_calibration_of_the_policys_own_run_alone_is_refused(
    small_run: Path, bundle: Path, held_out_data: Path, tmp_path: Path
) -> None:
    own = run_identity(read_run_facts(small_run / LAST_CHECKPOINT))
    write_json(tmp_path / "calibration.json", calibration_facts(held_out_data, (own,)))
    with pytest.raises(TrainingError, match="expected at least 2"):
        expect_command(Expect(small_run, bundle, tmp_path / "calibration.json", held_out_data))


def test_a_calibration_of_other_tasks_is_refused(
    small_run: Path, bundle: Path, held_out_data: Path, tmp_path: Path
) -> None:
    facts = calibration_facts(held_out_data, ("a", "b"), (*TASKS, "push-v3"))
    write_json(tmp_path / "calibration.json", facts)
    with pytest.raises(TrainingError, match="push-v3"):
        expect_command(Expect(small_run, bundle, tmp_path / "calibration.json", held_out_data))


def test_a_metric_that_the_bundle_lacks_is_refused() -> None:
    """A calibration of another release, whose metrics have other names."""
    points = [
        PlayedCheckpoint(run, epoch, {"x": {"old_metric": 0.1 / epoch}}, {"x": epoch}, {"x": 4})
        for run in "ab"
        for epoch in (1, 2, 4)
    ]
    with pytest.raises(TrainingError, match="old_metric"):
        Calibration(points).expect({"x": {"action_mse": 0.1}})
