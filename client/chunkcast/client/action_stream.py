"""One robot's stream: an observation goes out, its action chunk comes back."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

import grpc
import numpy as np
import numpy.typing as npt

from chunkcast.client.errors import (
    ChunkcastError,
    ChunkTimeout,
    ObservationError,
    PolicyNotFound,
    PolicyUnavailable,
    UnsafeAction,
)
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc
from chunkcast.v1.tensors import TensorError, decode_tensor, encode_tensor

Observation = Mapping[str, npt.NDArray[Any]]
"""One array for each of the policy's observation entries, by key, in physical units."""


class ActionChunk(NamedTuple):
    """Actions for consecutive control ticks.

    Attributes:
        step: the tick of the observation that this answers; row ``i`` belongs to tick ``step + i``.
        actions: float32 ``[horizon, action size]``, physical units, read-only.
        policy_version: which version answered.
        server_seconds: from the observation's arrival at the server to the reply's departure.
        inference_seconds: the part of it that the network took.
    """

    step: int
    actions: npt.NDArray[np.float32]
    policy_version: str
    server_seconds: float
    inference_seconds: float


MAX_EPISODE_ID_LENGTH = 128
"""The server's limit."""


class _Sent(NamedTuple):
    """An observation that was sent."""

    step: int
    history_only: bool


class ActionStream:
    """A stream to one policy; open it with ``PolicyClient.stream``. Not for use by several threads at once.

    Args:
        stub: the service.
        policy: the policy's name; empty for a server's only one.
        robot_id: who is calling, for the server's log.
        timeout: seconds to wait for an answer.

    Raises:
        PolicyNotFound, PolicyUnavailable, ChunkTimeout: the stream could not be opened.
    """

    def __init__(self, stub: pb_grpc.PolicyServiceStub, policy: str, robot_id: str, timeout: float) -> None:
        self._timeout = timeout
        self._requests: queue.SimpleQueue[pb.StreamActionsRequest | None] = queue.SimpleQueue()
        self._responses: queue.SimpleQueue[pb.StreamActionsResponse | ChunkcastError] = queue.SimpleQueue()
        self._closed_by: ChunkcastError | None = None
        # What was sent and may still be answered, in order.
        self._sent: deque[_Sent] = deque()
        self._requests.put(pb.StreamActionsRequest(open=pb.OpenStream(policy=policy, robot_id=robot_id)))
        # wait_for_ready would hide an absent server until the timeout; a refused connection is told at once.
        self._call = stub.StreamActions(iter(self._requests.get, None))
        # gRPC's blocking iterator knows no timeout for one answer, and a robot must not wait for ever.
        self._reader = threading.Thread(target=self._read, name=f"chunks-{robot_id or policy}", daemon=True)
        self._reader.start()
        try:
            opened = self._next(timeout)
        except ChunkcastError:
            self.close()
            raise
        self.policy_version: str = opened.opened.policy_version

    def request(
        self,
        observation: Observation,
        *,
        episode_id: str,
        step: int,
        instruction: str = "",
        noise_seed: int | None = None,
        timeout: float | None = None,
    ) -> ActionChunk:
        """Send an observation and wait for its chunk.

        Args:
            observation: see ``Observation``.
            episode_id: a new one begins a new episode.
            step: control tick, rising within the episode.
            instruction: one of the policy's; may be left out after the episode's first observation.
            noise_seed: makes the chunk reproducible.
            timeout: seconds, instead of the stream's.

        Raises:
            ObservationError: the server refused this observation, or one that it was to remember for this chunk; the
                stream goes on.
            UnsafeAction: the policy's answer was withheld; the stream goes on.
            ChunkTimeout: no answer in time; a later answer to this observation is discarded.
            PolicyUnavailable: the stream is over.
        """
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        mine = self._send(observation, episode_id, step, instruction, noise_seed, history_only=False)
        while True:
            response = self._next(max(0.0, deadline - time.monotonic()))
            answered = self._answered_by(response)
            if answered is mine or answered.history_only:
                break  # any other answer is to an observation that was given up
        if response.HasField("error"):
            unsafe = response.error.code == pb.ERROR_CODE_UNSAFE_ACTION
            raise (UnsafeAction if unsafe else ObservationError)(response.error.code, response.error.message)
        return decode_chunk(response.chunk)

    def remember(self, observation: Observation, *, episode_id: str, step: int, instruction: str = "") -> None:
        """Send an observation as history only: for a policy that sees several ticks. If the server refuses it, the next
        request says so.

        Raises:
            PolicyUnavailable: the stream is over.
        """
        self._send(observation, episode_id, step, instruction, None, history_only=True)

    @property
    def over(self) -> bool:
        """Whether the stream has ended; open another."""
        # The reader ends with the stream, which nobody may have asked for an answer since.
        return self._closed_by is not None or not self._reader.is_alive()

    def close(self) -> None:
        """End the stream; harmless if it is over."""
        self._closed_by = self._closed_by or PolicyUnavailable("the stream is closed")
        self._requests.put(None)
        self._call.cancel()
        self._reader.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(
        self,
        observation: Observation,
        episode_id: str,
        step: int,
        instruction: str,
        noise_seed: int | None,
        *,
        history_only: bool,
    ) -> _Sent:
        if self._closed_by is not None:
            raise self._closed_by
        message = encode_observation(
            observation,
            episode_id=episode_id,
            step=step,
            instruction=instruction,
            noise_seed=noise_seed,
            history_only=history_only,
        )
        sent = _Sent(step, history_only)
        self._sent.append(sent)
        self._requests.put(pb.StreamActionsRequest(observation=message))
        return sent

    def _answered_by(self, response: pb.StreamActionsResponse) -> _Sent:
        """What ``response`` answers: answers come in order, one to each request, and to history only if refused."""
        while self._sent:
            sent = self._sent.popleft()
            refused = response.HasField("error") and response.error.step == sent.step
            if not sent.history_only or refused:
                return sent
        raise PolicyUnavailable("the server sent an answer to nothing; open another stream")

    def _next(self, timeout: float) -> pb.StreamActionsResponse:
        try:
            response = self._responses.get(timeout=timeout)
        except queue.Empty:
            raise ChunkTimeout("no answer in time") from None
        if isinstance(response, ChunkcastError):
            self._closed_by = response
            raise response
        return response

    def _read(self) -> None:
        responses: Iterator[pb.StreamActionsResponse] = iter(self._call)
        try:
            for response in responses:
                self._responses.put(response)
            ended: ChunkcastError = PolicyUnavailable("the server ended the stream")
        except grpc.RpcError as error:
            ended = error_of(error)
        self._responses.put(ended)


def encode_observation(
    observation: Observation,
    *,
    episode_id: str = "",
    step: int = 0,
    instruction: str = "",
    noise_seed: int | None = None,
    history_only: bool = False,
) -> pb.Observation:
    """An observation as a message.

    Raises:
        ValueError: the episode's id is too long, or the step or seed not of 64 bits.
        TensorError: an array's dtype is not on the wire.
    """
    if len(episode_id) > MAX_EPISODE_ID_LENGTH:
        raise ValueError(f"episode_id has {len(episode_id)} characters, expected at most {MAX_EPISODE_ID_LENGTH}")
    return pb.Observation(
        episode_id=episode_id,
        step=step,
        tensors={key: encode_tensor(array) for key, array in observation.items()},
        instruction=instruction,
        history_only=history_only,
        noise_seed=noise_seed,
    )


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
    )


def error_of(error: grpc.RpcError) -> ChunkcastError:
    """GRPC's error as this package's."""
    assert isinstance(error, grpc.Call)
    code, details = error.code(), error.details() or "no details"
    if code == grpc.StatusCode.NOT_FOUND:
        return PolicyNotFound(details)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return ChunkTimeout(details)
    if code == grpc.StatusCode.ABORTED:
        return UnsafeAction(pb.ERROR_CODE_UNSAFE_ACTION, details)
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return ObservationError(pb.ERROR_CODE_BAD_REQUEST, details)
    return PolicyUnavailable(f"{code.name.lower() if code else 'unknown'}: {details}")


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
