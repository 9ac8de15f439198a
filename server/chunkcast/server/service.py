"""The PolicyService over asyncio gRPC: opening streams, unary calls, and where each error goes."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError

from chunkcast.server.answer import FAILED, Prepared, action_chunk
from chunkcast.server.batcher import Computed, Expired, Failed, Outcome
from chunkcast.server.connections import ConnectionAges
from chunkcast.server.errors import ObservationRejected, Overloaded, RateLimited, UnknownPolicy
from chunkcast.server.health.outcomes import OTHER_TASK
from chunkcast.server.identifiers import MAX_IDENTIFIER_LENGTH, new_id, printable
from chunkcast.server.outbox import StreamEnded
from chunkcast.server.policies import Policies, PolicyVersion
from chunkcast.server.security.authentication import Client, calling_client
from chunkcast.server.security.decoding import MALFORMED
from chunkcast.server.security.limits import ClientLimits
from chunkcast.server.security.tokens import TokenFile
from chunkcast.server.session import Session
from chunkcast.server.statistics import ServerStatistics
from chunkcast.server.stream import RobotStream
from chunkcast.server.tracing import Tracing
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc

OPEN_SECONDS = 10.0
"""A client that connects and says nothing holds a place that a robot may need."""

STREAM_RETRY_SECONDS = 1.0
"""What a robot is told that finds no free stream: one ends when a robot leaves, which nobody can foresee."""

RETRY_TRAILER = "grpc-retry-pushback-ms"
"""gRPC's own name for how long a client should wait before it tries again."""

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]


class PolicyService(pb_grpc.PolicyServiceServicer):
    """Answers robots. Keeps no state but its streams'.

    Args:
        policies: what is served.
        statistics: where it counts.
        max_streams: one more is refused.
        limits: of each client.
        ages: of connections.
        tracing: where spans go.
    """

    def __init__(
        self,
        policies: Policies,
        statistics: ServerStatistics,
        max_streams: int,
        *,
        limits: ClientLimits,
        ages: ConnectionAges,
        tracing: Tracing,
    ) -> None:
        self._policies, self._statistics, self._max_streams = policies, statistics, max_streams
        self._limits, self._ages, self._tracing = limits, ages, tracing
        self._streams: dict[RobotStream, Client] = {}
        self._draining = False

    def drain(self) -> None:
        """From now on a stream ends with UNAVAILABLE after its next answer: its robot has actions to play meanwhile."""
        self._draining = True
        for stream in self._streams:
            stream.drain()

    def end_streams_without(self, tokens: TokenFile) -> None:
        """End the streams whose client's token is gone."""
        for stream, client in self._streams.items():
            if client.bearer and not tokens.holds(client.bearer):
                stream.end(grpc.StatusCode.UNAUTHENTICATED, "the token of this stream is no longer good")

    # Read and written through the context, which the stubs' types do not know: answers do not wait for requests.
    async def StreamActions(  # type: ignore[override]  # noqa: N802 (gRPC's name; documented in the proto)
        self, request_iterator: object, context: Context
    ) -> None:
        client = await self._admit(context)
        if self._statistics.active_streams >= self._max_streams:
            message = f"{self._max_streams} streams are open already (--max-streams)"
            await _abort_overloaded(context, message, STREAM_RETRY_SECONDS)
        if not self._limits.open_stream(client.name):
            self._statistics.refused_clients["streams"] += 1
            message = f"{client.name} has {self._limits.max_streams} streams open already (--max-client-streams)"
            await _abort_overloaded(context, message, STREAM_RETRY_SECONDS)
        self._statistics.active_streams += 1
        try:
            opening = await self._opening(context)
            if opening is not None:
                await self._serve(opening, client, context)
        finally:
            self._limits.close_stream(client.name)
            self._statistics.active_streams -= 1

    async def _serve(self, opening: pb.OpenStream, client: Client, context: Context) -> None:
        version = await self._find(opening.policy, opening.policy_version, context)
        stream_id = new_id()
        stream_log = log.bind(
            stream=stream_id, policy=version.spec.name, robot=opening.robot_id, client=printable(client.name)
        )
        stream_log.info("stream opened", version=version.spec.version)
        pinned = bool(opening.policy_version)
        trace = self._tracing.stream(
            context.invocation_metadata(),
            stream=stream_id,
            policy=version.spec.name,
            robot=opening.robot_id,
            client=printable(client.name),
        )
        stream = RobotStream(
            context,
            self._policies,
            version,
            pinned=pinned,
            statistics=self._statistics,
            stream_log=stream_log,
            stream_id=stream_id,
            trace=trace,
            count_request=lambda: self._count(client),
            renew_at=self._ages.renew_at(context.peer()),
        )
        self._streams[stream] = client
        if self._draining:
            stream.drain()
        pinned_version = version if pinned else None
        if pinned_version:
            self._policies.pin(pinned_version)
        stream.join()
        opened = pb.StreamOpened(policy=version.spec.name, policy_version=version.spec.version, stream_id=stream_id)
        # A stream that follows promotions must not keep the version in memory that was there when it was opened.
        del version
        try:
            await context.write(pb.StreamActionsResponse(opened=opened))
            await stream.run()
        except StreamEnded as ended:
            stream_log.info("stream ended", reason=str(ended))
            await _abort(context, ended.status, str(ended))
        finally:
            stream.leave()
            if pinned_version:
                self._policies.unpin(pinned_version)
            del self._streams[stream]
            trace.close()
            stream_log.info("stream closed")

    async def _admit(self, context: Context) -> Client:
        """Who calls; aborts with RESOURCE_EXHAUSTED if it calls too often."""
        client = calling_client(context)
        try:
            self._count(client)
        except RateLimited as limited:
            await _abort_overloaded(context, str(limited), limited.retry_after)
        return client

    def _count(self, client: Client) -> None:
        """Count a request of ``client``.

        Raises:
            RateLimited: it has made too many.
        """
        if retry_after := self._limits.take(client.name):
            self._statistics.refused_clients["rate"] += 1
            raise RateLimited(printable(client.name), self._limits.max_rate, retry_after)

    async def PredictChunk(  # noqa: N802
        self, request: pb.PredictChunkRequest, context: Context
    ) -> pb.PredictChunkResponse:
        await self._admit(context)
        version = await self._find(request.policy, "", context)
        most = version.spec.observation_steps
        if not 1 <= len(request.observations) <= most:
            message = f"{len(request.observations)} observations, expected 1 to {most}"
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, message)
        try:
            chunk = await self._predict(version, list(request.observations))
        except ObservationRejected as rejected:
            version.statistics.chunk_refused(rejected.code)
            unsafe = rejected.code == pb.ERROR_CODE_UNSAFE_ACTION
            code = grpc.StatusCode.ABORTED if unsafe else grpc.StatusCode.INVALID_ARGUMENT
            await _abort(context, code, str(rejected))
        except Overloaded as overloaded:
            version.statistics.chunk_refused(pb.ERROR_CODE_OVERLOADED)
            await _abort_overloaded(context, str(overloaded), overloaded.retry_after)
        except TimeoutError:
            version.statistics.observation_dropped(pb.DROP_REASON_DEADLINE)
            await _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, "the observation's deadline passed as it waited")
        except Exception:
            # As in a stream: the caller is told that it failed, and nothing of how.
            request_id = new_id()
            log.exception("chunk failed", request=request_id, policy=version.spec.name)
            version.statistics.chunk_refused(pb.ERROR_CODE_INTERNAL)
            await _abort(context, grpc.StatusCode.INTERNAL, f"{FAILED} under request {request_id}")
        return pb.PredictChunkResponse(chunk=chunk)

    async def ListPolicies(  # noqa: N802
        self, request: pb.ListPoliciesRequest, context: Context
    ) -> pb.ListPoliciesResponse:
        await self._admit(context)
        return pb.ListPoliciesResponse(policies=[version.spec for version in self._policies.promoted])

    async def GetPolicy(  # noqa: N802
        self, request: pb.GetPolicyRequest, context: Context
    ) -> pb.GetPolicyResponse:
        await self._admit(context)
        return pb.GetPolicyResponse(policy=(await self._find(request.policy, "", context)).spec)

    async def ReportEpisode(  # noqa: N802
        self, request: pb.ReportEpisodeRequest, context: Context
    ) -> pb.ReportEpisodeResponse:
        await self._admit(context)
        version = await self._find(request.policy, "", context)
        if request.outcome not in pb.EpisodeOutcome.values()[1:]:
            names = ", ".join(pb.EpisodeOutcome.keys()[1:])
            message = f"outcome {int(request.outcome)} is unknown, expected one of {names}"
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, message)
        await _check_robot_id(request.robot_id, context)
        outcome = pb.EpisodeOutcome.Name(request.outcome).removeprefix("EPISODE_OUTCOME_").lower()
        task = version.instructions.named(request.task) or OTHER_TASK
        version.statistics.episodes[task, outcome] += 1
        # What another version did says nothing of the promoted one.
        if request.policy_version in ("", version.spec.version):
            version.statistics.outcomes.report(task, outcome, request.steps, request.robot_id)
        return pb.ReportEpisodeResponse()

    async def _predict(self, version: PolicyVersion, observations: list[pb.Observation]) -> pb.ActionChunk:
        """The chunk of the last observation.

        Raises:
            ObservationRejected: an observation cannot be used, or the policy's answer is unsafe.
            Overloaded: too many are waiting.
            TimeoutError: the deadline passed in the queue.
        """
        arrived = time.perf_counter()
        current = observations[-1]
        if current.history_only:
            raise ObservationRejected(pb.ERROR_CODE_BAD_REQUEST, "the last observation must not be history_only")
        session = Session(version.spec, version.instructions)
        decoding = 0.0
        for observation in observations:
            await session.learn(observation)
            began = time.perf_counter()
            pictures = await self._policies.image_decoder.decode(version.spec, observation)
            decoding += time.perf_counter() - began if pictures else 0.0
            session.accept(observation, pictures)
        inputs = session.graph_inputs(current)
        prepared = time.perf_counter()
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def answer(result: Outcome) -> None:
            if not outcome.done():
                outcome.set_result(result)

        # It counts from the arrival: decoding took some of it.
        deadline = current.deadline - (prepared - arrived) if current.HasField("deadline") else None
        caller = object()
        version.batcher.submit(caller, inputs, answer, deadline=deadline)
        try:
            result = await outcome
        finally:
            version.batcher.withdraw(caller)
        if isinstance(result, Failed):
            raise result.error
        if isinstance(result, Expired):
            raise TimeoutError
        assert isinstance(result, Computed)  # nobody else has this caller's place
        return action_chunk(version, current, result, Prepared(prepared - arrived, decoding))

    async def _opening(self, context: Context) -> pb.OpenStream | None:
        """A stream's first request, or ``None`` if the client closed it at once. Aborts if it is no opening."""
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                first = await context.read()
        except TimeoutError:
            message = f"the stream was not opened within {OPEN_SECONDS:g} s"
            await _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, message)
        except DecodeError:
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, MALFORMED)
        if first is grpc.aio.EOF:
            return None
        if first.WhichOneof("request") != "open":
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "the first request must open the stream")
        opening: pb.OpenStream = first.open
        await _check_robot_id(opening.robot_id, context)
        return opening

    async def _find(self, name: str, version: str, context: Context) -> PolicyVersion:
        """A policy's version; an empty name means the only policy. Aborts with NOT_FOUND."""
        try:
            return self._policies.find(name, version)
        except UnknownPolicy as unknown:
            await _abort(context, grpc.StatusCode.NOT_FOUND, str(unknown))


async def _check_robot_id(robot_id: str, context: Context) -> None:
    """It goes to the log, where control characters could pretend to be other lines, and to the status page."""
    if len(robot_id) > MAX_IDENTIFIER_LENGTH or not (robot_id or "-").isprintable():
        message = f"robot_id must be printable and at most {MAX_IDENTIFIER_LENGTH} characters long"
        await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, message)


async def _abort_overloaded(context: Context, message: str, retry_after: float) -> NoReturn:
    context.set_trailing_metadata(((RETRY_TRAILER, str(math.ceil(retry_after * 1e3))),))
    await _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, message)


async def _abort(context: Context, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort raises")
