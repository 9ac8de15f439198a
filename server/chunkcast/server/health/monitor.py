"""Judges sampled chunks on a thread of its own, beside serving, with a bounded share of a processor.

Each stream has one place in the queue, which its newest chunk takes: a server that is too busy to judge every chunk
judges every robot less often. Handing a chunk over is all that serving pays.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import structlog

from chunkcast.server.health.judgement import Course, Thresholds
from chunkcast.server.health.scorer import Pair, Sample, Scorer
from chunkcast.server.health.statistics import HealthStatistics
from chunkcast.v1 import policy_pb2 as pb

MAX_BATCH = 8
"""Chunks judged at once: larger batches save little and keep a processor from the robots for longer at a time."""

KEPT_CHUNKS = 64
"""Of a stream, where every chunk is to be judged; a robot that is further ahead of its judge loses the oldest."""

log = structlog.get_logger()


class StreamHealth:
    """One stream's health. ``offer`` and ``latest`` are for the event loop, the rest for the monitor's thread."""

    def __init__(self, monitor: HealthMonitor, kept: int) -> None:
        self._monitor = monitor
        self._last: Sample | None = None
        self.waiting: deque[Pair] = deque(maxlen=kept)
        self.queued = False
        self.course = Course()
        self.judged: tuple[str, pb.ChunkHealth] | None = None
        self.closed = False

    def latest(self, episode_id: str) -> pb.ChunkHealth | None:
        """The last judgement of this episode."""
        judged = self.judged
        return judged[1] if judged and judged[0] == episode_id else None

    def close(self) -> None:
        """The stream is over."""
        self.closed = True
        self._monitor.forget(self)

    def offer(self, sample: Sample) -> None:
        """A chunk was answered: judge it when there is time."""
        last, self._last = self._last, sample
        follows = last is not None and last.episode_id == sample.episode_id
        self._monitor.take(self, Pair(sample, last if follows else None))


class HealthMonitor:
    """One policy version's judge.

    Args:
        scorer, thresholds: of the policy.
        statistics: where judgements are counted.
        share: of one processor that judging may take, above 0; at 1 every chunk is judged, however long that takes.
        name: of the policy, for the log.
    """

    def __init__(
        self, scorer: Scorer, thresholds: Thresholds, statistics: HealthStatistics, *, share: float, name: str
    ) -> None:
        self._scorer, self._thresholds, self._statistics, self._share = scorer, thresholds, statistics, share
        self._name = name
        statistics.share = share
        self._queue: deque[StreamHealth] = deque()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name=f"health-{name}", daemon=True)
        self._thread.start()

    def stream(self) -> StreamHealth:
        """The health of a stream that begins."""
        return StreamHealth(self, KEPT_CHUNKS if self._share >= 1.0 else 1)

    def take(self, stream: StreamHealth, pair: Pair) -> None:
        """Queue a stream's chunk, in the place of one that waits still."""
        if len(stream.waiting) == stream.waiting.maxlen:
            self._statistics.skipped += 1
        stream.waiting.append(pair)
        if not stream.queued:
            stream.queued = True
            self._queue.append(stream)
            if not self._wake.is_set():
                self._wake.set()

    def forget(self, stream: StreamHealth) -> None:
        """A stream that is over is not unhealthy any more."""
        self._statistics.stream_judged(stream, unhealthy=False)

    def close(self) -> None:
        """Let the thread end; what waits is not judged any more."""
        self._closing.set()
        self._wake.set()

    def join(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds for a closed monitor's thread: a process should not end within a run."""
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if self._closing.is_set():
                return
            self._wake.clear()
            while batch := self._take():
                began = time.thread_time()
                self._judge_all(batch)
                busy = time.thread_time() - began
                self._statistics.busy_seconds += busy
                if self._closing.wait(busy * (1.0 / self._share - 1.0)):
                    return

    def _take(self) -> list[tuple[StreamHealth, Pair]]:
        batch: list[tuple[StreamHealth, Pair]] = []
        # A stream twice in a batch would be averaged out of order.
        for _ in range(min(len(self._queue), MAX_BATCH)):
            stream = self._queue.popleft()
            # First: what is offered from here on queues the stream again, perhaps for nothing.
            stream.queued = False
            try:
                batch.append((stream, stream.waiting.popleft()))
            except IndexError:
                continue
            if stream.waiting and not stream.queued:
                stream.queued = True
                self._queue.append(stream)
        return batch

    def _judge_all(self, batch: list[tuple[StreamHealth, Pair]]) -> None:
        """Judge a batch; where that fails, each by itself, so that one robot's chunk costs no other its judgement."""
        try:
            self._judge(batch)
        except Exception:
            for each in batch:
                try:
                    self._judge([each])
                except Exception:
                    self._give_up(each[0])

    def _give_up(self, stream: StreamHealth) -> None:
        """A chunk that cannot be judged takes the judgement before it with it: nobody knows how the episode goes."""
        stream.judged = None
        self.forget(stream)
        self._statistics.failures += 1
        if not self._failed:
            self._failed = True
            log.exception("a chunk could not be judged", policy=self._name)

    def _judge(self, batch: list[tuple[StreamHealth, Pair]]) -> None:
        scores = self._scorer.score([pair for _, pair in batch])
        for (stream, pair), score in zip(batch, scores, strict=True):
            current = pair.current
            averages = stream.course.add(current.episode_id, score)
            judged = self._thresholds.judge(current.step, current.instruction, averages)
            stream.judged = current.episode_id, judged
            self._statistics.stream_judged(stream, unhealthy=0.0 < judged.threshold < judged.score)
            if stream.closed:  # perhaps just now: it would be counted for ever
                self.forget(stream)
            self._statistics.count(judged)
