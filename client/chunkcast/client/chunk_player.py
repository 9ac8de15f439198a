"""Plays action chunks, blocking: ``next_action`` at each control tick, or ``run`` for a whole control loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from chunkcast.client.action_stream import ActionStream
from chunkcast.client.errors import ChunkTimeout, PolicyUnavailable
from chunkcast.client.lasting_stream import LastingStream
from chunkcast.client.playback import Playback
from chunkcast.client.playback_config import PlaybackConfig
from chunkcast.client.policy_client import PolicyClient
from chunkcast.client.robot import Robot
from chunkcast.client.wire import ActionChunk, Observation
from chunkcast.v1 import policy_pb2 as pb


@dataclass(frozen=True)
class EpisodeSummary:
    """How a run of the control loop went.

    Attributes:
        episode_id: as the server knows it.
        ticks: control ticks played.
        late_ticks: ticks that began after their time, because a chunk or the robot took too long.
        starved_ticks: ticks that no chunk knew; the robot held or slowed down.
        unhealthy_at: the tick at which the server first said that the policy is out of its element, or ``None``.
    """

    episode_id: str
    ticks: int
    late_ticks: int
    starved_ticks: int = 0
    unhealthy_at: int | None = None


class ChunkPlayer:
    """Executes the first actions of a chunk, and asks for the next one with the newest observation while it plays on.

    A tick waits for a chunk that is due for half a control period at most (``PlaybackConfig.patience``); what comes
    later takes over from the row that belongs to its tick. Without any chunk the robot holds, then an error is raised
    and ``run`` stops it. A lost server is reconnected to in the background, with backoff; the episode goes on where it
    is.

    Args:
        client: connected to a server; stays the caller's to close.
        policy: the policy's name; empty for a server's only one.
        config: how chunks are played.
        robot_id: who is calling, for the server's log.
        execute_steps: short for ``PlaybackConfig(execute_steps=...)``.
        timeout: seconds to wait for an episode's first chunk.
        on_chunk: called with each chunk and the seconds that it took, as the robot saw them.

    Raises:
        PolicyNotFound, PolicyUnavailable, ChunkTimeout: the stream could not be opened.
        ValueError: the configuration does not fit the policy.
    """

    def __init__(
        self,
        client: PolicyClient,
        policy: str = "",
        *,
        config: PlaybackConfig | None = None,
        robot_id: str = "",
        execute_steps: int | None = None,
        timeout: float = 0.5,
        on_chunk: Callable[[ActionChunk, float], None] | None = None,
    ) -> None:
        if config is not None and execute_steps is not None:
            raise ValueError("give execute_steps in config, not beside it")
        self.spec: pb.PolicySpec = client.get_policy(policy)
        config = config or PlaybackConfig(execute_steps=execute_steps)
        if config.image_quality is None:
            config = replace(config, image_quality=client.image_quality)
        self._playback = Playback(self.spec, config, timeout)
        self._on_chunk, self._timeout = on_chunk, timeout
        self._connection = LastingStream(client, self.spec, robot_id, timeout)

    def begin_episode(self, instruction: str, *, episode_id: str | None = None, noise_seed: int | None = None) -> str:
        """Forget the chunks and the history; returns the episode's id.

        Args:
            instruction: one of the policy's, a sentence where it takes free text, or empty where it needs none.
            episode_id: a name for the episode; a random one by default.
            noise_seed: makes every chunk of the episode reproducible.
        """
        return self._playback.begin_episode(instruction, episode_id=episode_id, noise_seed=noise_seed)

    def next_action(self, observation: Observation) -> npt.NDArray[np.float32]:
        """The action, float32 ``[action size]``, for this tick. Call once a tick.

        Args:
            observation: what the robot sees now.

        Raises:
            RobotMismatch: the episode's first observation is not what the policy expects, or the server came back with
                another contract.
            ObservationError: the server refused an observation.
            UnsafeAction: the policy's answer was withheld, or is not within its specification.
            ChunkcastError: no chunk could be had for as long as the robot may go without: stop it.
        """
        playback = self._playback
        give_up = time.monotonic() + self._timeout
        self._take_arrived()
        while True:
            stream = self._connected_stream(give_up)
            messages = playback.begin_tick(observation, time.monotonic())
            if stream is not None:
                with self._noting_loss():
                    for message in messages:
                        stream.send(message)
                    self._receive(stream)
            # Only an episode's first chunk is asked for again within a tick: later ones are at the next.
            again = playback.retry_at()
            if again is None or max(again, time.monotonic()) >= give_up:
                break
            time.sleep(max(0.0, again - time.monotonic()))
        try:
            return playback.action()
        except ChunkTimeout as starved:
            # A stream without answers may be dead without a sign: the next tick finds another.
            self._connection.lost(starved)
            raise

    def run(
        self,
        robot: Robot,
        instruction: str,
        *,
        max_ticks: int,
        until: Callable[[], bool] = lambda: False,
        rate_hz: float | None = None,
    ) -> EpisodeSummary:
        """The whole control loop of one episode: observe, act, keep the rate; the robot is stopped however it ends.

        Args:
            robot: the robot.
            instruction: as in ``begin_episode``.
            max_ticks: the longest episode.
            until: ends the episode when true.
            rate_hz: control ticks per second; by default the policy's.

        Raises:
            ChunkcastError: as ``next_action``.
            ValueError: ``rate_hz`` or ``max_ticks`` makes no loop.

        The robot's ``safe_stop`` has been called when this returns or raises.
        """
        tick = 0
        try:
            rate = ControlRate(self.spec.action.control_rate_hz if rate_hz is None else rate_hz, max_ticks)
            self._playback.rate_hz = rate.hz
            episode_id = self.begin_episode(instruction)
            rate.start(time.monotonic())
            while tick < max_ticks and not until():
                robot.act(self.next_action(robot.observe()))
                tick += 1
                ahead = rate.seconds_ahead(time.monotonic())
                if ahead > 0.0:
                    time.sleep(ahead)
        finally:
            robot.safe_stop()
        playback = self._playback
        return EpisodeSummary(episode_id, tick, rate.late_ticks, playback.starved_ticks, playback.unhealthy_at)

    @property
    def at_border(self) -> bool:
        """Whether the last action was the first in which a new chunk had a part."""
        return self._playback.at_border

    @property
    def starved_ticks(self) -> int:
        """Ticks of this episode that no chunk knew so far."""
        return self._playback.starved_ticks

    @property
    def latency(self) -> float:
        """Seconds from a request to its chunk, as expected of the next."""
        return self._playback.latency

    def close(self) -> None:
        """End the stream."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _noting_loss(self) -> Iterator[None]:
        try:
            yield
        except PolicyUnavailable as lost:
            self._playback.disconnected(lost)
            self._connection.lost(lost)

    def _take_arrived(self) -> None:
        """Take what came between two ticks: also the last chunk of a stream that has ended since."""
        stream = self._connection.current
        if stream is not None:
            with self._noting_loss():
                while self._take_one(stream, self._playback.seconds_before_tick(time.monotonic())):
                    pass

    def _connected_stream(self, give_up: float) -> ActionStream | None:
        """The stream, if there is one; an episode's first tick waits for it until ``give_up``."""
        wait = 0.0 if self._playback.has_chunk else max(0.0, give_up - time.monotonic())
        stream, is_new = self._connection.stream(wait, may_change=not self._playback.waits)
        if stream is None:
            self._playback.disconnected(self._connection.error)
        elif is_new:
            self._playback.connected()
        return stream

    def _receive(self, stream: ActionStream) -> None:
        """Take what has arrived, and wait for what this tick should wait for."""
        while (wait := self._playback.seconds_to_wait(time.monotonic())) > 0.0:
            if not self._take_one(stream, wait):
                return

    def _take_one(self, stream: ActionStream, wait: float) -> bool:
        """Take the next answer; whether there was one within ``wait`` seconds."""
        try:
            token, answer = stream.receive(wait)
        except ChunkTimeout:
            return False
        seconds = self._playback.take(token, answer, time.monotonic())
        if isinstance(answer, ActionChunk) and answer.reconnect:
            self._connection.renew()
        if seconds is not None and self._on_chunk and isinstance(answer, ActionChunk):
            self._on_chunk(answer, seconds)
        return True


class ControlRate:
    """Keeps the time of a control loop, on a monotonic clock.

    Args:
        hz: control ticks per second.
        max_ticks: the longest episode.

    Raises:
        ValueError: one of them makes no loop.
    """

    def __init__(self, hz: float, max_ticks: int) -> None:
        if not hz > 0.0 or max_ticks < 1:
            raise ValueError(f"rate_hz is {hz} and max_ticks {max_ticks}, expected above 0 and at least 1")
        self.hz = hz
        self.late_ticks = 0
        self._due = 0.0

    def start(self, now: float) -> None:
        """The first tick begins."""
        self._due = now

    def seconds_ahead(self, now: float) -> float:
        """A tick is done: seconds until the next one is due, 0 if it is already."""
        self._due += 1.0 / self.hz
        ahead = self._due - now
        if ahead > 0.0:
            return ahead
        self.late_ticks += 1
        self._due = now  # late ticks are not made up for by a burst of actions
        return 0.0
