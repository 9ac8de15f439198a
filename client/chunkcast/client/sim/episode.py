"""One simulated episode against a server, in a worker process of its own.

A worker process holds one connection and one stream for all its episodes, and one environment a task: it is a robot.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from chunkcast.client import ActionChunk, ChunkPlayer, Credentials, ObservationError, PlaybackConfig, PolicyClient
from chunkcast.client.sim.captions import captioned
from chunkcast.client.sim.episode_health import EpisodeHealth, episode_health
from chunkcast.client.sim.faults import Fault, FaultyRobot
from chunkcast.client.sim.metaworld_robot import MetaWorldRobot, told_entries
from chunkcast.client.sim.phrasing import task_of
from chunkcast.client.sim.trace import Trace
from chunkcast.simulation.cameras import Camera
from chunkcast.simulation.policy_cameras import policy_cameras
from chunkcast.v1 import policy_pb2 as pb

CONNECT_SECONDS = 10.0
CHUNK_SECONDS = 30.0
"""A simulation waits for its chunk; only a server that is gone takes this long."""


@dataclass(frozen=True)
class EpisodeJob:
    """What to play.

    Attributes:
        task, seed: name the episode.
        instruction: what the policy is told.
        fault: what is wrong with the robot, or ``None``.
        video: film to write, or ``None``.
        trace: file for every observation that was sent and the chunk that came back, or ``None``.
    """

    task: str
    seed: int
    instruction: str
    fault: Fault | None = None
    video: Path | None = None
    trace: Path | None = None


@dataclass(frozen=True)
class EpisodeResult:
    """What came of it.

    Attributes:
        task, seed: of the job.
        success: MetaWorld's own verdict.
        steps: control ticks played.
        border_jumps: ``|a_t - a_{t-1}|`` (Euclidean, action units) at each tick where a new chunk began to be played.
        other_jumps: the same at all other ticks: how much the policy's actions change anyway.
        chunk_seconds: what each chunk took, as the robot saw it.
        inference_seconds: what the server's session took of that.
        health: how the server judged it.
        instruction: what the policy was told.
        refusal: the server's words where it took that for none of the policy's instructions: nothing was played.
    """

    task: str
    seed: int
    success: bool
    steps: int
    border_jumps: list[float]
    other_jumps: list[float]
    chunk_seconds: list[float]
    inference_seconds: list[float]
    health: EpisodeHealth
    instruction: str
    refusal: str = ""


class SimulatedRobot:
    """This process's robot.

    Args:
        target: HOST:PORT of the server.
        policy: its name; empty for a server's only one.
        playback: how its chunks are played.
        credentials: for the server.
    """

    def __init__(
        self, target: str, policy: str, playback: PlaybackConfig, credentials: Credentials | None = None
    ) -> None:
        self._robot_id = f"metaworld-{os.getpid()}"
        self._client = PolicyClient(target, credentials=credentials)
        self._client.wait_until_ready(CONNECT_SECONDS)
        self._chunks: list[ActionChunk] = []
        self._seconds: list[float] = []
        self._player = ChunkPlayer(
            self._client,
            policy,
            robot_id=self._robot_id,
            config=playback,
            timeout=CHUNK_SECONDS,
            on_chunk=self._count,
        )
        spec = self._player.spec
        self._cameras = policy_cameras(spec)
        self._state_entries = told_entries(spec)
        known = [(task_of(each), each.text) for each in self._player.spec.instructions]
        self._others = {task: [text for other, text in known if other != task] for task, _ in known}

    def play(self, job: EpisodeJob) -> EpisodeResult:
        """Play one episode and report its outcome to the server."""
        robot = _environment(job.task, self._cameras, self._state_entries)
        robot.begin_episode(job.seed)
        faulty = FaultyRobot(robot, job.fault, job.seed) if job.fault else None
        instruction = faulty.instruction(job.instruction, self._others[job.task]) if faulty else job.instruction
        arm = faulty or robot
        trace = Trace() if job.trace else None
        self._chunks.clear()
        self._seconds.clear()
        # The same seed for the simulation and the sampler: the whole episode follows from its seed.
        episode_id = self._player.begin_episode(
            instruction, episode_id=f"{job.task}/{job.seed}/{os.urandom(4).hex()}", noise_seed=job.seed
        )
        frames = []
        border_jumps: list[float] = []
        other_jumps: list[float] = []
        last = None
        refusal = ""
        while not robot.done:
            observation = arm.observe()
            try:
                action = self._player.next_action(observation)
            except ObservationError as error:
                # Words that mean nothing to the policy: nothing is played, and the task is not done.
                if error.code != pb.ERROR_CODE_UNKNOWN_INSTRUCTION or robot.steps:
                    raise
                refusal = str(error)
                break
            if trace is not None:
                trace.add(observation, robot.steps, self._chunks)
            arm.act(action)
            if last is not None:
                jumps = border_jumps if self._player.at_border else other_jumps
                jumps.append(float(np.linalg.norm(action - last)))
            last = action
            if job.video and robot.steps % FRAME_EVERY == 0:
                frames.append(
                    captioned(
                        robot.render(FRAME_SIZE),
                        title=job.task,
                        seconds=self._seconds[-1] if self._seconds else None,
                        health=self._chunks[-1].health if self._chunks else None,
                        solved=robot.success,
                    )
                )
        self._client.report_episode(
            policy=self._player.spec.name,
            policy_version=self._chunks[-1].policy_version if self._chunks else "",
            episode_id=episode_id,
            robot_id=self._robot_id,
            task=job.task,
            outcome="success" if robot.success else "failure",
            steps=robot.steps,
        )
        if trace is not None and job.trace and not refusal:
            trace.write(job.trace, instruction=instruction, success=robot.success)
        if job.video and frames:
            from chunkcast.client.sim.video import write_video

            write_video(job.video, frames, self._player.spec.action.control_rate_hz / FRAME_EVERY)
        return EpisodeResult(
            job.task,
            job.seed,
            robot.success,
            robot.steps,
            border_jumps,
            other_jumps,
            list(self._seconds),
            [chunk.inference_seconds for chunk in self._chunks],
            episode_health(self._chunks),
            instruction,
            refusal,
        )

    def _count(self, chunk: ActionChunk, seconds: float) -> None:
        self._chunks.append(chunk)
        self._seconds.append(seconds)


FRAME_EVERY = 4
"""Control ticks a video frame: 80 ticks a second make 20 frames a second."""
FRAME_SIZE = 320

_robot: SimulatedRobot | None = None


def start_worker(target: str, policy: str, playback: PlaybackConfig, credentials: Credentials) -> None:
    """A worker process's beginning: leave Ctrl-C to the parent, end with it however it ends, connect."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, name="follow-parent", daemon=True).start()
    connect_worker(target, policy, playback, credentials)


def connect_worker(target: str, policy: str, playback: PlaybackConfig, credentials: Credentials) -> None:
    """Connect a process, whoever started it."""
    global _robot  # noqa: PLW0603 (a pool's worker has no other place for its connection)
    _robot = SimulatedRobot(target, policy, playback, credentials)


def play_episode(job: EpisodeJob) -> EpisodeResult:
    """Play ``job`` on this process's robot."""
    assert _robot is not None
    return _robot.play(job)


@cache
def _environment(task: str, cameras: tuple[Camera, ...], state_entries: int) -> MetaWorldRobot:
    """One environment a task and process: making one takes half a second, resetting it 8 ms."""
    return MetaWorldRobot(task, cameras, state_entries)
