"""The asyncio face of the client: many robots in one process, or one beside other asynchronous work.

>>> from chunkcast.client.aio import AsyncChunkPlayer, AsyncPolicyClient

What it decides is decided where the blocking face has it decided: ``playback`` and ``wire``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Self

import grpc
import numpy as np
import numpy.typing as npt

from chunkcast.client.chunk_player import ControlRate, EpisodeSummary
from chunkcast.client.errors import ChunkcastError, ChunkTimeout, PolicyUnavailable, RobotMismatch
from chunkcast.client.playback import Playback, PlaybackConfig
from chunkcast.client.policy_client import DEFAULT_TIMEOUT, report_request
from chunkcast.client.reconnect import Backoff
from chunkcast.client.robot import Robot
from chunkcast.client.wire import (
    CHANNEL_OPTIONS,
    ActionChunk,
    Answer,
    AnswerOrder,
    Observation,
    Sent,
    decode_answer,
    error_of,
)
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc
from chunkcast.v1.contract import contract_difference


class AsyncPolicyClient:
    """A connection to a chunkcast server, for one event loop; shared by any number of streams.

    Args:
        target: HOST:PORT.
        timeout: seconds to wait for an answer.

    Example::

        async with AsyncPolicyClient("127.0.0.1:50051") as client:
            player = await AsyncChunkPlayer.open(client)
    """

    def __init__(self, target: str, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        if not target:
            raise ValueError("target is empty, expected HOST:PORT such as 127.0.0.1:50051")
        self.target, self._timeout = target, timeout
        self._channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._stub: Any = pb_grpc.PolicyServiceStub(self._channel)

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
        try:
            response = await self._stub.GetPolicy(pb.GetPolicyRequest(policy=policy), timeout=self._timeout)
        except grpc.RpcError as error:
            raise error_of(error) from None
        specification: pb.PolicySpec = response.policy
        return specification

    async def stream(
        self, policy: str = "", *, policy_version: str = "", robot_id: str = "", timeout: float | None = None
    ) -> AsyncActionStream:
        """Open a stream; as ``PolicyClient.stream``."""
        opening = pb.OpenStream(policy=policy, robot_id=robot_id, policy_version=policy_version)
        stream = AsyncActionStream(self._stub.StreamActions())
        try:
            await asyncio.wait_for(stream.open(opening), self._timeout if timeout is None else timeout)
        except TimeoutError:
            stream.close()
            raise ChunkTimeout("the stream was not opened in time") from None
        return stream

    async def report_episode(
        self, *, outcome: str, task: str, steps: int, policy: str = "", episode_id: str = "", robot_id: str = ""
    ) -> None:
        """Tell the server how an episode ended; as ``PolicyClient.report_episode``."""
        request = report_request(
            outcome=outcome, task=task, steps=steps, policy=policy, episode_id=episode_id, robot_id=robot_id
        )
        try:
            await self._stub.ReportEpisode(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise error_of(error) from None

    async def close(self) -> None:
        """Close the connection and every stream on it."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncActionStream:
    """A stream to one policy; open it with ``AsyncPolicyClient.stream``.

    Attributes:
        policy_version: the version that answered the opening.
    """

    policy_version = ""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._order = AnswerOrder()
        self._unread: asyncio.Task[Any] | None = None
        self._closed_by: ChunkcastError | None = None

    async def open(self, opening: pb.OpenStream) -> None:
        """Send the opening and wait until it is accepted.

        Raises:
            PolicyNotFound, PolicyUnavailable, PolicyOverloaded: it is not.
        """
        await self._write(pb.StreamActionsRequest(open=opening))
        self.policy_version = (await self._read()).opened.policy_version

    async def send(self, observation: pb.Observation) -> Sent:
        """Send an observation; ``receive`` gives the same token with its answer.

        Raises:
            PolicyUnavailable: the stream is over.
        """
        if self._closed_by is not None:
            raise self._closed_by
        token = self._order.sent(observation)
        await self._write(pb.StreamActionsRequest(observation=observation))
        return token

    async def receive(self, timeout: float | None = None) -> tuple[Sent, Answer]:
        """The next answer, to the oldest observation that has none yet.

        Args:
            timeout: seconds; 0 only looks whether there is one, ``None`` waits for ever.

        Raises:
            ChunkTimeout: there is none in time.
            UnsafeAction: the answer cannot be read as actions; the stream goes on.
            PolicyUnavailable: the stream is over.
        """
        if timeout is None:
            response = await self._read() if self._unread is None else await self._take_unread()
        else:
            # A read that is cut short would lose its message: it goes on, and the next call finds it.
            self._unread = self._unread or asyncio.ensure_future(self._read())
            done, _ = await asyncio.wait({self._unread}, timeout=timeout)
            if not done:
                raise ChunkTimeout("no answer in time")
            response = await self._take_unread()
        return self._order.answered(response), decode_answer(response)

    @property
    def over(self) -> bool:
        """Whether the stream has ended; open another."""
        return self._closed_by is not None or bool(self._call.done())

    def close(self) -> None:
        """End the stream; harmless if it is over."""
        self._closed_by = self._closed_by or PolicyUnavailable("the stream is closed")
        if self._unread is not None:
            self._unread.cancel()
        self._call.cancel()

    async def _take_unread(self) -> pb.StreamActionsResponse:
        assert self._unread is not None
        task, self._unread = self._unread, None
        response: pb.StreamActionsResponse = await task
        return response

    async def _write(self, request: pb.StreamActionsRequest) -> None:
        try:
            await self._call.write(request)
        except (grpc.RpcError, asyncio.InvalidStateError) as error:
            raise await self._ended(error) from None

    async def _read(self) -> pb.StreamActionsResponse:
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            raise await self._ended(error) from None
        if response is grpc.aio.EOF:
            raise await self._ended(None)
        answer: pb.StreamActionsResponse = response
        return answer

    async def _ended(self, error: Exception | None) -> ChunkcastError:
        """Why the stream is over."""
        if self._closed_by is None:
            code = await self._call.code()
            if isinstance(error, grpc.RpcError):
                self._closed_by = error_of(error)
            elif code == grpc.StatusCode.OK:
                self._closed_by = PolicyUnavailable("the server ended the stream")
            else:
                details = await self._call.details()
                trailers = await self._call.trailing_metadata()
                empty = grpc.aio.Metadata()
                self._closed_by = error_of(grpc.aio.AioRpcError(code, empty, trailers or empty, details))
        return self._closed_by


class AsyncChunkPlayer:
    """``ChunkPlayer`` for asyncio: the same decisions, with awaits in place of blocking. Make it with ``open``."""

    def __init__(
        self,
        client: AsyncPolicyClient,
        spec: pb.PolicySpec,
        stream: AsyncActionStream,
        *,
        config: PlaybackConfig,
        robot_id: str,
        timeout: float,
        on_chunk: Callable[[ActionChunk, float], None] | None,
    ) -> None:
        self.spec, self._client, self._robot_id, self._timeout = spec, client, robot_id, timeout
        self._playback, self._on_chunk = Playback(spec, config, timeout), on_chunk
        self._stream: AsyncActionStream | None = stream
        self._reconnecting: asyncio.Task[AsyncActionStream] | None = None

    @classmethod
    async def open(
        cls,
        client: AsyncPolicyClient,
        policy: str = "",
        *,
        config: PlaybackConfig | None = None,
        robot_id: str = "",
        timeout: float = 0.5,
        on_chunk: Callable[[ActionChunk, float], None] | None = None,
    ) -> Self:
        """A player with an open stream; arguments and errors as of ``ChunkPlayer``."""
        spec = await client.get_policy(policy)
        config = config or PlaybackConfig()
        Playback(spec, config, timeout)  # refuses what does not fit, before a stream is opened
        stream = await client.stream(spec.name, robot_id=robot_id, timeout=timeout)
        return cls(client, spec, stream, config=config, robot_id=robot_id, timeout=timeout, on_chunk=on_chunk)

    def begin_episode(self, instruction: str, *, episode_id: str | None = None, noise_seed: int | None = None) -> str:
        """As ``ChunkPlayer.begin_episode``."""
        return self._playback.begin_episode(instruction, episode_id=episode_id, noise_seed=noise_seed)

    async def next_action(self, observation: Observation) -> npt.NDArray[np.float32]:
        """As ``ChunkPlayer.next_action``; other tasks run while a tick waits for a chunk that is due."""
        await self._ensure_stream()
        playback, stream = self._playback, self._stream
        messages = playback.begin_tick(observation, time.monotonic())
        try:
            if stream is not None:
                for message in messages:
                    await stream.send(message)
                await self._receive(stream)
        except PolicyUnavailable as lost:
            self._lost(lost)
        return playback.action()

    async def run(
        self,
        robot: Robot,
        instruction: str,
        *,
        max_ticks: int,
        until: Callable[[], bool] = lambda: False,
        rate_hz: float | None = None,
    ) -> EpisodeSummary:
        """As ``ChunkPlayer.run``; the robot's methods are called on the event loop and must not block it."""
        tick = 0
        try:
            rate = ControlRate(self.spec.action.control_rate_hz if rate_hz is None else rate_hz, max_ticks)
            self._playback.rate_hz = rate.hz
            episode_id = self.begin_episode(instruction)
            rate.start(time.monotonic())
            while tick < max_ticks and not until():
                robot.act(await self.next_action(robot.observe()))
                tick += 1
                await asyncio.sleep(rate.seconds_ahead(time.monotonic()))
        finally:
            robot.safe_stop()
        return EpisodeSummary(episode_id, tick, rate.late_ticks, self._playback.starved_ticks)

    @property
    def at_border(self) -> bool:
        """Whether the last action was the first in which a new chunk had a part."""
        return self._playback.at_border

    async def close(self) -> None:
        """End the stream."""
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.gather(self._reconnecting, return_exceptions=True)
        if self._stream is not None:
            self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _receive(self, stream: AsyncActionStream) -> None:
        while True:
            wait = self._playback.seconds_to_wait(time.monotonic())
            try:
                token, answer = await stream.receive(wait)
            except ChunkTimeout:
                return
            seconds = self._playback.take(token, answer, time.monotonic())
            if seconds is not None and self._on_chunk and isinstance(answer, ActionChunk):
                self._on_chunk(answer, seconds)

    async def _ensure_stream(self) -> None:
        if self._stream is not None and self._stream.over:
            self._lost(PolicyUnavailable("the server ended the stream"))
        task = self._reconnecting
        if task is None:
            return
        if not self._playback.has_chunk:  # an episode's first tick waits for the server
            await asyncio.wait({task}, timeout=self._timeout)
        if task.done():
            self._reconnecting = None
            self._stream = task.result()
            self._playback.connected()

    def _lost(self, error: ChunkcastError) -> None:
        self._playback.disconnected(error)
        if self._stream is not None:
            self._stream.close()
            self._stream = None
            self._reconnecting = asyncio.create_task(self._reconnect(), name=f"reconnect-{self._robot_id}")

    async def _reconnect(self) -> AsyncActionStream:
        """Another stream, however long it takes.

        Raises:
            RobotMismatch: the server came back with another contract.
        """
        backoff = Backoff()
        while True:
            await asyncio.sleep(backoff.next_wait())
            try:
                served = await self._client.get_policy(self.spec.name)
                if difference := contract_difference(self.spec, served):
                    raise RobotMismatch(
                        f"{self.spec.name} is now version {served.version} with another contract: {difference}; make "
                        "another player"
                    )
                return await self._client.stream(self.spec.name, robot_id=self._robot_id, timeout=self._timeout)
            except RobotMismatch:
                raise
            except ChunkcastError as error:
                self._playback.disconnected(error)
