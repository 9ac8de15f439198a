"""The connection to a policy server, for asyncio."""

from __future__ import annotations

import asyncio
from typing import Any, Self
from weakref import WeakSet

import grpc

from chunkcast.client.aio.action_stream import AsyncActionStream
from chunkcast.client.credentials import Credentials
from chunkcast.client.errors import ChunkcastError, PolicyUnavailable
from chunkcast.client.policy_client import DEFAULT_TIMEOUT, checked_credentials, report_request
from chunkcast.client.wire import CHANNEL_OPTIONS, error_of
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc


class AsyncPolicyClient:
    """A connection to a chunkcast server, for one event loop; shared by any number of streams.

    Args:
        target: HOST:PORT.
        timeout: seconds to wait for an answer.
        credentials: as PolicyClient's.

    Raises:
        ValueError: there is no target, or the credentials cannot be used.

    Example::

        async with AsyncPolicyClient("127.0.0.1:50051") as client:
            player = await AsyncChunkPlayer.open(client)
    """

    def __init__(
        self, target: str, *, timeout: float = DEFAULT_TIMEOUT, credentials: Credentials | None = None
    ) -> None:
        self.target, self._timeout, self._credentials = target, timeout, credentials or Credentials()
        self._channel = open_aio_channel(target, self._credentials)
        self._stub: Any = pb_grpc.PolicyServiceStub(self._channel)
        self._streams: WeakSet[AsyncActionStream] = WeakSet()

    async def wait_until_ready(self, timeout: float) -> None:
        """Wait for the server to accept connections, which it does once its policies are warm.

        Raises:
            PolicyUnavailable: it does not within ``timeout`` seconds.
        """
        try:
            await asyncio.wait_for(self._channel.channel_ready(), timeout)
        except TimeoutError:
            raise PolicyUnavailable(f"no server is ready at {self.target} after {timeout:g} s") from None

    async def get_policy(self, policy: str = "") -> pb.PolicySpec:
        """One policy's specification; an empty name means a server's only one.

        Raises:
            PolicyNotFound: it is not served.
            PolicyUnavailable, ChunkTimeout: the server did not answer.
        """
        specification: pb.PolicySpec = (
            await self._ask(self._stub.GetPolicy, pb.GetPolicyRequest(policy=policy))
        ).policy
        return specification

    async def stream(
        self, policy: str = "", *, policy_version: str = "", robot_id: str = "", timeout: float | None = None
    ) -> AsyncActionStream:
        """Open a stream; as ``PolicyClient.stream``."""
        opening = pb.OpenStream(policy=policy, robot_id=robot_id, policy_version=policy_version)
        stream = AsyncActionStream(self._stub.StreamActions(metadata=self._credentials.metadata()))
        try:
            await stream.open(opening, self._timeout if timeout is None else timeout)
        except (ChunkcastError, asyncio.CancelledError):
            stream.close()
            raise
        self._streams.add(stream)
        return stream

    async def report_episode(
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
        """Tell the server how an episode ended; as ``PolicyClient.report_episode``."""
        request = report_request(
            outcome=outcome,
            task=task,
            steps=steps,
            policy=policy,
            policy_version=policy_version,
            episode_id=episode_id,
            robot_id=robot_id,
        )
        await self._ask(self._stub.ReportEpisode, request)

    async def _ask(self, method: Any, request: object) -> Any:
        """A unary call's answer.

        Raises:
            ChunkcastError: it failed.
        """
        try:
            return await method(request, timeout=self._timeout, metadata=self._credentials.metadata())
        except grpc.RpcError as error:
            raise error_of(error) from None

    async def close(self) -> None:
        """Close the connection and every stream on it."""
        for stream in list(self._streams):
            stream.close()
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def open_aio_channel(target: str, credentials: Credentials) -> grpc.aio.Channel:
    """A channel to ``target``, encrypted if the credentials say so.

    Raises:
        ValueError: there is no target, or the credentials cannot be used.
    """
    secure = checked_credentials(target, credentials)
    options = (*CHANNEL_OPTIONS, *credentials.options())
    if secure is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, secure, options=options)
