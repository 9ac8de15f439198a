"""What the status page shows, as JSON: read from the statistics at each request, on the page's own thread."""

from __future__ import annotations

import math
import time
from typing import Any

from chunkcast.server.bundle import ALL_TASKS
from chunkcast.server.health.outcomes import Success
from chunkcast.server.statistics import PolicyStatistics, ServerStatistics
from chunkcast.server.status.live import LiveHistory
from chunkcast.v1 import policy_pb2 as pb

MIN_EPISODES = 5
"""Reported episodes of a task below which nothing is said of them: one failure proves little."""

SEVERITIES = ("error", "warning", "info")


def status_facts(statistics: ServerStatistics, live: LiveHistory, started: float) -> Any:
    """Everything on the page.

    Args:
        started: Unix time of the server's start.
    """
    facts = {
        "time": time.time(),
        "uptime_seconds": time.time() - started,
        "active_streams": statistics.active_streams,
        "policies": [
            _policy(spec, statistics.of_policy(name), live, statistics) for name, spec in list(statistics.specs.items())
        ],
    }
    return _finite(facts)


def _finite(value: Any) -> Any:
    """``value`` with null for what is not finite, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return value


def _policy(
    spec: pb.PolicySpec, counted: PolicyStatistics, live: LiveHistory, statistics: ServerStatistics
) -> dict[str, Any]:
    health, training = counted.health, spec.training
    findings = [
        {
            "code": finding.code,
            "severity": _word(pb.FindingSeverity, finding.severity, "FINDING_SEVERITY_"),
            "evidence": finding.evidence,
            "advice": finding.advice,
        }
        for finding in training.findings
    ]
    return {
        "name": spec.name,
        "version": spec.version,
        "description": spec.description,
        "versions": [each._asdict() for each in statistics.versions.get(spec.name, ())],
        "sampler": f"{spec.sampler.name}, {spec.sampler.evaluations} evaluations",
        "parameters": training.parameters,
        "control_rate_hz": spec.action.control_rate_hz,
        "chunks": dict(counted.chunks),
        "dropped": dict(counted.dropped),
        "waiting": counted.waiting(),
        "findings": sorted(findings, key=lambda each: SEVERITIES.index(each["severity"])),
        "training_noise_mse": {"train": training.train_noise_mse, "validation": training.validation_noise_mse},
        "loss_curve": [
            {"epoch": each.epoch, "train": each.train_noise_mse, "validation": each.validation_noise_mse}
            for each in training.loss_curve
        ],
        "live": live.points(spec.name),
        "health": {
            "calibrated": spec.HasField("serving_health"),
            "false_alarm_rate": spec.serving_health.false_alarm_rate,
            "share": health.share,
            "judged": dict(health.verdicts),
            "skipped": health.skipped,
            "failures": health.failures,
            "unhealthy_streams": health.unhealthy_streams,
            "signals": dict(health.latest),
        },
        "success": _success(spec, counted),
        "recent_episodes": [each._asdict() for each in reversed(list(counted.outcomes.recent))],
    }


def _success(spec: pb.PolicySpec, counted: PolicyStatistics) -> list[dict[str, Any]]:
    """Expected beside measured, task by task, all of them together last."""
    measured = counted.outcomes.measured()
    expected: dict[str, dict[str, Any]] = {}
    # The worse source first, so that the better one takes its place.
    for each in sorted(spec.expected_success, key=lambda each: -each.source):
        expected[each.task or ALL_TASKS] = {
            "ratio": each.ratio,
            "low": each.low,
            "high": each.high,
            "source": _word(pb.SuccessSource, each.source, "SUCCESS_SOURCE_"),
        }
    tasks = [instruction.text for instruction in spec.instructions]
    named = [task for task in (*tasks, *measured) if task != ALL_TASKS and (task in expected or task in measured)]
    rows = []
    for task in (*dict.fromkeys(named), ALL_TASKS):
        seen, promised = measured.get(task), expected.get(task)
        rows.append(
            {
                "task": task,
                "expected": promised,
                "measured": seen._asdict() if seen else None,
                # As the alert has it: only intervals that do not touch are told apart, and only task by task, because
                # what is expected of all of them is a mean over tasks, however often robots play each.
                "below_expected": bool(
                    seen and promised and task != ALL_TASKS and _clearly_below(seen, promised["low"])
                ),
            }
        )
    return rows


def _clearly_below(seen: Success, promised_low: float) -> bool:
    return seen.episodes >= MIN_EPISODES and seen.high < promised_low


def _word(enumeration: Any, value: int, prefix: str) -> str:
    return str(enumeration.Name(value)).removeprefix(prefix).lower()
