"""A share of episodes with its interval."""

from __future__ import annotations

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
