"""One robot's stream, blocking: observations go out, action chunks come back."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Self

import grpc

from chunkcast.client.errors import ChunkcastError, ChunkTimeout, ObservationError, PolicyOverloaded, PolicyUnavailable
from chunkcast.client.wire import (
    ActionChunk,
    Answer,
    AnswerOrder,
    Observation,
    Sent,
    decode_answer,
    encode_observation,
    stream_end,
)
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc


class ActionStream:
    """A stream to one policy; open it with ``PolicyClient.stream``. Not for use by several threads at once.

    ``request`` sends an observation and waits for its chunk; ``send`` and ``receive`` do the two apart, for a robot
    that goes on moving meanwhile.

    Args:
        stub: the service.
        policy: the policy's name; empty for a server's only one.
        policy_version: stay with this version; empty to follow what is promoted.
        robot_id: who is calling, for the server's log.
        timeout: seconds to wait for an answer.
        image_quality: as PolicyClient's.
        metadata: of the call.

    Attributes:
        policy_version: the version that answered the opening.
        stream_id: the stream's name in the server's log.

    Raises:
        PolicyNotFound, PolicyUnavailable, PolicyOverloaded, ChunkTimeout: the stream could not be opened.
    """

    def __init__(
        self,
        stub: pb_grpc.PolicyServiceStub,
        policy: str,
        policy_version: str,
        robot_id: str,
        timeout: float,
        image_quality: int | None = None,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        self._timeout, self._image_quality = timeout, image_quality
        self._requests: queue.SimpleQueue[pb.StreamActionsRequest | None] = queue.SimpleQueue()
        self._responses: queue.SimpleQueue[pb.StreamActionsResponse | ChunkcastError] = queue.SimpleQueue()
        self._closed_by: ChunkcastError | None = None
        self._order = AnswerOrder()
        opening = pb.OpenStream(policy=policy, robot_id=robot_id, policy_version=policy_version)
        self._requests.put(pb.StreamActionsRequest(open=opening))
        # wait_for_ready would hide an absent server until the timeout; a refused connection is told at once.
        self._call = stub.StreamActions(iter(self._requests.get, None), metadata=tuple(metadata))
        # gRPC's blocking iterator knows no timeout for one answer, and a robot must not wait for ever.
        self._reader = threading.Thread(target=self._read, name=f"chunks-{robot_id or policy}", daemon=True)
        self._reader.start()
        try:
            opened = self._next(timeout)
        except ChunkcastError:
            self.close()
            raise
        self.policy_version: str = opened.opened.policy_version
        self.stream_id: str = opened.opened.stream_id

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
            instruction: one of the policy's, or a sentence where it takes free text; may be left out after the
                episode's first observation.
            noise_seed: makes the chunk reproducible.
            timeout: seconds, instead of the stream's.

        Raises:
            ObservationError: the server refused this observation, or one that it was to remember for this chunk; the
                stream goes on.
            UnsafeAction: the policy's answer was withheld; the stream goes on.
            PolicyOverloaded: too many observations are waiting; the stream goes on.
            ChunkTimeout: no answer in time; a later answer to this observation is discarded.
            PolicyUnavailable: the stream is over.
        """
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        mine = self.send(
            encode_observation(
                observation,
                episode_id=episode_id,
                step=step,
                instruction=instruction,
                noise_seed=noise_seed,
                image_quality=self._image_quality,
            )
        )
        while True:
            token, answer = self.receive(max(0.0, deadline - time.monotonic()))
            if token is not mine and not token.history_only:
                continue  # an answer to an observation that was given up
            if isinstance(answer, ObservationError | PolicyOverloaded):
                raise answer
            if isinstance(answer, ActionChunk):
                return answer

    def remember(self, observation: Observation, *, episode_id: str, step: int, instruction: str = "") -> None:
        """Send an observation as history only: for a policy that sees several ticks. If the server refuses it, the next
        request says so.

        Raises:
            PolicyUnavailable: the stream is over.
        """
        self.send(
            encode_observation(
                observation,
                episode_id=episode_id,
                step=step,
                instruction=instruction,
                history_only=True,
                image_quality=self._image_quality,
            )
        )

    def send(self, observation: pb.Observation) -> Sent:
        """Send an observation (see ``encode_observation``) and return at once; ``receive`` gives the same token with
        its answer.

        Raises:
            PolicyUnavailable: the stream is over.
        """
        if self._closed_by is not None:
            raise self._closed_by
        token = self._order.sent(observation)
        self._requests.put(pb.StreamActionsRequest(observation=observation))
        return token

    def receive(self, timeout: float) -> tuple[Sent, Answer]:
        """The next answer, to the oldest observation that has none yet, within ``timeout`` seconds (0: only if it is
        there).

        Raises:
            ChunkTimeout: there is none in time.
            PolicyUnavailable: the stream is over, or cannot be relied on.
        """
        response = self._next(timeout)
        return self._order.answered(response), decode_answer(response)

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

    def _next(self, timeout: float) -> pb.StreamActionsResponse:
        try:
            response = self._responses.get(timeout=timeout) if timeout > 0.0 else self._responses.get_nowait()
        except queue.Empty:
            raise ChunkTimeout("no answer in time") from None
        if isinstance(response, ChunkcastError):
            self._closed_by = response
            raise response
        return response

    def _read(self) -> None:
        responses: Iterator[pb.StreamActionsResponse] = iter(self._call)
        opened = False
        try:
            for response in responses:
                opened = True
                self._responses.put(response)
            ended: ChunkcastError = PolicyUnavailable("the server ended the stream")
        except grpc.RpcError as error:
            ended = stream_end(error, opened=opened)
        self._responses.put(ended)
