"""A histogram as a plain object, for whoever publishes it."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field


@dataclass
class Histogram:
    """Counts of values at or below each bound, and above the last (Prometheus' ``le`` buckets, not cumulative)."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        """Begin at zero."""
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def quantile(self, share: float, since: list[int] | None = None) -> float | None:
        """The value below which ``share`` of the counts lie, interpolated within its bucket as Prometheus does.

        Returns:
            ``None`` where nothing was counted.

        Args:
            since: counts at an earlier time, to leave out what was counted before.
        """
        counts = [now - then for now, then in zip(self.counts, since or [0] * len(self.counts), strict=True)]
        wanted, below = share * sum(counts), 0
        if wanted <= 0:
            return None
        for index, count in enumerate(counts[:-1]):
            if count and below + count >= wanted:
                low = self.bounds[index - 1] if index else 0.0
                return low + (self.bounds[index] - low) * (wanted - below) / count
            below += count
        return self.bounds[-1]
