"""One robot's stream: reads observations, hands them to the batcher, and has each answered exactly once.

Reading goes on while a chunk is computed, so that a newer observation is known before the older one's turn.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import grpc
import structlog
from google.protobuf.message import DecodeError

from chunkcast.server.answer import FAILED, Prepared, action_chunk, observation_error
from chunkcast.server.batcher import Computed, Expired, Failed, Outcome
from chunkcast.server.connections import GRACE_SECONDS, HEED_SECONDS
from chunkcast.server.errors import ObservationRejected, Overloaded, RateLimited
from chunkcast.server.health.monitor import HealthMonitor, StreamHealth
from chunkcast.server.health.scorer import Sample
from chunkcast.server.identifiers import MAX_IDENTIFIER_LENGTH, printable
from chunkcast.server.images import Pictures
from chunkcast.server.outbox import Context, Outbox, Place, StreamEnded
from chunkcast.server.policies import Policies, PolicyVersion
from chunkcast.server.security.decoding import MALFORMED
from chunkcast.server.session import Session
from chunkcast.server.statistics import ServerStatistics
from chunkcast.server.tracing import StreamTrace
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import signal_name

NEWER_SECONDS = 0.001
"""Until what a robot has sent already can be read: only of one that sends faster than it is served."""


class _Looked(NamedTuple):
    """What came of an observation's pictures: all of them, or why not; and the seconds that it took."""

    pictures: Pictures
    refused: ObservationRejected | None
    seconds: float


NOTHING_TO_SEE = _Looked({}, None, 0.0)

SHUTTING_DOWN = "the server is shutting down; reconnect"
TOO_OLD = "this connection is as old as it may become (--max-connection-age); reconnect"


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
        count_request: counts a request; raises RateLimited if it is one too many.
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
        count_request: Callable[[], None],
        renew_at: float,
    ) -> None:
        self._context, self._policies, self._version, self._pinned = context, policies, version, pinned
        self._statistics, self._log, self._id = statistics, stream_log, stream_id
        self._count_request, self._renew_at = count_request, renew_at
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outbox = Outbox(context, trace)
        self._session = Session(version.spec, version.instructions)
        self._monitor: HealthMonitor | None = None
        self._health: StreamHealth | None = None
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
            StreamEnded: the server drains, the connection is too old, the client's token is gone, what it sent is no
                message, or it takes no answers.
        """
        reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._outbox.run())
        left = self._renew_at + GRACE_SECONDS - time.monotonic()
        try:
            async with asyncio.timeout(left if left < math.inf else None):
                await _first_of(self._ended, reader, writer)
                self._outbox.complete()
                await _first_of(self._ended, writer)
        except TimeoutError:
            raise StreamEnded(TOO_OLD) from None
        finally:
            self._ended.cancel()
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    def drain(self) -> None:
        """End after the next answer: the robot has actions to play meanwhile."""
        self._outbox.last_words = SHUTTING_DOWN

    def end(self, status: grpc.StatusCode, message: str) -> None:
        """End now, whatever is being sent."""
        if not self._ended.done():
            self._ended.set_exception(StreamEnded(message, status))

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
                    self._refuse(Place(), request.observation, limited)
                    await self._outbox.flush()
                    await self._outbox.wait_for_room()
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
                await self._outbox.flush()
                behind = reading.done()
                await self._outbox.wait_for_room()
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
        observation, place = request.observation, Place()
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
            self._outbox.reserve(place)
            version, health, prepared = self._version, self._health, time.perf_counter()
            instruction, executed = self._session.instruction, self._session.executed

            def answer(outcome: Outcome) -> None:
                response = self._response(version, observation, outcome, Prepared(prepared - arrived, looked.seconds))
                if health and isinstance(outcome, Computed) and response.WhichOneof("response") == "chunk":
                    judged = health.latest(observation.episode_id)
                    if judged:
                        response.chunk.health.CopyFrom(judged)
                        self._log_unhealthy(judged)
                    episode, step = observation.episode_id, observation.step
                    health.offer(Sample(episode, step, instruction, inputs, outcome.actions, executed))
                self._outbox.answer(place, response)

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

    def _refuse(self, place: Place, observation: pb.Observation, refused: ObservationRejected | Overloaded) -> None:
        code = refused.code
        # A broken sensor is refused at every tick: the log says it once a stream, the metrics how often.
        if code not in self._refusals_logged and code != pb.ERROR_CODE_INTERNAL:
            self._refusals_logged.add(code)
            self._log.warning("observation refused", **_named(observation), reason=str(refused))
        self._version.statistics.chunk_refused(code)
        self._outbox.answer(place, observation_error(observation, code, refused))

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
        if late >= HEED_SECONDS and not self._outbox.last_words:
            self._outbox.last_words = TOO_OLD
        if late >= 0.0 or self._outbox.last_words:
            chunk.reconnect = True

    def _drop_unseen(self, observation: pb.Observation) -> None:
        """Answer an observation that a newer one overtook before its pictures were decoded."""
        if observation.history_only:
            return
        reason = pb.DROP_REASON_NEWER_OBSERVATION
        self._version.statistics.observation_dropped(reason)
        self._outbox.answer(Place(), _dropped(observation, reason))


async def _first_of(*futures: asyncio.Future[None]) -> None:
    """Until one of them is done; raises what the first of those that are raised."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    for future in futures:
        if future.done():
            future.result()


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
