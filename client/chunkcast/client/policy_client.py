"""The connection to a policy server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self, TypeVar

import grpc

from chunkcast.client.action_stream import ActionStream
from chunkcast.client.credentials import Credentials
from chunkcast.client.errors import ChunkcastError, PolicyUnavailable
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

Response = TypeVar("Response")
ChannelOptions = tuple[tuple[str, int | str], ...]

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
        credentials: TLS and a token, for a server that asks for them.

    Raises:
        ValueError: there is no target, no such quality, or the credentials cannot be used.
        ModuleNotFoundError: pictures are to be compressed and Pillow is not installed (the extra ``images``).

    Example::

        with PolicyClient("127.0.0.1:50051") as client, client.stream() as stream:
            chunk = stream.request(observation, episode_id="1", step=0, instruction="pick-place-v3")
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        image_quality: int | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        require_quality(image_quality)
        self.target, self.image_quality = target, image_quality
        self._timeout, self._credentials = timeout, credentials or Credentials()
        self._channel = open_channel(target, self._credentials)
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
            hint = "" if self._credentials.encrypted else "; if it speaks TLS, give its authority (--tls-ca)"
            hint = hint if "Socket closed" in reason or "recvmsg" in reason else ""
            raise PolicyUnavailable(
                f"no server is ready at {self.target} after {timeout:g} s ({reason}){hint}"
            ) from None

    def list_policies(self) -> Sequence[pb.PolicySpec]:
        """The specifications of the policies served.

        Raises:
            PolicyUnavailable, ChunkTimeout: the server did not answer.
        """
        return list(self._ask(self._stub.ListPolicies, pb.ListPoliciesRequest()).policies)

    def get_policy(self, policy: str = "") -> pb.PolicySpec:
        """One policy's specification; an empty name means a server's only one.

        Raises:
            PolicyNotFound: it is not served.
            PolicyUnavailable, ChunkTimeout: the server did not answer.
        """
        return self._ask(self._stub.GetPolicy, pb.GetPolicyRequest(policy=policy)).policy

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
        metadata = self._credentials.metadata()
        return ActionStream(self._stub, policy, policy_version, robot_id, timeout, self.image_quality, metadata)

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
        return decode_chunk(self._ask(self._stub.PredictChunk, request).chunk)

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
        self._ask(self._stub.ReportEpisode, request)

    def _ask(self, method: Callable[..., Response], request: object, timeout: float | None = None) -> Response:
        """A unary call's answer.

        Raises:
            ChunkcastError: it failed.
        """
        try:
            return method(
                request,
                timeout=self._timeout if timeout is None else timeout,
                metadata=self._credentials.metadata(),
            )
        except grpc.RpcError as error:
            raise error_of(error) from None

    def _reason(self) -> str:
        """Why no connection comes about, in gRPC's words."""
        try:
            self._ask(self._stub.ListPolicies, pb.ListPoliciesRequest(), timeout=1.0)
        except ChunkcastError as error:
            return str(error)
        return "it has just become ready"

    def close(self) -> None:
        """Close the connection and every stream on it."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_channel(target: str, credentials: Credentials, options: ChannelOptions = CHANNEL_OPTIONS) -> grpc.Channel:
    """A channel to ``target``, encrypted if the credentials say so.

    Raises:
        ValueError: there is no target, or the credentials cannot be used.
    """
    secure = checked_credentials(target, credentials)
    options = (*options, *credentials.options())
    if secure is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, secure, options=options)


def checked_credentials(target: str, credentials: Credentials) -> grpc.ChannelCredentials | None:
    """What a channel to ``target`` is made with, or ``None`` for a plain one.

    Raises:
        ValueError: there is no target, or the credentials cannot be used.
    """
    if not target:
        raise ValueError("target is empty, expected HOST:PORT such as 127.0.0.1:50051")
    credentials.check_target(target)
    return credentials.channel_credentials()


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
