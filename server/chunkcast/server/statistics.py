"""What the server counts, as plain objects. Who publishes them, and in which format, is not known here.

Health is written by its monitor's thread, all else by the event loop's. A reader on another thread may see a count
without the sum that belongs to it, for one scrape; counts never go back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from chunkcast.server.health.outcomes import Outcomes
from chunkcast.server.health.statistics import HealthStatistics
from chunkcast.server.histogram import Histogram
from chunkcast.v1 import policy_pb2 as pb

LATENCY_BOUNDS: tuple[float, ...] = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
"""Seconds: from a small graph's run on a CPU to a policy too slow for any arm."""

BATCH_BOUNDS: tuple[float, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)

STAGES: tuple[str, ...] = ("queue", "preprocess", "decode", "inference", "postprocess", "total")
"""The stages of a chunk, named as in StageTimings."""


class PolicyStatistics:
    """What is counted of one policy."""

    def __init__(self) -> None:
        self.latency = {stage: Histogram(LATENCY_BOUNDS) for stage in STAGES}
        self.batch_size = Histogram(BATCH_BOUNDS)
        self.chunks: Counter[str] = Counter(ok=0)
        """By outcome: ``ok``, or the error code's name in lower case."""
        self.dropped: Counter[str] = Counter(newer_observation=0, deadline=0)
        """By reason: observations for which no chunk was computed because it was of no use any more."""
        self.waiting: Callable[[], int] = lambda: 0
        """Observations in the queue now."""
        self.episodes: Counter[tuple[str, str]] = Counter()
        """By task and outcome, since the start."""
        self.outcomes = Outcomes()
        """The last ones of the promoted version."""
        self.health = HealthStatistics()

    def chunk_sent(self, timings: pb.StageTimings) -> None:
        """Count a chunk that was sent."""
        self.chunks["ok"] += 1
        for stage, histogram in self.latency.items():
            histogram.observe(getattr(timings, stage))

    def observation_dropped(self, reason: pb.DropReason.ValueType) -> None:
        """Count an observation that was overtaken or too late."""
        self.dropped[pb.DropReason.Name(reason).removeprefix("DROP_REASON_").lower()] += 1

    def chunk_refused(self, code: pb.ErrorCode.ValueType) -> None:
        """Count an observation that got an error instead of a chunk."""
        self.chunks[pb.ErrorCode.Name(code).removeprefix("ERROR_CODE_").lower()] += 1


class LoadedVersion(NamedTuple):
    """A policy's version that is warm.

    Attributes:
        version: its name.
        state: ``promoted``, ``previous`` (a rollback promotes it), or ``loaded``.
    """

    version: str
    state: str


class ServerStatistics:
    """What is counted of the whole server."""

    def __init__(self) -> None:
        self.specs: dict[str, pb.PolicySpec] = {}
        """Of each policy's promoted version."""
        self.versions: dict[str, tuple[LoadedVersion, ...]] = {}
        """Of each policy, those that are loaded."""
        self.policies: dict[str, PolicyStatistics] = {}
        self.active_streams = 0
        self.reloads: Counter[str] = Counter(ok=0, refused=0)
        """Bundles that were loaded after the start, or refused."""
        self.refused_clients: Counter[str] = Counter(token=0, rate=0, streams=0)
        """Calls and observations that were refused for who sent them, by what was wanting or too much."""
        self.certificate_expires: float | None = None
        """Seconds since 1970, where there is a certificate."""

    def of_policy(self, name: str) -> PolicyStatistics:
        """The counts of a policy, over all of its versions."""
        return self.policies.setdefault(name, PolicyStatistics())
