"""A share of episodes with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CONFIDENCE = 0.95


def success_rate(successes: int, episodes: int) -> dict[str, Any]:
    """``successes`` of ``episodes`` (at least one) with Wilson's 95 % interval, for JSON."""
    from scipy.stats import binomtest

    interval = binomtest(successes, episodes).proportion_ci(CONFIDENCE, method="wilson")
    return {
        "success_rate": round(successes / episodes, 4),
        "episodes": episodes,
        "successes": successes,
        "ci95": [round(float(interval.low), 4), round(float(interval.high), 4)],
    }


def pooled(summary: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    """``success_rate`` of some tasks together, of what ``chunkcast-sim --json`` writes."""
    rows = [summary["tasks"][task] for task in tasks]
    return success_rate(sum(row["successes"] for row in rows), sum(row["episodes"] for row in rows))
