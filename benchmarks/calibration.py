"""Runs to calibrate expected success with: from barely trained to good, of different data, losses and sizes.

    make calibration      (more than an hour on 2 cores; what is done already is kept)

Collects the demonstrations, trains the runs, and lets ``chunkcast-health calibrate`` play every kept checkpoint and
write the expectation into the bundle. The runs differ in what usually differs between people's runs, so that leaving
one out asks the honest question: does a map made on other runs hold for mine? Three further runs, on which
nothing is fitted, confirm the map; docs/health.md says what was decided before and after they were played.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from chunkcast.training.demonstrations.sources import read_demonstrations
from chunkcast.training.export.bundle_writer import read_spec
from chunkcast.training.files import write_json
from chunkcast.training.health.calibrate import play_runs
from chunkcast.training.health.calibration import Calibration, HeldOut, apply_maps, common_metrics, fit_maps
from chunkcast.training.health.calibration_file import agreement, calibration_json, read_calibration
from chunkcast.training.health.rollouts import Rollouts
from chunkcast.training.health.tables import print_calibration

RESULTS = Path("docs/results")
EPISODES = 20
"""Of each task and checkpoint."""

DATA = {
    "six": "",
    "few": "--seed 20000 --episodes 10",
    "without-noise": "--seed 40000 --noise 0",
    "thirty": "--seed 60000 --episodes 30",
    "validation": "--seed 400000 --episodes 10",
}
"""Name to what chunkcast-collect is told. Seeds overlap with none of the others, nor with those of any evaluation."""

RUNS = {
    "six": ("six", ""),
    "uniform-weights": ("six", "--seed 1 --epochs 24 --loss-weighting uniform --keep-epochs 1 2 4 8 16 24"),
    "noise-prediction": ("six", "--seed 2 --epochs 32 --prediction-type epsilon --keep-epochs 1 2 4 8 16 32"),
    "few-demonstrations": ("few", "--seed 3 --epochs 150 --patience 0 --keep-epochs 4 8 16 32 64 150"),
    "without-noise": ("without-noise", "--seed 4 --epochs 32 --keep-epochs 1 2 4 8 16 32"),
    "small-and-slow": (
        "six",
        "--seed 5 --epochs 32 --width 96 --blocks 2 --learning-rate 1e-4 --keep-epochs 1 2 4 8 16 32",
    ),
    "nothing-committed": (
        "six",
        "--seed 6 --epochs 24 --max-committed-steps 0 --learning-rate 3e-4 --keep-epochs 1 2 4 8 16 24",
    ),
}
"""Name to its demonstrations and what chunkcast-train is told."""

FRESH_RUNS = {
    "fresh-default": ("six", "--seed 11 --epochs 16 --keep-epochs 1 2 3 6 16"),
    "fresh-noise-prediction": (
        "thirty",
        "--seed 12 --epochs 40 --prediction-type epsilon --patience 0 --keep-epochs 2 4 8 16 40",
    ),
    "fresh-wide-uniform": (
        "thirty",
        "--seed 13 --epochs 24 --width 448 --loss-weighting uniform --learning-rate 5e-4 --keep-epochs 2 4 8 12 24",
    ),
}
"""Played on goals of their own; nothing is fitted on them."""
FRESH_SEED = 700_000


@dataclass(frozen=True)
class CalibrationConfig:
    """Train runs and calibrate a bundle's expected success on them."""

    work: Path = Path()
    """Folder of data/ and runs/; data/six and runs/six are those of make policy."""
    bundle: Path = Path("bundles/metaworld-six")
    """The bundle that gets the expectation; exported from runs/six."""
    train_only: bool = False
    """Leave the rollouts for later."""


def main() -> None:
    """Collect, train, calibrate; each step is left out where its result is there."""
    config = tyro.cli(CalibrationConfig)
    read_spec(config.bundle)  # refused now rather than in an hour
    for name, flags in DATA.items():
        if not (folder := config.work / "data" / name).exists():
            _run("chunkcast.training.collect.cli", "--out", str(folder), *shlex.split(flags))
    for name, (data, flags) in {**RUNS, **FRESH_RUNS}.items():
        folder = config.work / "runs" / name
        resume = ["--resume"] if (folder / "checkpoints" / "last.safetensors").exists() else []
        _run(
            "chunkcast.training.train_cli",
            *("--data", str(config.work / "data" / data), "--out", str(folder), *shlex.split(flags), *resume),
        )
    if not config.train_only:
        runs = [str(config.work / "runs" / name) for name in RUNS]
        _run(
            "chunkcast.training.health.cli",
            *("calibrate", *runs, "--bundle", str(config.bundle), "--episodes", str(EPISODES)),
            *("--data", str(config.work / "data" / "validation"), "--json", str(RESULTS / "calibration.json")),
        )
        confirm(config)


def confirm(config: CalibrationConfig) -> None:
    """Play the fresh runs, and compare with what the calibration, made without them, expects of them."""
    _, known = read_calibration(RESULTS / "calibration.json")
    calibration, spec = Calibration(known), read_spec(config.bundle)
    played = play_runs(
        [config.work / "runs" / name for name in FRESH_RUNS],
        read_demonstrations(config.work / "data" / "validation"),
        Rollouts(EPISODES, FRESH_SEED, os.cpu_count() or 1),
        spec.sampler.evaluations,
        lambda latest, done, total: print(f"{done}/{total} {latest}", flush=True),
    )
    held_out = [HeldOut(each.point, calibration.metric, calibration.expect(each.point.metrics)) for each in played]
    facts = calibration_json(played, held_out) | {
        "policy": spec.name,
        "policy_version": spec.version,
        "metric": calibration.metric,
        "episodes_per_task": EPISODES,
        "first_seed": FRESH_SEED,
        "last_seed": FRESH_SEED + EPISODES - 1,
        "command": "make calibration",
        "expected": [],
    }
    points = [each.point for each in played]
    maps = {metric: fit_maps(known, metric) for metric in common_metrics(known)}
    facts["held_out"]["by_metric"] = {
        metric: agreement(points, [apply_maps(fitted, point.metrics, metric)[""] for point in points])
        for metric, fitted in maps.items()
    }
    print_calibration(facts)
    write_json(RESULTS / "calibration-fresh-runs.json", facts)


def _run(module: str, *arguments: str) -> None:
    print(shlex.join(["python", "-m", module, *arguments]), flush=True)
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    main()
