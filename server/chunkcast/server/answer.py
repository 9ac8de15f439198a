"""From what the batcher says of an observation to what its robot is told."""

from __future__ import annotations

import time
from typing import NamedTuple

from chunkcast.server.batcher import Computed
from chunkcast.server.errors import Overloaded
from chunkcast.server.identifiers import MAX_IDENTIFIER_LENGTH
from chunkcast.server.policies import PolicyVersion
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.tensors import encode_tensor

FAILED = "the server failed to compute a chunk; its log has the reason"


class Prepared(NamedTuple):
    """Seconds that an observation took before it was queued.

    Attributes:
        seconds: all of them.
        decoding: the part in which its pictures were decoded.
    """

    seconds: float
    decoding: float


def action_chunk(
    version: PolicyVersion, observation: pb.Observation, computed: Computed, prepared: Prepared
) -> pb.ActionChunk:
    """The chunk for ``observation``, guarded and counted.

    Args:
        prepared: what decoding and checking the observation took.

    Raises:
        ObservationRejected: with UNSAFE_ACTION; nothing may be sent.
    """
    started = time.perf_counter()
    chunk = pb.ActionChunk(
        episode_id=observation.episode_id,
        step=observation.step,
        actions=encode_tensor(version.guard.check(computed.actions)),
        policy_version=version.spec.version,
        batch_size=computed.batch_size,
    )
    postprocess = time.perf_counter() - started
    timings = chunk.timings
    timings.preprocess, timings.decode = prepared
    timings.queue = computed.queue
    timings.inference = computed.inference
    timings.postprocess = postprocess
    timings.total = prepared.seconds + computed.queue + computed.inference + postprocess
    version.chunks += 1
    version.statistics.chunk_sent(timings)
    return chunk


def observation_error(
    observation: pb.Observation, code: pb.ErrorCode.ValueType, reason: Exception
) -> pb.StreamActionsResponse:
    """The refusal of ``observation``."""
    return pb.StreamActionsResponse(
        error=pb.ObservationError(
            episode_id=observation.episode_id[:MAX_IDENTIFIER_LENGTH],
            step=observation.step,
            code=code,
            message=str(reason),
            retry_after=reason.retry_after if isinstance(reason, Overloaded) else 0.0,
        )
    )
