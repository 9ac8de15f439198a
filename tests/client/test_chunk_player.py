"""The player executes a chunk's first actions, asks in time, and stops the robot when no chunk can be had."""

from __future__ import annotations

import copy
import os
import signal
import time
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
    PlaybackConfig,
    PolicyClient,
    PolicyUnavailable,
    RobotMismatch,
    UnsafeAction,
)
from chunkcast.client.lasting_stream import LastingStream
from chunkcast.client.private_server import PrivateServer
from chunkcast.client.robot import ActionCheck
from chunkcast.training.export.bundle_writer import write_bundle
from chunkcast.v1 import policy_pb2 as pb
from tests.conftest import ServeBundle
from tests.handmade_bundle import HISTORY, STATE_KEY, STATE_SIZE, echo_graph, echo_spec, write_echo_bundle


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


# Waits for every chunk, however long it takes: what is played does not depend on this machine's speed.
WAITING = PlaybackConfig(simulated_delay=0)


@pytest.mark.parametrize("execute_steps", [1, 2, 3])
def test_a_chunk_is_asked_for_every_execute_steps_ticks(client: PolicyClient, execute_steps: int) -> None:
    chunks: list[ActionChunk] = []
    config = PlaybackConfig(execute_steps=execute_steps, simulated_delay=0)
    with ChunkPlayer(client, config=config, on_chunk=lambda chunk, seconds: chunks.append(chunk)) as player:
        summary = player.run(CountingRobot(), "left", max_ticks=12, rate_hz=1000.0)
    assert (summary.ticks, summary.starved_ticks) == (12, 0)
    assert [chunk.step for chunk in chunks] == list(range(0, 12, execute_steps))
    # The policy saw every tick, though it was asked only at some: the player sends the ones in between as history.
    assert [[row[0] for row in chunk.actions] for chunk in chunks[2:]] == [
        [chunk.step - 2, chunk.step - 1, chunk.step] for chunk in chunks[2:]
    ]


def test_row_i_of_a_chunk_is_played_at_tick_step_plus_i(client: PolicyClient) -> None:
    robot = CountingRobot()
    with ChunkPlayer(client, config=PlaybackConfig(execute_steps=3, simulated_delay=0)) as player:
        player.run(robot, "left", max_ticks=6, rate_hz=1000.0)
    # Chunks echo the history: at tick 0 [0, 0, 0], at tick 3 [1, 2, 3].
    assert robot.acted == [0, 0, 0, 1, 2, 3]


def test_an_episode_begins_without_history(client: PolicyClient) -> None:
    with ChunkPlayer(client, config=WAITING) as player:
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


def test_a_robot_without_a_server_holds_and_is_then_stopped(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"))
    robot = CountingRobot()

    def kill_at_tick_4() -> bool:
        if len(robot.acted) == 4:
            server.process.kill()
            server.process.wait()
        return False

    config = PlaybackConfig(max_starved_ticks=5)
    with (
        PolicyClient(server.address) as client,
        ChunkPlayer(client, config=config) as player,
        pytest.raises(PolicyUnavailable, match="after 6 ticks without one: unavailable"),
    ):
        player.run(robot, "left", max_ticks=1000, until=kill_at_tick_4, rate_hz=100.0)
    assert robot.stops == 1
    # What was left of the chunk, then five times its last action.
    assert 4 + 5 <= len(robot.acted) <= 4 + HISTORY + 5
    assert len(set(robot.acted[-6:])) == 1


def test_a_robot_whose_server_hangs_is_stopped(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"))
    robot = CountingRobot()

    def freeze_at_tick_4() -> bool:
        if len(robot.acted) == 4:
            os.kill(server.process.pid, signal.SIGSTOP)
        return False

    try:
        with (
            PolicyClient(server.address) as client,
            ChunkPlayer(client, config=PlaybackConfig(starvation="stop")) as player,
            pytest.raises(ChunkTimeout, match="after 1 ticks without one: no answer in time"),
        ):
            player.run(robot, "left", max_ticks=1000, until=freeze_at_tick_4, rate_hz=100.0)
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    assert robot.stops == 1
    assert 4 <= len(robot.acted) <= 4 + HISTORY


def test_an_episode_goes_on_over_a_restart_without_a_tick_twice_or_missing(
    serve_bundle: ServeBundle, tmp_path: Path
) -> None:
    bundle = write_echo_bundle(tmp_path / "echo")
    first = serve_bundle(bundle)
    robot = CountingRobot()
    chunks: list[ActionChunk] = []
    restarted_after: list[int] = []

    def restart_at_tick_30() -> bool:
        if len(robot.acted) == 30 and not restarted_after:
            first.process.kill()
            first.process.wait()
            restarted_after.append(len(chunks))
            serve_bundle(bundle, "--listen", first.address)
        return len(chunks) >= restarted_after[0] + 10 if restarted_after else False

    config = PlaybackConfig(max_starved_ticks=1000)
    with (
        PolicyClient(first.address) as client,
        ChunkPlayer(client, config=config, on_chunk=lambda chunk, seconds: chunks.append(chunk)) as player,
    ):
        summary = player.run(robot, "left", max_ticks=2000, until=restart_at_tick_30, rate_hz=100.0)
    assert robot.stops == 1
    assert summary.ticks == len(robot.acted)
    steps = [chunk.step for chunk in chunks]
    assert steps == sorted(set(steps)), "a tick was asked for twice"
    assert steps[-1] > 30
    # The new server knows what the robot saw before it was there: the echo's rows are the ticks themselves.
    for chunk in chunks[1:]:
        assert [row[0] for row in chunk.actions] == [chunk.step - 2, chunk.step - 1, chunk.step]


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
    with ChunkPlayer(client, config=WAITING) as player:
        player.run(robot, "left", max_ticks=3, rate_hz=1000.0)
    assert robot.stops == 1


def test_a_player_goes_on_with_the_next_episode_after_a_restart(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    bundle = write_echo_bundle(tmp_path / "echo")
    first = serve_bundle(bundle)
    with PolicyClient(first.address) as client, ChunkPlayer(client, config=WAITING) as player:
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


@pytest.mark.parametrize("same_contract", [True, False])
def test_another_version_is_played_if_its_contract_is_the_same(
    serve_bundle: ServeBundle, tmp_path: Path, same_contract: bool
) -> None:
    first = serve_bundle(write_echo_bundle(tmp_path / "1", version="1"))
    robot = CountingRobot()
    with PolicyClient(first.address) as client, ChunkPlayer(client, config=WAITING, timeout=20.0) as player:
        first.process.kill()
        first.process.wait()
        spec = echo_spec(version="2")
        if not same_contract:
            spec.action.elements[0].high *= 2.0
        write_bundle(tmp_path / "2", echo_graph(), spec, overwrite=False)
        serve_bundle(tmp_path / "2", "--listen", first.address)
        if same_contract:
            player.run(robot, "left", max_ticks=2, rate_hz=1000.0)
        else:
            with pytest.raises(RobotMismatch, match="echo is now version 2 with another contract: action elements"):
                player.run(robot, "left", max_ticks=2, rate_hz=1000.0)
    assert len(robot.acted) == (2 if same_contract else 0)
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


def test_a_dead_successor_is_not_taken_for_a_connection(client: PolicyClient) -> None:
    spec = client.get_policy()
    stream = LastingStream(client, spec, "arm", timeout=5.0)
    first, _ = stream.stream(0.0, may_change=True)
    stream.renew()
    give_up = time.monotonic() + 20.0
    while stream._successor is None:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    # Both end while the robot asks nothing: a server that was restarted between two episodes.
    stream._successor.close()
    assert first is not None
    first.close()
    stream.lost(PolicyUnavailable("gone"))
    opened, is_new = stream.stream(20.0, may_change=True)
    assert opened is not None
    assert is_new
    assert not opened.over
    stream.close()
