"""The connection to a policy server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import grpc

from chunkcast.client.action_stream import ActionStream
from chunkcast.client.errors import PolicyUnavailable
from chunkcast.client.wire import (
    CHANNEL_OPTIONS,
    ActionChunk,
    Observation,
    decode_chunk,
    encode_observation,
    error_of,
    require_quality,
)
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc

DEFAULT_TIMEOUT = 5.0

OUTCOMES = {
    "success": pb.EPISODE_OUTCOME_SUCCESS,
    "failure": pb.EPISODE_OUTCOME_FAILURE,
    "aborted": pb.EPISODE_OUTCOME_ABORTED,
}


class PolicyClient:
    """A connection to a chunkcast server; cheap, shared by any number of streams and threads.

    Args:
        target: HOST:PORT.
        timeout: seconds to wait for an answer.
        image_quality: send cameras' pictures as JPEG of this quality, 1 to 100; ``None`` sends them as they are.

    Raises:
        ValueError: there is no target, or no such quality.
        ModuleNotFoundError: pictures are to be compressed and Pillow is not installed (the extra ``images``).

    Example::

        with PolicyClient("127.0.0.1:50051") as client, client.stream() as stream:
            chunk = stream.request(observation, episode_id="1", step=0, instruction="pick-place-v3")
    """

    def __init__(self, target: str, *, timeout: float = DEFAULT_TIMEOUT, image_quality: int | None = None) -> None:
        if not target:
            raise ValueError("target is empty, expected HOST:PORT such as 127.0.0.1:50051")
        require_quality(image_quality)
        self.target, self.image_quality = target, image_quality
        self._timeout = timeout
        self._channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._stub = pb_grpc.PolicyServiceStub(self._channel)

    def wait_until_ready(self, timeout: float) -> None:
        """Wait for the server to accept connections, which it does once its policies are warm.

        Raises:
            PolicyUnavailable: it does not within ``timeout`` seconds.
        """
        try:
            grpc.channel_ready_future(self._channel).result(timeout)
        except grpc.FutureTimeoutError:
            reason = self._reason()
            raise PolicyUnavailable(f"no server is ready at {self.target} after {timeout:g} s ({reason})") from None

    def list_policies(self) -> Sequence[pb.PolicySpec]:
        """The specifications of the policies served.

        Raises:
            PolicyUnavailable, ChunkTimeout: the server did not answer.
        """
        try:
            response = self._stub.ListPolicies(pb.ListPoliciesRequest(), timeout=self._timeout)
        except grpc.RpcError as error:
            raise error_of(error) from None
        return list(response.policies)

    def get_policy(self, policy: str = "") -> pb.PolicySpec:
        """One policy's specification; an empty name means a server's only one.

        Raises:
            PolicyNotFound: it is not served.
            PolicyUnavailable, ChunkTimeout: the server did not answer.
        """
        try:
            response = self._stub.GetPolicy(pb.GetPolicyRequest(policy=policy), timeout=self._timeout)
        except grpc.RpcError as error:
            raise error_of(error) from None
        return response.policy

    def stream(
        self, policy: str = "", *, policy_version: str = "", robot_id: str = "", timeout: float | None = None
    ) -> ActionStream:
        """Open a stream to ``policy``; see ``ActionStream``.

        Args:
            policy_version: stay with this version, whatever is promoted meanwhile.

        Raises:
            PolicyNotFound: it is not served.
            PolicyOverloaded: the server has as many streams as it takes.
            PolicyUnavailable, ChunkTimeout: the server did not answer.
        """
        timeout = self._timeout if timeout is None else timeout
        return ActionStream(self._stub, policy, policy_version, robot_id, timeout, self.image_quality)

    def predict_chunk(
        self,
        observation: Observation,
        *,
        policy: str = "",
        instruction: str = "",
        noise_seed: int | None = None,
    ) -> ActionChunk:
        """One chunk for one observation, without a stream: for scripts. A robot's loop is faster over a stream.

        Raises:
            ObservationError: the server refused the observation.
            PolicyNotFound: the policy is not served.
            PolicyUnavailable, ChunkTimeout: the server did not answer.
        """
        message = encode_observation(
            observation, instruction=instruction, noise_seed=noise_seed, image_quality=self.image_quality
        )
        request = pb.PredictChunkRequest(policy=policy, observations=[message])
        try:
            response = self._stub.PredictChunk(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise error_of(error) from None
        return decode_chunk(response.chunk)

    def report_episode(
        self,
        *,
        outcome: str,
        task: str,
        steps: int,
        policy: str = "",
        policy_version: str = "",
        episode_id: str = "",
        robot_id: str = "",
    ) -> None:
        """Tell the server how an episode ended; measured success is counted from these.

        Args:
            outcome: ``success``, ``failure`` or ``aborted``.
            task: the instruction that was followed.
            steps: control ticks played.
            policy_version: which version played it, as its chunks said; the promoted one by default.

        Raises:
            ValueError: the outcome is none of the three, or the steps are negative.
            PolicyUnavailable, ChunkTimeout: the server did not answer.
        """
        request = report_request(
            outcome=outcome,
            task=task,
            steps=steps,
            policy=policy,
            policy_version=policy_version,
            episode_id=episode_id,
            robot_id=robot_id,
        )
        try:
            self._stub.ReportEpisode(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise error_of(error) from None

    def _reason(self) -> str:
        """Why no connection comes about, in gRPC's words."""
        try:
            self._stub.ListPolicies(pb.ListPoliciesRequest(), timeout=1.0)
        except grpc.RpcError as error:
            return str(error_of(error))
        return "it has just become ready"

    def close(self) -> None:
        """Close the connection and every stream on it."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def report_request(
    *, outcome: str, task: str, steps: int, policy: str, policy_version: str, episode_id: str, robot_id: str
) -> pb.ReportEpisodeRequest:
    """An episode's outcome as a message.

    Raises:
        ValueError: the outcome is none of the three, or the steps are negative.
    """
    if outcome not in OUTCOMES:
        raise ValueError(f"outcome is {outcome!r}, expected one of {', '.join(OUTCOMES)}")
    if steps < 0:
        raise ValueError(f"steps is {steps}, expected the control ticks played, 0 or more")
    return pb.ReportEpisodeRequest(
        policy=policy,
        episode_id=episode_id,
        robot_id=robot_id,
        task=task,
        outcome=OUTCOMES[outcome],
        steps=steps,
        policy_version=policy_version,
    )
