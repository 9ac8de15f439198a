"""Plays action chunks on an event loop: the same decisions as ``ChunkPlayer``, with awaits in place of blocking."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

import numpy as np
import numpy.typing as npt

from chunkcast.client.aio.action_stream import AsyncActionStream
from chunkcast.client.aio.policy_client import AsyncPolicyClient
from chunkcast.client.chunk_player import ControlRate, EpisodeSummary
from chunkcast.client.errors import ChunkcastError, ChunkTimeout, PolicyOverloaded, PolicyUnavailable, RobotMismatch
from chunkcast.client.playback import Playback
from chunkcast.client.playback_config import PlaybackConfig
from chunkcast.client.reconnect import RENEW_SECONDS, Backoff, require_same_contract
from chunkcast.client.robot import Robot
from chunkcast.client.wire import ActionChunk, Observation
from chunkcast.v1 import policy_pb2 as pb


class AsyncChunkPlayer:
    """``ChunkPlayer`` for asyncio. Make it with ``open``."""

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
        self._renewing: asyncio.Task[AsyncActionStream] | None = None
        self._renewed_at = 0.0
        self._hurry = asyncio.Event()

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
        playback = self._playback
        give_up = time.monotonic() + self._timeout
        await self._take_arrived()
        while True:
            await self._ensure_stream(give_up)
            messages = playback.begin_tick(observation, time.monotonic())
            if self._stream is not None:
                try:
                    for message in messages:
                        self._stream.send(message)
                    await self._receive(self._stream)
                except PolicyUnavailable as lost:
                    self._lost(lost)
            again = playback.retry_at()
            if again is None or max(again, time.monotonic()) >= give_up:
                break
            await asyncio.sleep(max(0.0, again - time.monotonic()))
        try:
            return playback.action()
        except ChunkTimeout as starved:
            # A stream without answers may be dead without a sign: the next tick finds another.
            self._lost(starved)
            raise

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
        playback = self._playback
        return EpisodeSummary(episode_id, tick, rate.late_ticks, playback.starved_ticks, playback.unhealthy_at)

    @property
    def at_border(self) -> bool:
        """Whether the last action was the first in which a new chunk had a part."""
        return self._playback.at_border

    async def close(self) -> None:
        """End the stream, and every attempt to open one."""
        for task in (self._reconnecting, self._renewing):
            if task is not None:
                task.cancel()
                (opened,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(opened, AsyncActionStream):
                    opened.close()
        if self._stream is not None:
            self._stream.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _take_arrived(self) -> None:
        """Take what came between two ticks: also the last chunk of a stream that has ended since."""
        try:
            while self._stream is not None and await self._take_one(
                self._stream, self._playback.seconds_before_tick(time.monotonic())
            ):
                pass
        except PolicyUnavailable as lost:
            self._lost(lost)

    async def _receive(self, stream: AsyncActionStream) -> None:
        while (wait := self._playback.seconds_to_wait(time.monotonic())) > 0.0:
            if not await self._take_one(stream, wait):
                return

    async def _take_one(self, stream: AsyncActionStream, wait: float) -> bool:
        try:
            token, answer = await stream.receive(wait)
        except ChunkTimeout:
            return False
        seconds = self._playback.take(token, answer, time.monotonic())
        if isinstance(answer, ActionChunk) and answer.reconnect:
            self._renew()
        if seconds is not None and self._on_chunk and isinstance(answer, ActionChunk):
            self._on_chunk(answer, seconds)
        return True

    async def _ensure_stream(self, give_up: float) -> None:
        """Take over a stream that was opened meanwhile; an episode's first tick waits for it until ``give_up``.

        Raises:
            RobotMismatch: the server came back with another contract.
        """
        self._take_successor()
        task = self._reconnecting
        if task is None:
            return
        if not self._playback.has_chunk:
            self._hurry.set()
            await asyncio.wait({task}, timeout=max(0.0, give_up - time.monotonic()))
        if task.done():
            self._stream = task.result()
            self._reconnecting = None
            self._playback.connected()

    def _lost(self, error: ChunkcastError) -> None:
        self._playback.disconnected(error)
        if self._stream is not None:
            self._stream.close()
            self._stream = None
            # A successor that is being opened is as good as what would be opened now.
            self._reconnecting = asyncio.create_task(
                self._reconnect(self._renewing), name=f"reconnect-{self._robot_id}"
            )
            self._renewing = None

    def _renew(self) -> None:
        """The stream will be over soon: open its successor while it is answered still."""
        if self._renewing is None and time.monotonic() >= self._renewed_at + RENEW_SECONDS:
            self._renewed_at = time.monotonic()
            self._renewing = asyncio.create_task(self._open(), name=f"renew-{self._robot_id}")

    def _take_successor(self) -> None:
        """Leave the stream for its successor, if there is one and nothing would be lost."""
        if self._renewing is None or not self._renewing.done() or self._playback.waits:
            return
        task, self._renewing = self._renewing, None
        if task.exception() is not None or task.result().over:
            return  # the old one is answered still, and its next chunk hints again
        if self._stream is not None:
            self._stream.close()
        self._stream = task.result()
        self._playback.connected()

    async def _open(self) -> AsyncActionStream:
        require_same_contract(self.spec, await self._client.get_policy(self.spec.name))
        return await self._client.stream(self.spec.name, robot_id=self._robot_id, timeout=self._timeout)

    async def _reconnect(self, renewing: asyncio.Task[AsyncActionStream] | None) -> AsyncActionStream:
        """Another stream, however long it takes.

        Args:
            renewing: opens one already.

        Raises:
            RobotMismatch: the server came back with another contract.
        """
        backoff, retry_after = Backoff(), 0.0
        if renewing is not None:
            with suppress(ChunkcastError):
                successor = await renewing
                if not successor.over:
                    return successor
        while True:
            try:
                await asyncio.wait_for(self._hurry.wait(), max(backoff.next_wait(), retry_after))
                self._hurry.clear()
                backoff.reset()
            except TimeoutError:
                pass
            try:
                return await self._open()
            except RobotMismatch:
                raise
            except ChunkcastError as error:
                retry_after = error.retry_after if isinstance(error, PolicyOverloaded) else 0.0
                self._playback.disconnected(error)
