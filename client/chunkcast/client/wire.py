"""From arrays to the contract's messages and back, and which answer belongs to which observation.

Both faces of the client, blocking and asyncio, are made of this; nothing here sends or waits.
"""

from __future__ import annotations

import io
import re
from collections import deque
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

import grpc
import numpy as np
import numpy.typing as npt

from chunkcast.client.chunk_health import ChunkHealth
from chunkcast.client.errors import (
    ChunkcastError,
    ChunkTimeout,
    NotAllowed,
    ObservationError,
    PolicyNotFound,
    PolicyOverloaded,
    PolicyUnavailable,
    UnsafeAction,
)
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import one_line, signal_name
from chunkcast.v1.tensors import TensorError, decode_tensor, encode_tensor

Observation = Mapping[str, npt.NDArray[Any]]
"""One array for each of the policy's observation entries, by key, in physical units."""

MAX_EPISODE_ID_LENGTH = 128
"""The server's limit."""

MAX_RETRY_SECONDS = 60.0
"""That a server can make a robot wait, whatever it says; it may have come back long before."""

RETRY_TRAILER = "grpc-retry-pushback-ms"
"""gRPC's own name for how long a client should wait before it tries again."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # A robot alone in its process gains nothing from the address-wide pool of connections.
    ("grpc.use_local_subchannel_pool", 1),
    # A robot and its server share a network; a proxy for the web is not between them.
    ("grpc.enable_http_proxy", 0),
    # gRPC's own limit of two minutes would leave a robot without a server that is back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A server whose machine lost power sends nothing, not even an end: without pings a stream to it looks alive.
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 64 * 2**20),
)


class ActionChunk(NamedTuple):
    """Actions for consecutive control ticks.

    Attributes:
        step: the tick of the observation that this answers; row ``i`` belongs to tick ``step + i``.
        actions: float32 ``[horizon, action size]``, physical units, read-only.
        policy_version: which version answered.
        server_seconds: from the observation's arrival at the server to the reply's departure.
        inference_seconds: the part of it that the network took.
        batch_size: observations that were computed together, this one included.
        health: how the server judged the episode last, if it did.
        decode_seconds: the part of the server's time in which it decoded pictures.
        reconnect: the server will end this stream soon: open another while this chunk plays.
    """

    step: int
    actions: npt.NDArray[np.float32]
    policy_version: str
    server_seconds: float
    inference_seconds: float
    batch_size: int = 1
    health: ChunkHealth | None = None
    decode_seconds: float = 0.0
    reconnect: bool = False


class Dropped(NamedTuple):
    """The server computed no chunk for an observation, because it would have been of no use.

    Attributes:
        step: the observation's tick.
        reason: ``newer_observation`` or ``deadline``.
    """

    step: int
    reason: str


Answer = ActionChunk | Dropped | ObservationError | PolicyOverloaded
"""What a server says of one observation."""


class Sent(NamedTuple):
    """An observation that was sent, as a token to know its answer by."""

    episode_id: str
    step: int
    history_only: bool


class AnswerOrder:
    """Which observation an answer belongs to: answers come in order, one to each observation, and to one that was
    history only if it was refused.
    """

    def __init__(self) -> None:
        self._sent: deque[Sent] = deque()

    def sent(self, observation: pb.Observation) -> Sent:
        """Note that ``observation`` goes out."""
        token = Sent(observation.episode_id, observation.step, observation.history_only)
        self._sent.append(token)
        return token

    def answered(self, response: pb.StreamActionsResponse) -> Sent:
        """What ``response`` answers.

        Raises:
            PolicyUnavailable: nothing that was asked next; the stream cannot be relied on.
        """
        kind = response.WhichOneof("response")
        if kind not in ("chunk", "dropped", "error"):
            raise PolicyUnavailable(f"the server sent an answer of an unknown kind ({kind}); open another stream")
        answer = getattr(response, kind)
        asked = (answer.episode_id, answer.step)
        while self._sent:
            token = self._sent.popleft()
            mine = (token.episode_id, token.step) == asked
            if mine and (not token.history_only or kind == "error"):
                return token
            if not token.history_only:
                break
        raise PolicyUnavailable(f"the server sent an answer to step {answer.step}, which was not asked next; reconnect")


def encode_observation(
    observation: Observation,
    *,
    episode_id: str = "",
    step: int = 0,
    instruction: str = "",
    noise_seed: int | None = None,
    history_only: bool = False,
    deadline: float | None = None,
    committed_actions: npt.NDArray[np.float32] | None = None,
    executed_actions: npt.NDArray[np.float32] | None = None,
    image_quality: int | None = None,
) -> pb.Observation:
    """An observation as a message.

    Args:
        image_quality: sends pictures (uint8 ``[height, width, 3]``) as JPEG of this quality, 1 to 100; left out, as
            they are.

    Raises:
        ValueError: the episode's id is too long, or the step or seed not of 64 bits.
        TensorError: an array's dtype is not on the wire.
    """
    if len(episode_id) > MAX_EPISODE_ID_LENGTH:
        raise ValueError(f"episode_id has {len(episode_id)} characters, expected at most {MAX_EPISODE_ID_LENGTH}")
    compressed = {} if image_quality is None else jpeg_images(observation, image_quality)
    return pb.Observation(
        episode_id=episode_id,
        step=step,
        tensors={key: encode_tensor(array) for key, array in observation.items() if key not in compressed},
        images=compressed,
        instruction=instruction,
        history_only=history_only,
        noise_seed=noise_seed,
        deadline=deadline,
        committed_actions=None if committed_actions is None else encode_tensor(committed_actions),
        executed_actions=None if executed_actions is None else encode_tensor(executed_actions),
    )


def require_quality(quality: int | None) -> None:
    """Refuse what no picture can be sent with, before a robot moves.

    Raises:
        ValueError: JPEG has no such quality; the message says what is expected.
        ModuleNotFoundError: Pillow is not installed.
    """
    if quality is None:
        return
    if not isinstance(quality, int) or not 1 <= quality <= 100:
        raise ValueError(f"image_quality is {quality!r}, expected 1 to 100, or None to send pictures as they are")
    if find_spec("PIL") is None:
        raise ModuleNotFoundError("image_quality needs Pillow; install chunkcast[images], or send pictures as they are")


def jpeg_images(observation: Observation, quality: int) -> dict[str, pb.Image]:
    """The observation's pictures (uint8 ``[height, width, 3]``) as JPEG, with full colour resolution.

    Raises:
        ValueError, ModuleNotFoundError: as ``require_quality``.
    """
    require_quality(quality)
    from PIL import Image  # a robot without cameras needs none

    images = {}
    for key, array in observation.items():
        if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
            stream = io.BytesIO()
            Image.fromarray(array).save(stream, "JPEG", quality=quality, subsampling=0)
            images[key] = pb.Image(format=pb.IMAGE_FORMAT_JPEG, data=stream.getvalue())
    return images


def decode_answer(response: pb.StreamActionsResponse) -> Answer:
    """A stream's response as an answer; a chunk that cannot be read as actions is an ``UnsafeAction``."""
    kind = response.WhichOneof("response")
    if kind == "chunk":
        try:
            return decode_chunk(response.chunk)
        except UnsafeAction as unreadable:
            return unreadable
    if kind == "dropped":
        name = pb.DropReason.Name(response.dropped.reason) if response.dropped.reason in pb.DropReason.values() else ""
        return Dropped(response.dropped.step, name.removeprefix("DROP_REASON_").lower())
    error, said = response.error, one_line(response.error.message)
    if error.code in (pb.ERROR_CODE_OVERLOADED, pb.ERROR_CODE_RATE_LIMITED):
        return PolicyOverloaded(said, _wait(error.retry_after))
    unsafe = error.code == pb.ERROR_CODE_UNSAFE_ACTION
    return (UnsafeAction if unsafe else ObservationError)(error.code, said)


def decode_chunk(chunk: pb.ActionChunk) -> ActionChunk:
    """A chunk from its message.

    Raises:
        UnsafeAction: its actions are not finite float32 ``[horizon, action size]``.
    """
    return ActionChunk(
        step=chunk.step,
        actions=_actions(chunk.actions),
        policy_version=chunk.policy_version,
        server_seconds=chunk.timings.total,
        inference_seconds=chunk.timings.inference,
        batch_size=chunk.batch_size,
        health=_health(chunk.health) if chunk.HasField("health") else None,
        decode_seconds=chunk.timings.decode,
        reconnect=chunk.reconnect,
    )


def _health(health: pb.ChunkHealth) -> ChunkHealth:
    scores = {signal_name(each.signal): (each.score, each.threshold) for each in health.scores}
    return ChunkHealth(health.step, signal_name(health.signal), health.score, health.threshold, scores)


def error_of(error: grpc.RpcError) -> ChunkcastError:
    """GRPC's error, blocking or asyncio, as this package's."""
    if isinstance(error, grpc.aio.AioRpcError):
        code, details, trailers = error.code(), error.details(), error.trailing_metadata()
    else:
        assert isinstance(error, grpc.Call)
        code, details, trailers = error.code(), error.details(), error.trailing_metadata()
    details = one_line(details or "no details")
    if code == grpc.StatusCode.NOT_FOUND:
        return PolicyNotFound(details)
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return NotAllowed(details)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return ChunkTimeout(details)
    if code == grpc.StatusCode.ABORTED:
        return UnsafeAction(pb.ERROR_CODE_UNSAFE_ACTION, details)
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return ObservationError(pb.ERROR_CODE_BAD_REQUEST, details)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        # gRPC itself says RESOURCE_EXHAUSTED of a message that is too large: that is no overload.
        pushback = str(dict(trailers or ()).get(RETRY_TRAILER, ""))
        if re.fullmatch("[0-9]{1,9}", pushback):
            return PolicyOverloaded(details, _wait(int(pushback) / 1e3))
    return PolicyUnavailable(f"{code.name.lower() if code else 'unknown'}: {details}")


def _wait(seconds: float) -> float:
    """How long a robot waits that was told ``seconds``: no thread can wait for NaN, or for ages."""
    return min(seconds, MAX_RETRY_SECONDS) if seconds > 0.0 else 0.0


def stream_end(error: grpc.RpcError, *, opened: bool) -> ChunkcastError:
    """Why a stream is over. Of one that was open it is PolicyUnavailable, whatever the status: the others say something
    of an opening, or of one observation after which further ones would be answered.
    """
    reason = error_of(error)
    return reason if isinstance(reason, PolicyUnavailable) or not opened else PolicyUnavailable(str(reason))


def _actions(tensor: pb.Tensor) -> npt.NDArray[np.float32]:
    """Decoded actions, checked once more: what reaches a robot is finite and has two axes.

    Raises:
        UnsafeAction: they are not.
    """
    try:
        actions = decode_tensor(tensor)
    except TensorError as error:
        raise UnsafeAction(pb.ERROR_CODE_UNSAFE_ACTION, f"the server's actions cannot be read: {error}") from None
    if actions.ndim != 2 or actions.dtype != np.float32 or not np.isfinite(actions).all():
        raise UnsafeAction(
            pb.ERROR_CODE_UNSAFE_ACTION,
            f"the server sent {actions.dtype} actions of shape {actions.shape}, expected finite float32 "
            "[horizon, action size]; nothing was executed",
        )
    return actions
