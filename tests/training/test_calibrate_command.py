"""``chunkcast-health calibrate`` and ``expect``: real runs, played through the server, end in a bundle that serves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from chunkcast.server.bundle import read_bundle
from chunkcast.training.checkpoint import LAST_CHECKPOINT
from chunkcast.training.collect.cli import CollectConfig, collect_command
from chunkcast.training.demonstrations.table import read_manifest
from chunkcast.training.errors import TrainingError
from chunkcast.training.export.exporter import export_bundle
from chunkcast.training.health.commands import (
    Calibrate,
    Expect,
    Report,
    calibrate_command,
    expect_command,
    report_command,
)
from chunkcast.training.train_cli import train_command
from chunkcast.training.train_config import TrainConfig
from chunkcast.v1 import policy_pb2 as pb
from tests.training.conftest import TASKS

EPISODES = 1


@pytest.fixture(scope="module")
def runs(small_run: Path, small_config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Three runs; one of two also keeps its first epoch."""
    folder = tmp_path_factory.mktemp("runs")
    others = [
        replace(small_config, out=folder / f"seed-{seed}", seed=seed, epochs=2, keep_epochs=keep)
        for seed, keep in ((1, (1,)), (2, ()))
    ]
    for config in others:
        train_command(config)
    # The shared run has its own kept epochs, which nobody wants to play here.
    own = folder / "own"
    (own / "checkpoints").mkdir(parents=True)
    (own / LAST_CHECKPOINT).write_bytes((small_run / LAST_CHECKPOINT).read_bytes())
    (own / "history.jsonl").write_bytes((small_run / "history.jsonl").read_bytes())
    return (own, *(config.out for config in others))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations of other seeds."""
    folder = tmp_path_factory.mktemp("data") / "held-out"
    collect_command(CollectConfig(out=folder, tasks=TASKS, episodes=2, seed=400_000, workers=2))
    return folder


@pytest.fixture(scope="module")
def bundle(runs: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "own"
    export_bundle(runs[0] / LAST_CHECKPOINT, folder, name="own", steps=2)
    return folder


@pytest.fixture(scope="module")
def calibrated(runs: tuple[Path, ...], held_out: Path, bundle: Path) -> Path:
    """The calibration's file."""
    calibrate_command(Calibrate(runs, bundle, held_out, episodes=EPISODES, workers=2))
    return runs[0] / "calibration.json"


def of_source(bundle: Path, source: pb.SuccessSource.ValueType) -> dict[str, pb.ExpectedSuccess]:
    return {each.task: each for each in read_bundle(bundle).spec.expected_success if each.source == source}


def test_every_kept_checkpoint_was_played(calibrated: Path, runs: tuple[Path, ...]) -> None:
    facts = json.loads(calibrated.read_text())
    assert [(each["run"], each["epoch"]) for each in facts["checkpoints"]] == [
        ("own", 4),
        ("seed-1", 1),
        ("seed-1", 2),
        ("seed-2", 2),
    ]
    for each in facts["checkpoints"]:
        assert set(each["tasks"]) == set(TASKS)
        assert all(task["episodes"] == EPISODES for task in each["tasks"].values())
        assert 0.0 <= each["held_out"]["low"] <= each["held_out"]["expected"] <= each["held_out"]["high"] <= 1.0
        assert {"noise_mse", "noise_mse_t1", "action_mse", "critical_action_mse"} <= set(each["metrics"])
    assert facts["metric"] in facts["checkpoints"][0]["metrics"]
    assert {"mean_absolute_error", "spearman", "seed_table"} <= set(facts["held_out"])


def test_the_bundle_says_what_is_expected_and_still_serves(calibrated: Path, bundle: Path) -> None:
    spec = read_bundle(bundle).spec
    measured = of_source(bundle, pb.SUCCESS_SOURCE_MEASURED)
    expected = of_source(bundle, pb.SUCCESS_SOURCE_CALIBRATED)
    assert set(measured) == set(expected) == {"", *TASKS}
    assert measured[""].episodes == len(TASKS) * EPISODES
    assert "seeds 600000-600000" in measured[""].evidence
    assert "of 2 other runs" in expected[""].evidence
    assert "off by" in of_source(bundle, pb.SUCCESS_SOURCE_SEED_TABLE)[""].evidence
    assert spec.version == spec.files[0].sha256[:12]


def test_what_was_played_is_not_played_again(
    calibrated: Path, runs: tuple[Path, ...], held_out: Path, bundle: Path, tmp_path: Path
) -> None:
    kept = {file: file.stat().st_mtime_ns for run in runs for file in (run / "rollouts").iterdir()}
    assert len(kept) == 4
    calibrate_command(Calibrate(runs, bundle, held_out, episodes=EPISODES, workers=2, json=tmp_path / "again.json"))
    assert {file: file.stat().st_mtime_ns for run in runs for file in (run / "rollouts").iterdir()} == kept
    again, before = (json.loads(file.read_text()) for file in (tmp_path / "again.json", calibrated))
    assert again["checkpoints"] == before["checkpoints"]


def test_an_earlier_calibration_serves_a_new_bundle(
    calibrated: Path, runs: tuple[Path, ...], held_out: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    export_bundle(runs[0] / LAST_CHECKPOINT, new, name="new", steps=2)
    assert not of_source(new, pb.SUCCESS_SOURCE_CALIBRATED)
    expect_command(Expect(runs[0], new, calibrated, held_out))
    facts = json.loads(calibrated.read_text())["expected"]
    said = {each["task"]: each["ratio"] for each in facts if each["source"] == "calibrated"}
    assert {task: each.ratio for task, each in of_source(new, pb.SUCCESS_SOURCE_CALIBRATED).items()} == said
    assert not of_source(new, pb.SUCCESS_SOURCE_MEASURED)


def test_the_report_shows_the_calibration(calibrated: Path, runs: tuple[Path, ...], tmp_path: Path) -> None:
    report_command(Report(runs[0], out=tmp_path))
    assert "fitted on other checkpoints that were played" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "report.json").read_text())["expected"]


def test_demonstrations_that_a_run_was_trained_on_are_refused(
    runs: tuple[Path, ...], demonstrations_folder: Path, bundle: Path
) -> None:
    with pytest.raises(TrainingError, match=r"--data have seed 0, and .* was trained on seeds 0 to \d+; take others"):
        calibrate_command(Calibrate(runs, bundle, demonstrations_folder))


def test_episodes_that_a_run_was_trained_on_are_refused(
    runs: tuple[Path, ...], demonstrations_folder: Path, held_out: Path, bundle: Path
) -> None:
    last = read_manifest(demonstrations_folder)["last_seed"]
    with pytest.raises(TrainingError, match=f"the episodes from --seed have seed {last}"):
        calibrate_command(Calibrate(runs, bundle, held_out, seed=last))


def test_a_bundle_of_another_run_is_refused(runs: tuple[Path, ...], held_out: Path, bundle: Path) -> None:
    with pytest.raises(TrainingError, match=r"own was exported from a checkpoint with SHA-256 .* none of"):
        calibrate_command(Calibrate(runs[1:], bundle, held_out))


def test_a_calibration_on_other_demonstrations_is_refused(
    calibrated: Path, runs: tuple[Path, ...], demonstrations_folder: Path, bundle: Path
) -> None:
    with pytest.raises(TrainingError, match="metrics on other demonstrations do not compare"):
        expect_command(Expect(runs[0], bundle, calibrated, demonstrations_folder))


def test_a_folder_that_is_no_run_is_refused(
    runs: tuple[Path, ...], held_out: Path, bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="has no checkpoints; expected a run of chunkcast-train"):
        calibrate_command(Calibrate((*runs, tmp_path), bundle, held_out, episodes=EPISODES, workers=2))


def test_runs_of_the_same_name_are_refused(
    runs: tuple[Path, ...], held_out: Path, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "own").symlink_to(runs[1])
    with pytest.raises(TrainingError, match="two runs are called own"):
        calibrate_command(Calibrate((*runs, tmp_path / "own"), bundle, held_out))
