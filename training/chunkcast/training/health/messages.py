"""Findings and expectations as they stand in a policy's specification."""

from __future__ import annotations

from typing import Any

from chunkcast.training.health.calibration import Calibration
from chunkcast.training.health.findings import Finding
from chunkcast.training.health.seed_table import success_of
from chunkcast.v1 import policy_pb2 as pb

_SEVERITIES = {
    "info": pb.FINDING_SEVERITY_INFO,
    "warning": pb.FINDING_SEVERITY_WARNING,
    "error": pb.FINDING_SEVERITY_ERROR,
}


def finding_message(finding: Finding) -> pb.HealthFinding:
    """A finding as a message."""
    return pb.HealthFinding(
        code=finding.code,
        severity=_SEVERITIES[finding.severity],
        epoch=finding.epoch,
        evidence=finding.evidence,
        advice=finding.advice,
    )


def seed_table_expectation(train_noise_mse: float, measured_error: str = "") -> pb.ExpectedSuccess:
    """What the seed would have read off a training loss, labelled as what it is.

    Args:
        train_noise_mse: the seed had no validation split; it read this.
        measured_error: one clause on how far off the table was on checkpoints that were played.
    """
    low, high = success_of(train_noise_mse)
    return pb.ExpectedSuccess(
        source=pb.SUCCESS_SOURCE_SEED_TABLE,
        ratio=(low + high) / 2,
        low=low,
        high=high,
        evidence=f"training noise MSE {train_noise_mse:.4g} in the seed's table, which knows nothing of success"
        + (f": {measured_error}" if measured_error else ": at 0.16-0.43 its own arm succeeded 0 times out of 7"),
    )


def measured_messages(summary: dict[str, Any]) -> list[pb.ExpectedSuccess]:
    """What was measured of a bundle, from ``chunkcast-sim --json``."""
    parts = {"": summary, **summary["tasks"]}
    seeds = f"seeds {summary['first_seed']}-{summary['last_seed']}"  # of each task
    return [
        pb.ExpectedSuccess(
            task=task,
            source=pb.SUCCESS_SOURCE_MEASURED,
            ratio=facts["success_rate"],
            low=facts["ci95"][0],
            high=facts["ci95"][1],
            episodes=facts["episodes"],
            evidence=f"{facts['successes']} of {facts['episodes']} episodes through the server, {seeds}",
        )
        for task, facts in parts.items()
    ]


def calibrated_messages(
    calibration: Calibration, metrics: dict[str, dict[str, float]], held_out: dict[str, Any] | None
) -> list[pb.ExpectedSuccess]:
    """What ``calibration`` expects of a checkpoint with ``metrics``."""
    runs = {point.run for point in calibration.checkpoints}
    count = len(calibration.checkpoints)
    evidence = f"isotonic map of {calibration.metric} from {count} checkpoints of {len(runs)} other runs"
    overall, by_task = evidence, evidence
    if held_out is not None:
        rank = float("nan") if held_out["spearman"] is None else held_out["spearman"]
        overall += (
            f"; on held-out runs off by {held_out['mean_absolute_error'] * 100:.1f} points on average, Spearman "
            f"{rank:.2f}, {held_out['interval_coverage']:.0%} of such intervals held what was measured"
        )
        by_task += (
            f"; on held-out runs off by {held_out['mean_absolute_error_by_task'] * 100:.1f} points a task on average"
        )
    return [
        pb.ExpectedSuccess(
            task=task,
            source=pb.SUCCESS_SOURCE_CALIBRATED,
            ratio=estimate.ratio,
            low=estimate.low,
            high=estimate.high,
            evidence=by_task if task else overall,
        )
        for task, estimate in calibration.expect(metrics).items()
    ]


def expectation_json(expectation: pb.ExpectedSuccess) -> dict[str, Any]:
    """For the calibration's file and for tables."""
    return {
        "task": expectation.task,
        "source": pb.SuccessSource.Name(expectation.source).removeprefix("SUCCESS_SOURCE_").lower(),
        "ratio": expectation.ratio,
        "low": expectation.low,
        "high": expectation.high,
        "evidence": expectation.evidence,
    }


def seed_table_message(spec: pb.PolicySpec, held_out: dict[str, Any] | None) -> pb.ExpectedSuccess:
    """The seed's table on a policy, with its error on the checkpoints that were played."""
    error = ""
    if held_out is not None:
        table = held_out["seed_table"]
        error = f"on the played checkpoints off by {table['mean_absolute_error'] * 100:.1f} points on average"
    return seed_table_expectation(spec.training.train_noise_mse, error)
