"""Plays action chunks: which action a robot executes at this tick, and when a new chunk is asked for."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from chunkcast.client.action_stream import ActionChunk, ActionStream, Observation
from chunkcast.client.errors import PolicyUnavailable
from chunkcast.client.policy_client import PolicyClient
from chunkcast.client.robot import ActionCheck, Robot, check_observation
from chunkcast.v1 import policy_pb2 as pb


@dataclass(frozen=True)
class EpisodeSummary:
    """How a run of the control loop went.

    Attributes:
        episode_id: as the server knows it.
        ticks: control ticks played.
        late_ticks: ticks that began after their time, because a chunk or the robot took too long.
    """

    episode_id: str
    ticks: int
    late_ticks: int


class ChunkPlayer:
    """Executes the first actions of a chunk, then asks for the next one with the newest observation.

    Asking blocks for one round trip (a millisecond for a small policy) and at most for ``timeout``.

    Args:
        client: connected to a server; stays the caller's to close.
        policy: the policy's name; empty for a server's only one.
        robot_id: who is calling, for the server's log.
        execute_steps: actions of a chunk to execute, 1 to the horizon; by default what the policy advises.
        timeout: seconds to wait for a chunk: how long the robot may go without a command before it is stopped.
        on_chunk: called with each chunk and the seconds that it took, as the robot saw them.

    Raises:
        PolicyNotFound, PolicyUnavailable, ChunkTimeout: the stream could not be opened.
        ValueError: ``execute_steps`` is beyond the policy's horizon.
    """

    def __init__(
        self,
        client: PolicyClient,
        policy: str = "",
        *,
        robot_id: str = "",
        execute_steps: int | None = None,
        timeout: float = 0.5,
        on_chunk: Callable[[ActionChunk, float], None] | None = None,
    ) -> None:
        self.spec: pb.PolicySpec = client.get_policy(policy)
        self._execute_steps = self.spec.action.execute_steps if execute_steps is None else execute_steps
        if not 1 <= self._execute_steps <= self.spec.action.horizon:
            raise ValueError(
                f"execute_steps is {execute_steps}, expected 1 to {self.spec.action.horizon}, the policy's horizon"
            )
        if not timeout > 0.0:
            raise ValueError(f"timeout is {timeout}, expected seconds above 0")
        self._check_actions = ActionCheck(self.spec)
        self._on_chunk = on_chunk
        self._client, self._robot_id, self._timeout = client, robot_id, timeout
        self._stream = self._open_stream()
        self.begin_episode("")

    def begin_episode(self, instruction: str, *, episode_id: str | None = None, noise_seed: int | None = None) -> str:
        """Forget the chunk and the history, and open another stream if the last one is over; returns the episode's id.

        Args:
            instruction: one of the policy's, or empty for a policy that needs none.
            episode_id: a name for the episode; a random one by default.
            noise_seed: makes every chunk of the episode reproducible.

        Raises:
            PolicyNotFound, PolicyUnavailable, ChunkTimeout: another stream could not be opened.
        """
        if self._stream.over:
            self._stream.close()
            self._stream = self._open_stream()
        self._instruction, self._noise_seed = instruction, noise_seed
        self.episode_id = episode_id or uuid.uuid4().hex
        self._step = -1
        self._chunk: ActionChunk | None = None
        return self.episode_id

    def next_action(self, observation: Observation) -> npt.NDArray[np.float32]:
        """The action, float32 ``[action size]``, for this tick. Call once a tick.

        Args:
            observation: what the robot sees now.

        Raises:
            RobotMismatch: the episode's first observation is not what the policy expects.
            ChunkcastError: no chunk could be had; hold or stop the robot.
        """
        self._step += 1
        if self._step == 0:
            check_observation(self.spec, observation)
        if self._chunk is None or self._step - self._chunk.step >= self._execute_steps:
            self._chunk = self._request(observation)
        elif self._next_request_sees(self._step):
            self._stream.remember(
                observation, episode_id=self.episode_id, step=self._step, instruction=self._instruction
            )
        action: npt.NDArray[np.float32] = self._chunk.actions[self._step - self._chunk.step]
        return action

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
            ChunkcastError: no chunk could be had.
            ValueError: ``rate_hz`` or ``max_ticks`` makes no loop.

        The robot's ``safe_stop`` has been called when this returns or raises.
        """
        late_ticks = tick = 0
        try:
            rate_hz = self.spec.action.control_rate_hz if rate_hz is None else rate_hz
            if not rate_hz > 0.0 or max_ticks < 1:
                raise ValueError(f"rate_hz is {rate_hz} and max_ticks {max_ticks}, expected above 0 and at least 1")
            episode_id = self.begin_episode(instruction)
            due = time.monotonic()
            while tick < max_ticks and not until():
                robot.act(self.next_action(robot.observe()))
                tick += 1
                due += 1.0 / rate_hz
                ahead = due - time.monotonic()
                if ahead > 0.0:
                    time.sleep(ahead)
                else:
                    late_ticks += 1
                    due -= ahead  # late ticks are not made up for by a burst of actions
        finally:
            robot.safe_stop()
        return EpisodeSummary(episode_id, tick, late_ticks)

    def _open_stream(self) -> ActionStream:
        stream = self._client.stream(self.spec.name, robot_id=self._robot_id, timeout=self._timeout)
        if stream.policy_version != self.spec.version:
            stream.close()
            raise PolicyUnavailable(
                f"{self.spec.name} is now version {stream.policy_version}; this player was made for version "
                f"{self.spec.version}, make another"
            )
        return stream

    def close(self) -> None:
        """End the stream."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, observation: Observation) -> ActionChunk:
        asked = time.perf_counter()
        chunk = self._stream.request(
            observation,
            episode_id=self.episode_id,
            step=self._step,
            instruction=self._instruction,
            noise_seed=self._noise_seed,
        )
        self._check_actions(chunk)
        if self._on_chunk:
            self._on_chunk(chunk, time.perf_counter() - asked)
        return chunk

    def _next_request_sees(self, step: int) -> bool:
        """Whether the observation of ``step`` will be in the history of the next chunk's request."""
        assert self._chunk is not None
        next_request = self._chunk.step + self._execute_steps
        return step > next_request - self.spec.observation_steps
