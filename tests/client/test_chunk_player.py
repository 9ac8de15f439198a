"""The player executes a chunk's first actions, asks in time, and stops the robot when no chunk can be had."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from chunkcast.client import (
    ActionChunk,
    ChunkPlayer,
    ChunkTimeout,
    ObservationError,
    PolicyClient,
    PolicyUnavailable,
    RobotMismatch,
    UnsafeAction,
)
from chunkcast.client.robot import ActionCheck
from chunkcast.client.sim.private_server import PrivateServer
from chunkcast.v1 import policy_pb2 as pb
from tests.conftest import ServeBundle
from tests.handmade_bundle import HISTORY, STATE_KEY, STATE_SIZE, echo_spec, write_echo_bundle


class CountingRobot:
    """A robot whose state is its tick."""

    def __init__(self) -> None:
        self.acted: list[float] = []
        self.stops = 0

    def observe(self) -> Mapping[str, npt.NDArray[Any]]:
        return {STATE_KEY: np.full(STATE_SIZE, len(self.acted), np.float32)}

    def act(self, action: npt.NDArray[np.float32]) -> None:
        assert action.shape == (STATE_SIZE,)
        self.acted.append(float(action[0]))

    def safe_stop(self) -> None:
        self.stops += 1


@pytest.fixture
def client(echo_server: PrivateServer) -> Iterator[PolicyClient]:
    with PolicyClient(echo_server.address) as client:
        yield client


@pytest.mark.parametrize("execute_steps", [1, 2, 3])
def test_a_chunk_is_asked_for_every_execute_steps_ticks(client: PolicyClient, execute_steps: int) -> None:
    chunks: list[ActionChunk] = []
    player = ChunkPlayer(client, execute_steps=execute_steps, on_chunk=lambda chunk, seconds: chunks.append(chunk))
    with player:
        summary = player.run(CountingRobot(), "left", max_ticks=12, rate_hz=1000.0)
    assert summary.ticks == 12
    assert [chunk.step for chunk in chunks] == list(range(0, 12, execute_steps))
    # The policy saw every tick, though it was asked only at some: the player sends the ones in between as history.
    assert [[row[0] for row in chunk.actions] for chunk in chunks[2:]] == [
        [chunk.step - 2, chunk.step - 1, chunk.step] for chunk in chunks[2:]
    ]


def test_row_i_of_a_chunk_is_played_at_tick_step_plus_i(client: PolicyClient) -> None:
    robot = CountingRobot()
    with ChunkPlayer(client, execute_steps=3) as player:
        player.run(robot, "left", max_ticks=6, rate_hz=1000.0)
    # Chunks echo the history: at tick 0 [0, 0, 0], at tick 3 [1, 2, 3].
    assert robot.acted == [0, 0, 0, 1, 2, 3]


def test_an_episode_begins_without_history(client: PolicyClient) -> None:
    with ChunkPlayer(client) as player:
        player.run(CountingRobot(), "left", max_ticks=5, rate_hz=1000.0)
        robot = CountingRobot()
        player.run(robot, "right", max_ticks=2, rate_hz=1000.0)
    assert robot.acted == [0, 0]


def test_execute_steps_beyond_the_horizon_are_refused(client: PolicyClient) -> None:
    with pytest.raises(ValueError, match=f"execute_steps is {HISTORY + 1}, expected 1 to {HISTORY}"):
        ChunkPlayer(client, execute_steps=HISTORY + 1)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({"camera": np.zeros(4, np.float32)}, r"the robot observes \['camera'\], policy echo expects"),
        ({STATE_KEY: np.zeros(4)}, r"is float64 \[4\], policy echo expects float32 \[4\]"),
        ({STATE_KEY: [0.0] * 4}, r"is a list, policy echo expects a numpy array of float32 \[4\]"),
        ({STATE_KEY: np.zeros(7, np.float32)}, r"is float32 \[7\], policy echo expects float32 \[4\]"),
    ],
)
def test_a_robot_that_does_not_fit_is_told_before_it_moves(
    client: PolicyClient, observation: dict[str, npt.NDArray[Any]], message: str
) -> None:
    with ChunkPlayer(client) as player:
        player.begin_episode("left")
        with pytest.raises(RobotMismatch, match=message):
            player.next_action(observation)


def test_the_robot_is_stopped_when_the_server_dies(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"))
    robot = CountingRobot()

    def kill_at_tick_4() -> bool:
        if len(robot.acted) == 4:
            server.process.kill()
            server.process.wait()
        return False

    with (
        PolicyClient(server.address) as client,
        ChunkPlayer(client) as player,
        pytest.raises(PolicyUnavailable),
    ):
        player.run(robot, "left", max_ticks=100, until=kill_at_tick_4, rate_hz=1000.0)
    assert robot.stops == 1
    assert len(robot.acted) == 4


def test_the_robot_is_stopped_when_the_server_hangs(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"))
    robot = CountingRobot()

    def freeze_at_tick_4() -> bool:
        if len(robot.acted) == 4:
            os.kill(server.process.pid, signal.SIGSTOP)
        return False

    try:
        with (
            PolicyClient(server.address) as client,
            ChunkPlayer(client, timeout=0.2) as player,
            pytest.raises(ChunkTimeout, match="no answer in time"),
        ):
            player.run(robot, "left", max_ticks=100, until=freeze_at_tick_4, rate_hz=1000.0)
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    assert robot.stops == 1
    assert len(robot.acted) == 4


def test_a_late_answer_is_not_taken_for_the_next_one(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"))
    observation = {STATE_KEY: np.zeros(STATE_SIZE, np.float32)}
    with PolicyClient(server.address) as client, client.stream() as stream:
        stream.request(observation, episode_id="e", step=0, instruction="left")
        os.kill(server.process.pid, signal.SIGSTOP)
        with pytest.raises(ChunkTimeout):
            stream.request(observation, episode_id="e", step=1, timeout=0.1)
        os.kill(server.process.pid, signal.SIGCONT)
        assert stream.request(observation, episode_id="e", step=2).step == 2


def test_a_late_answer_to_the_same_step_is_not_taken_for_the_retry(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"))
    observation = {STATE_KEY: np.zeros(STATE_SIZE, np.float32)}
    with PolicyClient(server.address) as client, client.stream() as stream:
        os.kill(server.process.pid, signal.SIGSTOP)
        with pytest.raises(ChunkTimeout):
            stream.request(observation, episode_id="e", step=1, instruction="left", timeout=0.1)
        os.kill(server.process.pid, signal.SIGCONT)
        with pytest.raises(ObservationError, match="step 1 is not above 1"):
            stream.request(observation, episode_id="e", step=1)


def test_a_refused_memory_is_told_by_the_next_request(client: PolicyClient) -> None:
    good, bad = (np.full(STATE_SIZE, value, np.float32) for value in (1.0, np.nan))
    with client.stream() as stream:
        stream.remember({STATE_KEY: bad}, episode_id="e", step=0, instruction="left")
        with pytest.raises(ObservationError, match="at index"):
            stream.request({STATE_KEY: good}, episode_id="e", step=1, instruction="left")
        # The chunk of step 1 was computed without that tick; it is not taken for the answer to step 2.
        assert stream.request({STATE_KEY: good}, episode_id="e", step=2).step == 2


def test_the_robot_is_stopped_at_the_end_of_a_run(client: PolicyClient) -> None:
    robot = CountingRobot()
    with ChunkPlayer(client) as player:
        player.run(robot, "left", max_ticks=3, rate_hz=1000.0)
    assert robot.stops == 1


def test_a_player_goes_on_with_the_next_episode_after_a_restart(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    bundle = write_echo_bundle(tmp_path / "echo")
    first = serve_bundle(bundle)
    with PolicyClient(first.address) as client, ChunkPlayer(client) as player:
        player.run(CountingRobot(), "left", max_ticks=2, rate_hz=1000.0)
        first.process.kill()
        first.process.wait()
        with pytest.raises(PolicyUnavailable):
            player.run(CountingRobot(), "left", max_ticks=2, rate_hz=1000.0)
        serve_bundle(bundle, "--listen", first.address)
        client.wait_until_ready(20)
        robot = CountingRobot()
        player.run(robot, "left", max_ticks=2, rate_hz=1000.0)
    assert len(robot.acted) == 2


def test_a_player_does_not_play_another_version(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    first = serve_bundle(write_echo_bundle(tmp_path / "1", version="1", name="echo"))
    with PolicyClient(first.address) as client, ChunkPlayer(client) as player:
        first.process.kill()
        first.process.wait()
        serve_bundle(write_echo_bundle(tmp_path / "2", version="2", name="echo"), "--listen", first.address)
        client.wait_until_ready(20)
        robot = CountingRobot()
        with pytest.raises(PolicyUnavailable, match="echo is now version 2; this player was made for version 1"):
            player.run(robot, "left", max_ticks=2, rate_hz=1000.0)
    assert robot.acted == []
    assert robot.stops == 1


@pytest.mark.parametrize("actions", [np.zeros((HISTORY, 3)), np.zeros((2, STATE_SIZE)), np.full((HISTORY, 4), 1e9)])
def test_chunks_that_are_not_the_policys_are_not_executed(actions: npt.NDArray[np.float64]) -> None:
    check = ActionCheck(echo_spec())
    check(ActionChunk(0, np.zeros((HISTORY, STATE_SIZE), np.float32), "1", 0.0, 0.0))
    with pytest.raises(UnsafeAction, match="nothing was executed"):
        check(ActionChunk(0, actions.astype(np.float32), "1", 0.0, 0.0))


def test_errors_survive_the_way_between_processes() -> None:
    error = UnsafeAction(pb.ERROR_CODE_UNSAFE_ACTION, "nan")
    copied = copy.copy(error)  # by way of __reduce__, as between processes
    assert (type(copied), copied.code, str(copied)) == (UnsafeAction, pb.ERROR_CODE_UNSAFE_ACTION, "nan")


def test_an_absent_server_is_named() -> None:
    with (
        PolicyClient("127.0.0.1:1") as client,
        pytest.raises(PolicyUnavailable, match=r"no server is ready at 127.0.0.1:1 after 0.5 s \(.*refused"),
    ):
        client.wait_until_ready(0.5)
