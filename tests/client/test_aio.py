"""The asyncio face over the same core: the same episodes as the blocking one, and many robots in one loop."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from chunkcast.client import ActionChunk, ChunkPlayer, PlaybackConfig, PolicyClient, PolicyNotFound, PolicyUnavailable
from chunkcast.client.aio import AsyncChunkPlayer, AsyncPolicyClient
from chunkcast.client.private_server import PrivateServer
from tests.client.test_chunk_player import CountingRobot
from tests.conftest import ServeBundle
from tests.handmade_bundle import write_echo_bundle

WAITING = PlaybackConfig(execute_steps=2, simulated_delay=0)


def test_both_faces_play_the_same_episode(echo_server: PrivateServer) -> None:
    blocking, asynchronous = CountingRobot(), CountingRobot()
    with PolicyClient(echo_server.address) as client, ChunkPlayer(client, config=WAITING) as player:
        player.run(blocking, "left", max_ticks=11, rate_hz=1000.0)

    async def play() -> None:
        async with (
            AsyncPolicyClient(echo_server.address) as client,
            await AsyncChunkPlayer.open(client, config=WAITING) as player,
        ):
            await player.run(asynchronous, "left", max_ticks=11, rate_hz=1000.0)

    asyncio.run(play())
    assert asynchronous.acted == blocking.acted
    assert asynchronous.stops == 1


def test_many_robots_in_one_loop(echo_server: PrivateServer) -> None:
    robots = [CountingRobot() for _ in range(16)]

    async def play() -> None:
        async with AsyncPolicyClient(echo_server.address) as client:
            await client.wait_until_ready(10.0)
            players = [await AsyncChunkPlayer.open(client, config=WAITING) for _ in robots]
            await asyncio.gather(
                *(
                    player.run(robot, "left", max_ticks=20, rate_hz=200.0)
                    for player, robot in zip(players, robots, strict=True)
                )
            )
            for player in players:
                await player.close()
            await client.report_episode(outcome="success", task="left", steps=20)

    asyncio.run(play())
    assert all(robot.acted == robots[0].acted for robot in robots)


def test_an_unknown_policy_and_an_absent_server_are_named(echo_server: PrivateServer) -> None:
    async def unknown() -> None:
        async with AsyncPolicyClient(echo_server.address) as client:
            with pytest.raises(PolicyNotFound, match="'other' is not served here"):
                await client.stream("other")
            with pytest.raises(PolicyNotFound, match="version '9' of echo is not loaded"):
                await client.stream("echo", policy_version="9")

    async def absent() -> None:
        async with AsyncPolicyClient("127.0.0.1:1") as client:
            with pytest.raises(PolicyUnavailable, match="no server is ready"):
                await client.wait_until_ready(0.3)
            with pytest.raises(PolicyUnavailable):
                await client.get_policy()

    asyncio.run(unknown())
    asyncio.run(absent())


def test_an_episode_goes_on_over_a_restart(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    bundle = write_echo_bundle(tmp_path / "echo")
    first = serve_bundle(bundle)
    robot = CountingRobot()
    steps: list[int] = []
    restarted_at: list[int] = []

    def restart() -> bool:
        if len(robot.acted) == 20 and not restarted_at:
            first.process.kill()
            first.process.wait()
            restarted_at.append(len(steps))
            serve_bundle(bundle, "--listen", first.address)
        return bool(restarted_at) and len(steps) >= restarted_at[0] + 5

    async def play() -> None:
        config = PlaybackConfig(max_starved_ticks=1000)
        async with (
            AsyncPolicyClient(first.address) as client,
            await AsyncChunkPlayer.open(
                client, config=config, on_chunk=lambda chunk, seconds: steps.append(chunk.step)
            ) as player,
        ):
            await player.run(robot, "left", max_ticks=2000, until=restart, rate_hz=100.0)

    asyncio.run(play())
    assert steps == sorted(set(steps))
    assert steps[-1] > 20
    assert robot.stops == 1


def test_a_robot_without_a_server_is_stopped(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"))
    robot = CountingRobot()

    def kill() -> bool:
        if len(robot.acted) == 4:
            server.process.kill()
            server.process.wait()
        return False

    async def play() -> None:
        async with (
            AsyncPolicyClient(server.address) as client,
            await AsyncChunkPlayer.open(client, config=PlaybackConfig(max_starved_ticks=3)) as player,
        ):
            with pytest.raises(PolicyUnavailable, match="after 4 ticks without one"):
                await player.run(robot, "left", max_ticks=1000, until=kill, rate_hz=100.0)

    asyncio.run(play())
    assert robot.stops == 1


def test_the_asyncio_player_moves_to_another_connection_in_time(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"), "--max-connection-age", "1")
    streams: set[str] = set()
    hinted = 0

    def count(chunk: ActionChunk, seconds: float) -> None:
        nonlocal hinted
        hinted += chunk.reconnect

    async def play() -> None:
        async with (
            AsyncPolicyClient(server.address) as client,
            await AsyncChunkPlayer.open(client, timeout=20.0, on_chunk=count) as player,
        ):
            player.begin_episode("left")
            give_up = time.monotonic() + 20.0
            while len(streams) < 3:
                assert time.monotonic() < give_up
                await player.next_action(CountingRobot().observe())
                assert player._stream is not None, "the robot never is without a stream"
                streams.add(player._stream.stream_id)
                await asyncio.sleep(0.02)

    asyncio.run(play())
    assert hinted >= 2
