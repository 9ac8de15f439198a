"""What is counted of a policy's health while it serves, as plain objects."""

from __future__ import annotations

import time
from collections import Counter

from chunkcast.server.histogram import Histogram
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import signal_name

RATIO_BOUNDS: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)
"""Of a score to its threshold: up to 1 is healthy."""

REST_SECONDS = 60.0
"""Without a judgement, after which nobody knows how a robot does."""

LOSS_BOUNDS: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


class HealthStatistics:
    """Of a policy's versions together. Written by the monitors' threads, ``skipped`` by the event loop."""

    def __init__(self) -> None:
        self.verdicts: Counter[str] = Counter(healthy=0, unhealthy=0)
        """Judged chunks; only those with a threshold to judge by."""
        self.ratios: dict[str, Histogram] = {}
        """By signal: its score over its threshold."""
        self.latest: dict[str, float] = {}
        """By signal: the ratio that was counted last."""
        self.denoising_loss = Histogram(LOSS_BOUNDS)
        self.share = 0.0
        """Of one processor, that judging may take; 0: nothing is judged."""
        self._unhealthy: dict[object, float] = {}
        self.failures = 0
        """Chunks that could not be judged."""
        self.skipped = 0
        """Chunks that were replaced by a newer one of their stream before they were judged."""
        self.busy_seconds = 0.0
        """Processor time of judging."""

    def stream_judged(self, stream: object, *, unhealthy: bool) -> None:
        """A stream's latest judgement; one that is over, or cannot be judged, is not unhealthy."""
        if unhealthy:
            self._unhealthy[stream] = time.monotonic()
        else:
            self._unhealthy.pop(stream, None)

    @property
    def unhealthy_streams(self) -> int:
        """Streams whose latest judgement is unhealthy, and not of long ago: a robot that rests is not ill."""
        since = time.monotonic() - REST_SECONDS
        return sum(judged >= since for judged in list(self._unhealthy.values()))

    def count(self, judged: pb.ChunkHealth) -> None:
        """Count a judgement."""
        for each in judged.scores:
            if each.signal == pb.HEALTH_SIGNAL_DENOISING_LOSS:
                self.denoising_loss.observe(each.score)
            if each.threshold:
                word = signal_name(each.signal)
                self.latest[word] = each.score / each.threshold
                self.ratios.setdefault(word, Histogram(RATIO_BOUNDS)).observe(self.latest[word])
        if judged.threshold:
            self.verdicts["unhealthy" if judged.score > judged.threshold else "healthy"] += 1
