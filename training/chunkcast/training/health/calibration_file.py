"""What a calibration leaves: every played checkpoint, what the other runs expect of it, and how far off that is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chunkcast.training.errors import TrainingError
from chunkcast.training.health.calibration import (
    Estimate,
    HeldOut,
    PlayedCheckpoint,
    common_metrics,
    leave_one_run_out,
    mean_absolute_error,
)
from chunkcast.training.health.seed_table import success_of

FORMAT = "chunkcast-calibration"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Played:
    """A played checkpoint and what the report and the seed's table need of it."""

    point: PlayedCheckpoint
    run_identity: str
    measured: Estimate
    train_noise_mse: float
    validation_noise_mse: float


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; NaN where one of them does not vary."""
    from scipy.stats import spearmanr

    if len(set(first)) < 2 or len(set(second)) < 2:
        return float("nan")
    return float(spearmanr(first, second).statistic)


def agreement(points: Sequence[PlayedCheckpoint], expected: Sequence[float]) -> dict[str, float]:
    """How near the expected mean success of ``points`` is to the measured: mean absolute error and rank correlation."""
    return {
        "mean_absolute_error": mean_absolute_error(points, expected),
        "spearman": spearman([point.ratio() for point in points], expected),
    }


def seed_table_estimate(noise_mse: float) -> float:
    """The middle of the seed's range; a loss that is not a number is the table's worst."""
    return float(np.mean(success_of(noise_mse)))


def held_out_summary(played: Sequence[Played], held_out: Sequence[HeldOut]) -> dict[str, Any]:
    """How far off what was expected of held-out runs is from what was measured, beside other ways to expect it."""
    points = [each.point for each in played]
    expected = {task: [each.expected[task] for each in held_out] for task in ("", *points[0].tasks)}
    by_task = [
        abs(point.ratio(task) - estimate.ratio)
        for task in points[0].tasks
        for point, estimate in zip(points, expected[task], strict=True)
    ]
    inside = [
        estimate.low <= point.ratio() <= estimate.high for point, estimate in zip(points, expected[""], strict=True)
    ]
    return {
        **agreement(points, [estimate.ratio for estimate in expected[""]]),
        "mean_absolute_error_by_task": float(np.mean(by_task)),
        "interval_coverage": float(np.mean(inside)),
        "by_metric": {
            metric: agreement(points, [each[""] for each in leave_one_run_out(points, metric)])
            for metric in common_metrics(points)
        },
        "seed_table": agreement(points, [seed_table_estimate(each.train_noise_mse) for each in played]),
        "seed_table_on_validation": agreement(
            points, [seed_table_estimate(each.validation_noise_mse) for each in played]
        ),
    }


def calibration_json(played: Sequence[Played], held_out: Sequence[HeldOut] | None) -> dict[str, Any]:
    """Every checkpoint that was played, with what the others' runs expect of it."""
    checkpoints = []
    for index, each in enumerate(played):
        point = each.point
        facts: dict[str, Any] = {
            "run": point.run,
            "run_identity": each.run_identity,
            "epoch": point.epoch,
            "measured": point.ratio(),
            "measured_low": each.measured.low,
            "measured_high": each.measured.high,
            "train_noise_mse": each.train_noise_mse,
            "validation_noise_mse": each.validation_noise_mse,
            "seed_table": seed_table_estimate(each.train_noise_mse),
            "metrics": {
                metric: float(np.mean([metrics[metric] for metrics in point.metrics.values()]))
                for metric in common_metrics([point])
            },
            "tasks": {
                task: {
                    "successes": point.successes[task],
                    "episodes": point.episodes[task],
                    "metrics": point.metrics[task],
                }
                for task in point.tasks
            },
        }
        if held_out is not None:
            estimate = held_out[index].expected[""]
            facts["held_out"] = {
                "metric": held_out[index].metric,
                "expected": estimate.ratio,
                "low": estimate.low,
                "high": estimate.high,
            }
            for task in point.tasks:
                facts["tasks"][task]["expected"] = held_out[index].expected[task].ratio
        checkpoints.append(facts)
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "checkpoints": checkpoints,
        "held_out": held_out_summary(played, held_out) if held_out is not None else None,
    }


def read_calibration(file: Path) -> tuple[dict[str, Any], list[PlayedCheckpoint]]:
    """A calibration as written, and its checkpoints.

    Raises:
        TrainingError: the file is missing or not a calibration of this version.
    """
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError(f"{file} is missing; expected what chunkcast-health calibrate --json wrote") from None
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{file} is not JSON ({str(error)[:80]!r}); calibrate again") from None
    received = (facts.get("format"), facts.get("version")) if isinstance(facts, dict) else None
    if received != (FORMAT, FORMAT_VERSION):
        raise TrainingError(f"{file} is {received}, expected {(FORMAT, FORMAT_VERSION)}; calibrate again")
    try:
        points = [_checkpoint(each) for each in facts["checkpoints"]]
        facts.setdefault("held_out", None)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TrainingError(f"{file} has a checkpoint in another form ({error!r}); calibrate again") from None
    except TrainingError as error:
        raise TrainingError(f"{file}: {error}; calibrate again") from None
    return facts, points


def require_reportable(file: Path, facts: dict[str, Any]) -> None:
    """Everything that a report shows is there and of its type.

    Raises:
        TrainingError: it is not.
    """
    try:
        for each in facts["checkpoints"]:
            numbers = [each["measured"], each["measured_low"], each["measured_high"], each["seed_table"]]
            if (held_out := each.get("held_out")) is not None:
                numbers += [held_out["expected"], held_out["low"], held_out["high"]]
            if not all(isinstance(number, (int, float)) for number in numbers) or not isinstance(each["metrics"], dict):
                raise TypeError(numbers)
        if (summary := facts["held_out"]) is not None:
            numbers = [summary["interval_coverage"], summary["mean_absolute_error"]]
            numbers += [summary["seed_table"]["mean_absolute_error"]]
            if not all(isinstance(number, (int, float)) for number in numbers):
                raise TypeError(numbers)
        for each in facts["expected"]:
            known = each["source"] in ("measured", "calibrated", "seed_table") and isinstance(each["task"], str)
            if not known or not 0.0 <= each["low"] <= each["ratio"] <= each["high"] <= 1.0:
                raise ValueError(each)
        str(facts["policy"] + facts["policy_version"])
        int(facts["episodes_per_task"] + facts["first_seed"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TrainingError(f"{file} lacks what a report shows ({str(error)[:80]!r}); calibrate again") from None


def _checkpoint(facts: dict[str, Any]) -> PlayedCheckpoint:
    tasks = facts["tasks"].items()
    # What is not finite stands as null in the file.
    return PlayedCheckpoint(
        run=facts["run"],
        epoch=facts["epoch"],
        metrics={
            task: {name: float("nan") if value is None else float(value) for name, value in each["metrics"].items()}
            for task, each in tasks
        },
        successes={task: each["successes"] for task, each in tasks},
        episodes={task: each["episodes"] for task, each in tasks},
    )
