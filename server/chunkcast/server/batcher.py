"""Which observations are computed together, and when: whatever waits when the engine is free.

Each stream has one place in the queue. A newer observation takes its stream's place and the older one is dropped: a
robot that sends faster than it is served neither piles up stale work nor moves ahead of others, and a stream that is
overtaken by its own newer observations keeps its turn. Does not know: gRPC, episodes, metrics.

All methods are for the event loop's thread; only the engine runs elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from chunkcast.server.engine import Engine, EngineResult, GraphInputs
from chunkcast.server.errors import Overloaded

SHORT_RUN_SECONDS = 0.005
"""A run this short may take place on the event loop when a robot is alone: handing it to another thread and back
costs 0.15 ms, and nobody else is kept waiting."""

MIN_RETRY_SECONDS = 0.005
"""The shortest wait that a refused robot is told."""


@dataclass(frozen=True)
class BatcherConfig:
    """How a policy's observations are put together.

    Attributes:
        max_batch: the most observations in one run.
        max_delay: seconds that a free engine may wait for the other streams' observations; 0 starts at once. It never
            waits for more than there are streams.
        max_waiting: observations that may wait; one more is refused.
    """

    max_batch: int = 32
    max_delay: float = 0.0
    max_waiting: int = 256


class Computed(NamedTuple):
    """An observation's answer.

    Attributes:
        actions: float32 ``[H, A]``, as the graph returned them.
        queue: seconds that it waited, for the engine and for the event loop to take up the result.
        inference: seconds of the batch's run.
        batch_size: observations in that run.
    """

    actions: npt.NDArray[np.float32]
    queue: float
    inference: float
    batch_size: int


class Superseded(NamedTuple):
    """A newer observation of the same stream took its place."""


class Expired(NamedTuple):
    """Its deadline passed while it waited."""


class Failed(NamedTuple):
    """The run failed; the same for every observation in it."""

    error: BaseException


Outcome = Computed | Superseded | Expired | Failed
"""What becomes of an observation that was taken into the queue: exactly one of these, unless it is withdrawn."""


class _Waiting(NamedTuple):
    inputs: GraphInputs
    since: float
    deadline: float
    answer: Callable[[Outcome], None]


class Batcher:
    """The queue before one engine, and the thread that runs it.

    Args:
        engine: warm.
        config: sizes and delay.
        fastest_run: seconds of a run at batch size 1, from the warm-up.
        on_batch: called with each batch's size.
    """

    def __init__(
        self,
        engine: Engine,
        config: BatcherConfig,
        *,
        fastest_run: float,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._engine, self._config, self._on_batch = engine, config, on_batch
        self._short = engine.may_run_anywhere and fastest_run <= SHORT_RUN_SECONDS
        self._last_run = fastest_run
        # A dict keeps its order when a key's value is replaced: a newer observation inherits its stream's turn.
        self._waiting: dict[Hashable, _Waiting] = {}
        self._running = False
        self._timer: asyncio.Handle | None = None
        self._closing = False
        self._streams = 0

    @property
    def waiting(self) -> int:
        """Observations in the queue."""
        return len(self._waiting)

    def join(self) -> None:
        """A stream will submit here, until it leaves: how many there are bounds what is worth waiting for."""
        self._streams += 1

    def leave(self) -> None:
        """A stream that joined will submit no more."""
        self._streams -= 1
        if self._waiting:
            self._schedule()  # the others need not wait for it any more

    def submit(
        self,
        stream: Hashable,
        inputs: GraphInputs,
        answer: Callable[[Outcome], None],
        *,
        deadline: float | None = None,
        alone: bool = False,
    ) -> None:
        """Take an observation into the queue, in the place of an older one of the same ``stream``.

        Args:
            stream: whose observation it is.
            inputs: for the graph.
            answer: called once with what became of it, on the event loop; perhaps before this returns.
            deadline: seconds from now after which it is not computed.
            alone: no other robot is there, so that a short run may keep the event loop.

        Raises:
            Overloaded: too many observations are waiting.
        """
        now = time.perf_counter()
        place = _Waiting(inputs, now, float("inf") if deadline is None else now + deadline, answer)
        if alone and self._short and not self._running and not self._waiting and place.deadline >= now:
            self._run_here(place)
            return
        older = self._waiting.get(stream)
        if older is None and len(self._waiting) >= self._config.max_waiting:
            batches_before = 1 + len(self._waiting) // self._config.max_batch
            retry_after = max(MIN_RETRY_SECONDS, batches_before * self._last_run)
            raise Overloaded(f"{len(self._waiting)} observations are waiting already", retry_after)
        self._waiting[stream] = place
        if older is not None:
            older.answer(Superseded())
        self._schedule()

    def withdraw(self, stream: Hashable) -> None:
        """Forget what ``stream`` has in the queue. A run in progress goes on, and its answer is still given."""
        self._waiting.pop(stream, None)

    def close(self) -> None:
        """Compute what waits, then end the engine. Nothing may be submitted afterwards."""
        self._closing = True
        if self._running:
            return  # what ends the run ends the engine
        if self._timer is not None:
            self._timer.cancel()
        self._start()

    def _schedule(self) -> None:
        """Start a batch once the event loop has read what has arrived already, or after the delay."""
        if self._running:
            return
        full = len(self._waiting) >= min(self._config.max_batch, max(1, self._streams))
        if self._timer is not None:
            if not (full and isinstance(self._timer, asyncio.TimerHandle)):
                return
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        if full or self._config.max_delay <= 0.0:
            self._timer = loop.call_soon(self._start)
        else:
            self._timer = loop.call_later(self._config.max_delay, self._start)

    def _start(self) -> None:
        self._timer = None
        batch = self._take()
        if not batch:
            if self._closing:
                self._engine.close()
            return
        self._running = True
        loop = asyncio.get_running_loop()
        future = self._engine.start([place.inputs for place in batch])

        def done(future: Future[EngineResult]) -> None:
            loop.call_soon_threadsafe(self._finish, batch, future)

        future.add_done_callback(done)

    def _take(self) -> list[_Waiting]:
        """The next batch, in the order of arrival; what is too late is dropped."""
        now = time.perf_counter()
        for stream in [stream for stream, place in self._waiting.items() if place.deadline < now]:
            self._waiting.pop(stream).answer(Expired())
        streams = list(islice(self._waiting, self._config.max_batch))
        return [self._waiting.pop(stream) for stream in streams]

    def _finish(self, batch: list[_Waiting], future: Future[EngineResult]) -> None:
        self._running = False
        if self._config.max_delay <= 0.0 or self._closing:
            # The engine first: it computes the next batch while this one is being answered.
            self._start()
        elif self._waiting:
            self._schedule()
        error = future.exception()
        if error is not None:
            for place in batch:
                place.answer(Failed(error))
            return
        self._answer(batch, future.result())

    def _run_here(self, place: _Waiting) -> None:
        try:
            result = self._engine.run([place.inputs])
        except Exception as error:  # whatever failed, the robot is told
            place.answer(Failed(error))
        else:
            self._answer([place], result)

    def _answer(self, batch: list[_Waiting], result: EngineResult) -> None:
        self._last_run = result.seconds
        self._on_batch(len(batch))
        now = time.perf_counter()
        for place, actions in zip(batch, result.actions, strict=True):
            place.answer(Computed(actions, now - place.since - result.seconds, result.seconds, len(batch)))
