"""A simulated arm at its control rate, on a thread of its own, that writes down what it does at each tick."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from benchmarks.chaos.timeline import Did, Tick, Timeline
from chunkcast.client import ActionChunk, ChunkcastError, ChunkPlayer, Credentials, PlaybackConfig, PolicyClient
from chunkcast.client.chunk_player import ControlRate
from chunkcast.client.sim.metaworld_robot import MetaWorldRobot

HAND = ("hand_dx", "hand_dy", "hand_dz")

PATIENT = PlaybackConfig(starvation="decelerate", rest_elements=HAND, decelerate_ticks=8, max_starved_ticks=80 * 60)
"""Comes to rest within a tenth of a second, the gripper as it was, and waits for up to a minute."""

TICKS = 10**9


class Arm:
    """Plays a task again and again, from one seed to the next, until the block ends.

    Args:
        address: HOST:PORT of the server.
        task: a MetaWorld task.
        instruction: for it.
        config: how chunks are played.
        credentials: for the server.

    Attributes:
        timeline: what it did.
    """

    def __init__(
        self,
        address: str,
        *,
        task: str = "drawer-open-v3",
        config: PlaybackConfig = PATIENT,
        credentials: Credentials | None = None,
        seed: int = 500_000,
    ) -> None:
        self.timeline = Timeline()
        self._task, self._seed = task, seed
        self._client = PolicyClient(address, credentials=credentials, timeout=30.0)
        self._player = ChunkPlayer(self._client, robot_id="arm", config=config, timeout=10.0, on_chunk=self._count)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="arm", daemon=True)
        self._failure: BaseException | None = None
        self._version = ""

    def _count(self, chunk: ActionChunk, seconds: float) -> None:
        self.timeline.chunk_at.append(time.monotonic())
        self._version = chunk.policy_version

    def _run(self) -> None:
        try:
            self._play()
        except BaseException as error:
            self._failure = error

    def _play(self) -> None:
        robot, seed = MetaWorldRobot(self._task), self._seed
        rate = ControlRate(self._player.spec.action.control_rate_hz, TICKS)
        while not self._over.is_set():
            robot.begin_episode(seed)
            self._player.begin_episode(self._task, noise_seed=seed)
            seed += 1
            episode = seed
            rate.start(time.monotonic())
            starved = 0
            while not robot.done and not self._over.is_set():
                try:
                    action = self._player.next_action(robot.observe())
                except ChunkcastError as error:
                    robot.safe_stop()
                    self.timeline.ticks.append(Tick(time.monotonic(), "stopped", self._version, episode))
                    self.timeline.errors.append(str(error))
                    break  # a person would look at it; here the next episode begins
                robot.act(action)
                rested, starved = self._player.starved_ticks > starved, self._player.starved_ticks
                did: Did = "rested" if rested else "played"
                self.timeline.ticks.append(Tick(time.monotonic(), did, self._version, episode))
                time.sleep(rate.seconds_ahead(time.monotonic()))

    def wait_for_chunks(self, count: int, timeout: float = 60.0) -> None:
        """Until ``count`` more chunks have arrived."""
        goal, give_up = len(self.timeline.chunk_at) + count, time.monotonic() + timeout
        while len(self.timeline.chunk_at) < goal:
            if self._failure is not None:
                raise RuntimeError("the arm's program failed") from self._failure
            if time.monotonic() > give_up:
                raise TimeoutError(f"the arm had {len(self.timeline.chunk_at)} of {goal} chunks; {self._state()}")
            time.sleep(0.01)

    def _state(self) -> str:
        return f"its last ticks: {[tick.did for tick in self.timeline.ticks[-5:]]}; {self.timeline.errors[-1:]}"

    @property
    def latency(self) -> float:
        """Seconds from a request to its chunk, as its player expects of the next."""
        return self._player.latency

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait_for_chunks(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._player.close()
        self._client.close()
        if self._failure is not None and error is None:
            raise RuntimeError("the arm's program failed") from self._failure
