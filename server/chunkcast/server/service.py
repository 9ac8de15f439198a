"""The PolicyService over asyncio gRPC: streams, unary calls, and where each error goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import grpc
import structlog

from chunkcast.server.engine import Engine
from chunkcast.server.errors import ObservationRejected
from chunkcast.server.guard import ActionGuard
from chunkcast.server.session import MAX_IDENTIFIER_LENGTH, Session
from chunkcast.server.statistics import PolicyStatistics, ServerStatistics
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc
from chunkcast.v1.tensors import encode_tensor

OTHER_TASK = "other"
"""Reported tasks that the policy does not know are counted together: clients do not choose metric labels."""

FAILED = "the server failed to compute a chunk; its log has the reason"

OPEN_SECONDS = 10.0
"""A client that connects and says nothing holds a place that a robot may need."""

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[object, object]


@dataclass(frozen=True)
class ServedPolicy:
    """A policy with everything that a chunk passes."""

    spec: pb.PolicySpec
    engine: Engine
    guard: ActionGuard
    statistics: PolicyStatistics


class PolicyService(pb_grpc.PolicyServiceServicer):
    """Answers robots. Keeps no state but its streams'.

    Args:
        engines: warm, one for each policy.
        statistics: where it counts.
    """

    def __init__(self, engines: Iterable[Engine], statistics: ServerStatistics) -> None:
        self._statistics = statistics
        self._policies: Mapping[str, ServedPolicy] = {
            engine.spec.name: ServedPolicy(
                engine.spec, engine, ActionGuard(engine.spec.action), statistics.policies[engine.spec.name]
            )
            for engine in engines
        }
        self._draining = False

    def drain(self) -> None:
        """From now on a stream ends with UNAVAILABLE after its next answer: its robot has actions to play meanwhile."""
        self._draining = True

    async def StreamActions(  # noqa: N802 (gRPC's name; documented in the proto)
        self, request_iterator: AsyncIterator[pb.StreamActionsRequest], context: Context
    ) -> AsyncIterator[pb.StreamActionsResponse]:
        opening = await self._opening(request_iterator, context)
        if opening is None:
            return
        policy = await self._find(opening.policy, context)
        session = Session(policy.spec)
        stream_log = log.bind(policy=policy.spec.name, robot=opening.robot_id)
        stream_log.info("stream opened")
        self._statistics.active_streams += 1
        try:
            yield pb.StreamActionsResponse(
                opened=pb.StreamOpened(policy=policy.spec.name, policy_version=policy.spec.version)
            )
            refusals_logged: set[pb.ErrorCode.ValueType] = set()
            async for request in request_iterator:
                observation, chunk = request.observation, None
                try:
                    if request.WhichOneof("request") != "observation":
                        raise ObservationRejected(
                            pb.ERROR_CODE_BAD_REQUEST, "expected an observation; the stream is open already"
                        )
                    # A robot alone may be answered on the event loop.
                    alone = self._statistics.active_streams == 1
                    chunk = await self._answer(policy, session, observation, alone=alone)
                except ObservationRejected as rejected:
                    # A broken sensor is refused at every tick: the log says it once a stream, the metrics how often.
                    if rejected.code not in refusals_logged:
                        refusals_logged.add(rejected.code)
                        stream_log.warning("observation rejected", step=observation.step, reason=str(rejected))
                    yield _error(policy, observation, rejected.code, str(rejected))
                except Exception:
                    # Whatever failed, this robot is told so and the others are served on.
                    stream_log.exception("chunk failed", step=observation.step)
                    yield _error(policy, observation, pb.ERROR_CODE_INTERNAL, FAILED)
                else:
                    if chunk is not None:
                        yield pb.StreamActionsResponse(chunk=chunk)
                if self._draining and not observation.history_only:
                    message = "the server is shutting down; reconnect"
                    await _abort(context, grpc.StatusCode.UNAVAILABLE, message)
        finally:
            self._statistics.active_streams -= 1
            stream_log.info("stream closed")

    async def PredictChunk(  # noqa: N802
        self, request: pb.PredictChunkRequest, context: Context
    ) -> pb.PredictChunkResponse:
        policy = await self._find(request.policy, context)
        most = policy.spec.observation_steps
        if not 1 <= len(request.observations) <= most:
            message = f"{len(request.observations)} observations, expected 1 to {most}"
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, message)
        *history, current = request.observations
        session = Session(policy.spec)
        try:
            if current.history_only:
                raise ObservationRejected(pb.ERROR_CODE_BAD_REQUEST, "the last observation must not be history_only")
            for observation in history:
                session.accept(observation)
            chunk = await self._answer(policy, session, current, alone=False)
        except ObservationRejected as rejected:
            policy.statistics.chunk_refused(rejected.code)
            unsafe = rejected.code == pb.ERROR_CODE_UNSAFE_ACTION
            code = grpc.StatusCode.ABORTED if unsafe else grpc.StatusCode.INVALID_ARGUMENT
            await _abort(context, code, str(rejected))
        except Exception:
            # As in a stream: the caller is told that it failed, and nothing of how.
            log.exception("chunk failed", policy=policy.spec.name)
            policy.statistics.chunk_refused(pb.ERROR_CODE_INTERNAL)
            await _abort(context, grpc.StatusCode.INTERNAL, FAILED)
        return pb.PredictChunkResponse(chunk=chunk)

    async def ListPolicies(  # noqa: N802
        self, request: pb.ListPoliciesRequest, context: Context
    ) -> pb.ListPoliciesResponse:
        return pb.ListPoliciesResponse(policies=[policy.spec for policy in self._policies.values()])

    async def GetPolicy(  # noqa: N802
        self, request: pb.GetPolicyRequest, context: Context
    ) -> pb.GetPolicyResponse:
        return pb.GetPolicyResponse(policy=(await self._find(request.policy, context)).spec)

    async def ReportEpisode(  # noqa: N802
        self, request: pb.ReportEpisodeRequest, context: Context
    ) -> pb.ReportEpisodeResponse:
        policy = await self._find(request.policy, context)
        if request.outcome not in pb.EpisodeOutcome.values()[1:]:
            names = ", ".join(pb.EpisodeOutcome.keys()[1:])
            message = f"outcome {int(request.outcome)} is unknown, expected one of {names}"
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, message)
        known = any(request.task == instruction.text for instruction in policy.spec.instructions)
        outcome = pb.EpisodeOutcome.Name(request.outcome).removeprefix("EPISODE_OUTCOME_").lower()
        policy.statistics.episodes[request.task if known else OTHER_TASK, outcome] += 1
        return pb.ReportEpisodeResponse()

    async def _answer(
        self, policy: ServedPolicy, session: Session, observation: pb.Observation, *, alone: bool
    ) -> pb.ActionChunk | None:
        """The chunk of one observation, or ``None`` if it was only history.

        Raises:
            ObservationRejected: the observation cannot be used, or the policy's answer is unsafe.
        """
        arrived = time.perf_counter()
        session.accept(observation)
        if observation.history_only:
            return None
        inputs = session.graph_inputs(observation)
        prepared = time.perf_counter()
        result = await policy.engine.infer(inputs, alone=alone)
        inferred = time.perf_counter()
        actions = policy.guard.check(result.actions[0])
        chunk = pb.ActionChunk(
            episode_id=observation.episode_id,
            step=observation.step,
            actions=encode_tensor(actions),
            policy_version=policy.spec.version,
        )
        done = time.perf_counter()
        timings = chunk.timings
        timings.preprocess = prepared - arrived
        # Waiting for the engine's thread, and for the event loop to take up its result.
        timings.queue = inferred - prepared - result.inference
        timings.inference = result.inference
        timings.postprocess = done - inferred
        timings.total = done - arrived
        policy.statistics.chunk_sent(timings)
        return chunk

    async def _opening(
        self, request_iterator: AsyncIterator[pb.StreamActionsRequest], context: Context
    ) -> pb.OpenStream | None:
        """A stream's first request, or ``None`` if the client closed it at once. Aborts if it is no opening."""
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                first = await anext(request_iterator, None)
        except TimeoutError:
            message = f"the stream was not opened within {OPEN_SECONDS:g} s"
            await _abort(context, grpc.StatusCode.DEADLINE_EXCEEDED, message)
        if first is None:
            return None
        if first.WhichOneof("request") != "open":
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, "the first request must open the stream")
        if len(first.open.robot_id) > MAX_IDENTIFIER_LENGTH:
            message = f"robot_id is longer than {MAX_IDENTIFIER_LENGTH} characters"
            await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, message)
        return first.open

    async def _find(self, name: str, context: Context) -> ServedPolicy:
        """The policy called ``name``; an empty name means the only one. Aborts with NOT_FOUND."""
        if not name and len(self._policies) == 1:
            return next(iter(self._policies.values()))
        policy = self._policies.get(name)
        if policy is None:
            served = ", ".join(self._policies)
            message = f"policy {name[:MAX_IDENTIFIER_LENGTH]!r} is not served here; expected one of: {served}"
            await _abort(context, grpc.StatusCode.NOT_FOUND, message)
        return policy


def _error(
    policy: ServedPolicy, observation: pb.Observation, code: pb.ErrorCode.ValueType, message: str
) -> pb.StreamActionsResponse:
    policy.statistics.chunk_refused(code)
    return pb.StreamActionsResponse(
        error=pb.ObservationError(
            episode_id=observation.episode_id[:MAX_IDENTIFIER_LENGTH],
            step=observation.step,
            code=code,
            message=message,
        )
    )


async def _abort(context: Context, code: grpc.StatusCode, message: str) -> NoReturn:
    await context.abort(code, message)
    raise AssertionError("abort raises")
