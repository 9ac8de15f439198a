"""The last minutes of a server in short intervals: what the status page draws."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from chunkcast.server.statistics import PolicyStatistics, ServerStatistics

INTERVAL_SECONDS = 2.0
KEPT = 150
"""Intervals: five minutes."""


@dataclass
class _Counts:
    """A policy's counts at one moment."""

    latency: list[int]
    chunks: int
    refused: int
    signals: dict[str, tuple[int, float]]

    @classmethod
    def of(cls, statistics: PolicyStatistics) -> _Counts:
        ok = statistics.chunks["ok"]
        return cls(
            list(statistics.latency["total"].counts),
            ok,
            sum(statistics.chunks.values()) - ok,
            {name: (sum(each.counts), each.total) for name, each in list(statistics.health.ratios.items())},
        )


@dataclass
class _Policy:
    before: _Counts
    points: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT))


class LiveHistory:
    """Samples the statistics at a steady pace. For the event loop; ``points`` may be read on any thread.

    Args:
        statistics: the server's.
    """

    def __init__(self, statistics: ServerStatistics) -> None:
        self._statistics = statistics
        self._policies: dict[str, _Policy] = {}
        self._last = time.monotonic()

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            self.sample(time.monotonic())

    def sample(self, now: float) -> None:
        """End an interval at ``now`` (monotonic seconds)."""
        seconds, self._last = max(now - self._last, 1e-3), now
        for name, statistics in self._statistics.policies.items():
            counts = _Counts.of(statistics)
            policy = self._policies.setdefault(name, _Policy(counts))
            before, policy.before = policy.before, counts
            latency = statistics.latency["total"]
            quantiles = {f"p{share}": latency.quantile(share / 100, before.latency) for share in (50, 99)}
            policy.points.append(
                {
                    "time": time.time(),
                    "chunks_per_second": (counts.chunks - before.chunks) / seconds,
                    "refused_per_second": (counts.refused - before.refused) / seconds,
                    "latency_ms": {key: None if value is None else value * 1e3 for key, value in quantiles.items()},
                    "signals": _means(before.signals, counts.signals),
                }
            )

    def points(self, policy: str) -> list[dict[str, Any]]:
        """The intervals of a policy, the oldest first."""
        found = self._policies.get(policy)
        return list(found.points) if found else []


def _means(before: dict[str, tuple[int, float]], now: dict[str, tuple[int, float]]) -> dict[str, float]:
    """By signal: the mean score over threshold of what was judged in between."""
    means = {}
    for name, (count, total) in now.items():
        count_before, total_before = before.get(name, (0, 0.0))
        if count > count_before:
            means[name] = (total - total_before) / (count - count_before)
    return means
