"""One robot's stream: reads observations, hands them to the batcher, and answers each exactly once, in their order.

Reading goes on while a chunk is computed, so that a newer observation is known before the older one's turn.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
import structlog
from google.protobuf.message import DecodeError

from chunkcast.server.answer import FAILED, Prepared, action_chunk, observation_error
from chunkcast.server.batcher import Computed, Expired, Failed, Outcome
from chunkcast.server.connections import HEED_SECONDS
from chunkcast.server.errors import ObservationRejected, Overloaded, RateLimited
from chunkcast.server.health.monitor import HealthMonitor, StreamHealth
from chunkcast.server.health.scorer import Sample
from chunkcast.server.identifiers import MAX_IDENTIFIER_LENGTH, printable
from chunkcast.server.images import Pictures
from chunkcast.server.policies import Policies, PolicyVersion
from chunkcast.server.security.decoding import MALFORMED
from chunkcast.server.session import Session
from chunkcast.server.statistics import ServerStatistics
from chunkcast.server.tracing import StreamTrace
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import signal_name

MAX_UNSENT = 64
"""Answers that a robot has not taken yet; beyond these its observations are left in the network until it does."""

TAKE_SECONDS = 30.0
"""A robot that takes no answer for so long, though its connection lives, is not reading; its place may be needed."""

NEWER_SECONDS = 0.001
"""Until what a robot has sent already can be read: only of one that sends faster than it is served."""


class _Looked(NamedTuple):
    """What came of an observation's pictures: all of them, or why not; and the seconds that it took."""

    pictures: Pictures
    refused: ObservationRejected | None
    seconds: float


NOTHING_TO_SEE = _Looked({}, None, 0.0)

Context = grpc.aio.ServicerContext[Any, pb.StreamActionsResponse]


class StreamEnded(Exception):
    """The server ends this stream; the message is for the robot.

    Attributes:
        status: of the call.
    """

    def __init__(self, message: str, status: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        super().__init__(message)
        self.status = status


@dataclass(eq=False, slots=True)
class _Place:
    """An answer's place in the order."""

    response: pb.StreamActionsResponse | None = None


class RobotStream:
    """What a stream does between its opening and its end.

    Args:
        context: of the call.
        policies: where the promoted version is found anew at each observation.
        version: the first to answer.
        pinned: whether it is also the last.
        statistics: the server's.
        stream_log: bound to this stream.
        stream_id: its name there.
        trace: its spans.
        take: counts a request; raises RateLimited if it is one too many.
        renew_at: monotonic seconds from which on the robot is told to open another stream.
    """

    def __init__(
        self,
        context: Context,
        policies: Policies,
        version: PolicyVersion,
        *,
        pinned: bool,
        statistics: ServerStatistics,
        stream_log: structlog.stdlib.BoundLogger,
        stream_id: str,
        trace: StreamTrace,
        take: Callable[[], None],
        renew_at: float,
    ) -> None:
        self._context, self._policies, self._version, self._pinned = context, policies, version, pinned
        self._statistics, self._log, self._id = statistics, stream_log, stream_id
        self._trace, self._count_request, self._renew_at = trace, take, renew_at
        self._ended: StreamEnded | None = None
        self._session = Session(version.spec, version.instructions)
        self._monitor: HealthMonitor | None = None
        self._health: StreamHealth | None = None
        self._places: deque[_Place] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._writing = self._reading_done = self._draining = False
        self._unhealthy_logged = False
        self._refusals_logged: set[pb.ErrorCode.ValueType] = set()

    def join(self) -> None:
        """Count among those that the batcher may wait for, until ``leave``."""
        self._version.batcher.join()

    def leave(self) -> None:
        """The stream is over."""
        self._version.batcher.withdraw(self)
        self._version.batcher.leave()
        if self._health:
            self._health.close()

    async def run(self) -> None:
        """Serve until the robot closes the stream.

        Raises:
            StreamEnded: the server drains; the robot should connect again.
        """
        reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write())
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
                self._reading_done = True
                self._changed.set()
                await writer
            else:
                writer.result()
        finally:
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    def drain(self) -> None:
        """End after the next answer: the robot has actions to play meanwhile."""
        self._draining = True

    def end(self, status: grpc.StatusCode, message: str) -> None:
        """End now."""
        self._ended = StreamEnded(message, status)
        self._changed.set()

    async def _read(self) -> None:
        reading = asyncio.ensure_future(self._context.read())
        try:
            behind = False
            while (request := await _message(reading)) is not grpc.aio.EOF:
                # The next one is read meanwhile: whether it is there when this one is answered tells of a robot that
                # sends faster than it is served, whose stale observations must not be computed one after the other.
                reading = asyncio.ensure_future(self._context.read())
                await asyncio.sleep(0)
                arrived = time.perf_counter()
                try:
                    self._count_request()
                except RateLimited as limited:
                    # It is told, and what else it sends waits in the network: nobody else is kept from being read.
                    self._refuse(_Place(), request.observation, limited)
                    await self._flush()
                    await asyncio.sleep(limited.retry_after)
                    continue
                # Before anything of the session changes: the encoder runs elsewhere, and other robots are served.
                self._follow_promotions()
                if behind and self._session.sees and await self._overtaken(request, reading):
                    self._drop_unseen(request.observation)
                else:
                    await self._session.learn(request.observation)
                    looked = await self._look(request.observation) if self._session.sees else NOTHING_TO_SEE
                    self._take(request, arrived, looked, alone=not behind and self._statistics.active_streams == 1)
                # A chunk that was computed at once leaves without another turn of the event loop.
                await self._flush()
                behind = reading.done()
                while len(self._places) >= MAX_UNSENT:
                    self._room.clear()
                    await self._room.wait()
        finally:
            reading.cancel()

    async def _overtaken(self, request: pb.StreamActionsRequest, reading: asyncio.Future[Any]) -> bool:
        """Whether the robot has sent a newer observation already, which can stand in this one's place: a robot that
        sends faster than its pictures are decoded would otherwise be answered ever later.
        """
        if request.WhichOneof("request") != "observation" or not self._session.can_miss(request.observation):
            return False
        await asyncio.wait((reading,), timeout=NEWER_SECONDS)
        return reading.done() and not reading.exception() and reading.result() is not grpc.aio.EOF

    async def _look(self, observation: pb.Observation) -> _Looked:
        """Have the observation's pictures decoded."""
        started = time.perf_counter()
        try:
            pictures = await self._policies.image_decoder.decode(self._version.spec, observation)
        except ObservationRejected as rejected:
            return _Looked({}, rejected, 0.0)
        except Exception:
            self._log.exception("decoding failed", **_named(observation))
            return _Looked({}, ObservationRejected(pb.ERROR_CODE_INTERNAL, self._failed), 0.0)
        return _Looked(pictures, None, time.perf_counter() - started if pictures else 0.0)

    def _take(self, request: pb.StreamActionsRequest, arrived: float, looked: _Looked, *, alone: bool) -> None:
        """Check an observation and queue it; a refusal is its answer."""
        observation, place = request.observation, _Place()
        try:
            if request.WhichOneof("request") != "observation":
                raise ObservationRejected(
                    pb.ERROR_CODE_BAD_REQUEST, "expected an observation; the stream is open already"
                )
            self._follow_promotions()
            self._follow_monitor()
            if looked.refused:
                raise looked.refused
            self._session.accept(observation, looked.pictures)
            if observation.history_only:
                return
            inputs = self._session.graph_inputs(observation)
            self._places.append(place)
            version, health, prepared = self._version, self._health, time.perf_counter()
            instruction, executed = self._session.instruction, self._session.executed

            def answer(outcome: Outcome) -> None:
                place.response = self._response(
                    version, observation, outcome, Prepared(prepared - arrived, looked.seconds)
                )
                if health and isinstance(outcome, Computed) and place.response.WhichOneof("response") == "chunk":
                    judged = health.latest(observation.episode_id)
                    if judged:
                        place.response.chunk.health.CopyFrom(judged)
                        self._log_unhealthy(judged)
                    episode, step = observation.episode_id, observation.step
                    health.offer(Sample(episode, step, instruction, inputs, outcome.actions, executed))
                self._changed.set()

            version.batcher.submit(
                self,
                inputs,
                answer,
                # It counts from the arrival: decoding took some of it.
                deadline=observation.deadline - (prepared - arrived) if observation.HasField("deadline") else None,
                alone=alone,
            )
        except (ObservationRejected, Overloaded) as refused:
            self._refuse(place, observation, refused)
        except Exception:
            # Whatever failed, this robot is told so and the others are served on.
            self._log.exception("observation failed", **_named(observation))
            self._refuse(place, observation, ObservationRejected(pb.ERROR_CODE_INTERNAL, self._failed))

    def _follow_promotions(self) -> None:
        if self._pinned:
            self._session.adopt_instructions(self._version.instructions)
            return
        current = self._policies.find(self._version.spec.name)
        if current is self._version:
            # A bundle that was loaded again under its version may know other words.
            self._session.adopt_instructions(current.instructions)
        else:
            # What waits for the old version is answered by it; the order of answers holds in any case.
            self._version.batcher.leave()
            current.batcher.join()
            self._version = current
            self._session.adopt(current.spec, current.instructions)

    def _follow_monitor(self) -> None:
        """Another version, or a bundle that was loaded again with other thresholds, has a monitor of its own."""
        if self._monitor is not self._version.monitor:
            self._monitor = self._version.monitor
            if self._health:
                self._health.close()
            self._health = self._monitor.stream() if self._monitor else None

    def _log_unhealthy(self, judged: pb.ChunkHealth) -> None:
        """Once a stream, as refusals: the metrics say how often."""
        if self._unhealthy_logged or not 0.0 < judged.threshold < judged.score:
            return
        self._unhealthy_logged = True
        ratio = round(judged.score / judged.threshold, 2)
        self._log.warning(
            "out of the policy's element", step=judged.step, signal=signal_name(judged.signal), over_threshold=ratio
        )

    def _refuse(self, place: _Place, observation: pb.Observation, refused: ObservationRejected | Overloaded) -> None:
        code = refused.code
        # A broken sensor is refused at every tick: the log says it once a stream, the metrics how often.
        if code not in self._refusals_logged and code != pb.ERROR_CODE_INTERNAL:
            self._refusals_logged.add(code)
            self._log.warning("observation refused", **_named(observation), reason=str(refused))
        self._version.statistics.chunk_refused(code)
        place.response = observation_error(observation, code, refused)
        if place not in self._places:
            self._places.append(place)
        self._changed.set()

    def _response(
        self, version: PolicyVersion, observation: pb.Observation, outcome: Outcome, prepared: Prepared
    ) -> pb.StreamActionsResponse:
        """What the robot is told of an observation that was in the queue."""
        if isinstance(outcome, Computed):
            try:
                chunk = action_chunk(version, observation, outcome, prepared)
            except ObservationRejected as unsafe:
                if unsafe.code not in self._refusals_logged:
                    self._refusals_logged.add(unsafe.code)
                    self._log.warning("chunk withheld", **_named(observation), reason=str(unsafe))
                version.statistics.chunk_refused(unsafe.code)
                return observation_error(observation, unsafe.code, unsafe)
            except Exception as error:  # the others of the batch must have their answers
                outcome = Failed(error)
            else:
                self._say_when_to_go(chunk)
                return pb.StreamActionsResponse(chunk=chunk)
        if isinstance(outcome, Failed):
            if pb.ERROR_CODE_INTERNAL not in self._refusals_logged:
                self._refusals_logged.add(pb.ERROR_CODE_INTERNAL)
                self._log.error("chunk failed", **_named(observation), exc_info=outcome.error)
            version.statistics.chunk_refused(pb.ERROR_CODE_INTERNAL)
            return observation_error(observation, pb.ERROR_CODE_INTERNAL, Exception(self._failed))
        reason = pb.DROP_REASON_DEADLINE if isinstance(outcome, Expired) else pb.DROP_REASON_NEWER_OBSERVATION
        version.statistics.observation_dropped(reason)
        return _dropped(observation, reason)

    @property
    def _failed(self) -> str:
        """What a robot is told of a failure: where its reason is to be found, and nothing else."""
        return f"{FAILED} under stream {self._id}"

    def _say_when_to_go(self, chunk: pb.ActionChunk) -> None:
        """Hint in a chunk at the stream's end, if it is near; a robot that does not heed it is sent away later."""
        late = time.monotonic() - self._renew_at
        if late >= 0.0 or self._draining:
            chunk.reconnect = True
        if late >= HEED_SECONDS:
            self._draining = True

    def _drop_unseen(self, observation: pb.Observation) -> None:
        """Answer an observation that a newer one overtook before its pictures were decoded."""
        if observation.history_only:
            return
        reason = pb.DROP_REASON_NEWER_OBSERVATION
        self._version.statistics.observation_dropped(reason)
        self._places.append(_Place(_dropped(observation, reason)))
        self._changed.set()

    async def _write(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._ended:
                raise self._ended
            await self._flush()
            if self._reading_done and not self._places:
                return

    async def _flush(self) -> None:
        """Send what can be sent: the answers up to the first that is still being computed."""
        if self._writing:
            return
        self._writing = True
        try:
            while self._places and (response := self._places[0].response) is not None:
                self._places.popleft()
                self._trace.answered(response)
                await self._give(response)
                self._room.set()
                if self._draining:
                    raise StreamEnded("the server is shutting down; reconnect")
        finally:
            self._writing = False

    async def _give(self, response: pb.StreamActionsResponse) -> None:
        """Send an answer, as soon as there is room for it on the way."""
        try:
            async with asyncio.timeout(TAKE_SECONDS):
                await self._context.write(response)
        except TimeoutError:
            message = f"no answer was taken for {TAKE_SECONDS:g} s"
            raise StreamEnded(message, grpc.StatusCode.DEADLINE_EXCEEDED) from None


async def _message(reading: asyncio.Future[Any]) -> Any:
    """The request that was read.

    Raises:
        StreamEnded: it is none. What follows it may be good, but its robot speaks another contract.
    """
    try:
        return await reading
    except DecodeError:
        raise StreamEnded(MALFORMED, grpc.StatusCode.INVALID_ARGUMENT) from None


def _named(observation: pb.Observation) -> dict[str, Any]:
    """What names an observation in the log."""
    return {"episode": printable(observation.episode_id), "step": observation.step}


def _dropped(observation: pb.Observation, reason: pb.DropReason.ValueType) -> pb.StreamActionsResponse:
    episode = observation.episode_id[:MAX_IDENTIFIER_LENGTH]
    return pb.StreamActionsResponse(
        dropped=pb.ObservationDropped(episode_id=episode, step=observation.step, reason=reason)
    )
