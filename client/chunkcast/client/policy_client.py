"""The connection to a policy server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import grpc

from chunkcast.client.action_stream import (
    ActionChunk,
    ActionStream,
    Observation,
    decode_chunk,
    encode_observation,
    error_of,
)
from chunkcast.client.errors import PolicyUnavailable
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

    Example::

        with PolicyClient("127.0.0.1:50051") as client, client.stream() as stream:
            chunk = stream.request(observation, episode_id="1", step=0, instruction="pick-place-v3")
    """

    def __init__(self, target: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        if not target:
            raise ValueError("target is empty, expected HOST:PORT such as 127.0.0.1:50051")
        self.target = target
        self._timeout = timeout
        self._channel = grpc.insecure_channel(
            target,
            options=[
                # A robot alone in its process gains nothing from the address-wide pool of connections.
                ("grpc.use_local_subchannel_pool", 1),
                # A robot and its server share a network; a proxy for the web is not between them.
                ("grpc.enable_http_proxy", 0),
                # gRPC's own limit of two minutes would leave a robot without a server that is back.
                ("grpc.max_reconnect_backoff_ms", 1000),
                ("grpc.max_receive_message_length", 64 * 2**20),
            ],
        )
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

    def stream(self, policy: str = "", *, robot_id: str = "", timeout: float | None = None) -> ActionStream:
        """Open a stream to ``policy``; see ``ActionStream``.

        Raises:
            PolicyNotFound: it is not served.
            PolicyUnavailable, ChunkTimeout: the server did not answer.
        """
        return ActionStream(self._stub, policy, robot_id, self._timeout if timeout is None else timeout)

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
        message = encode_observation(observation, instruction=instruction, noise_seed=noise_seed)
        request = pb.PredictChunkRequest(policy=policy, observations=[message])
        try:
            response = self._stub.PredictChunk(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise error_of(error) from None
        return decode_chunk(response.chunk)

    def report_episode(
        self, *, outcome: str, task: str, steps: int, policy: str = "", episode_id: str = "", robot_id: str = ""
    ) -> None:
        """Tell the server how an episode ended; measured success is counted from these.

        Args:
            outcome: ``success``, ``failure`` or ``aborted``.
            task: the instruction that was followed.
            steps: control ticks played.

        Raises:
            ValueError: the outcome is none of the three.
            PolicyUnavailable, ChunkTimeout: the server did not answer.
        """
        if outcome not in OUTCOMES:
            raise ValueError(f"outcome is {outcome!r}, expected one of {', '.join(OUTCOMES)}")
        request = pb.ReportEpisodeRequest(
            policy=policy,
            episode_id=episode_id,
            robot_id=robot_id,
            task=task,
            outcome=OUTCOMES[outcome],
            steps=steps,
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
