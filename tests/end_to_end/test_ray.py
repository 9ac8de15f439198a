"""Two replicas on Ray Serve: the robot's client as it is, a replica killed in mid-episode, statuses and metrics."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from benchmarks.ray_replicas import Replicas
from chunkcast.client import ChunkPlayer, PlaybackConfig, PolicyClient, PolicyNotFound
from chunkcast.client.chunk_player import ControlRate
from chunkcast.client.sim.metaworld_robot import MetaWorldRobot
from chunkcast.simulation.metaworld_tasks import MAX_EPISODE_STEPS
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1 import policy_pb2_grpc as pb_grpc
from tests.conftest import SHIPPED_BUNDLE

SERVE = Path(sys.executable).parent / "chunkcast-serve"
REPLICAS = 2


@dataclass
class OnRay:
    address: str
    replicas: Replicas
    process: subprocess.Popen[str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def on_ray() -> Iterator[OnRay]:
    port, http, metrics = free_port(), free_port(), free_port()
    command = [
        *(str(SERVE), "--ray", "--insecure", "--bundle", str(SHIPPED_BUNDLE), "--replicas", str(REPLICAS)),
        *("--listen", f"0.0.0.0:{port}", "--ray-http-port", str(http), "--metrics-listen", f"127.0.0.1:{metrics}"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("ready"), process.stderr and process.stderr.read()
        yield OnRay(f"127.0.0.1:{port}", Replicas(metrics, REPLICAS), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        process.stderr.close() if process.stderr else None


def test_the_client_is_served_as_by_the_plain_server(on_ray: OnRay) -> None:
    with PolicyClient(on_ray.address) as client:
        client.wait_until_ready(30.0)
        spec = client.get_policy()
        assert spec.name == "metaworld-six"
        with pytest.raises(PolicyNotFound, match="'nothing' is not served here; expected one of: metaworld-six"):
            client.get_policy("nothing")
        with pytest.raises(PolicyNotFound, match="'nothing' is not served here"):
            client.stream("nothing")


def test_a_call_that_makes_no_sense_gets_its_status(on_ray: OnRay) -> None:
    with grpc.insecure_channel(on_ray.address) as channel:
        stub = pb_grpc.PolicyServiceStub(channel)
        request = pb.StreamActionsRequest(observation=pb.Observation())
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.StreamActions(iter([request])))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "the first request must open the stream" in (refused.value.details() or "")
        assert "Traceback" not in (refused.value.details() or "")
        with pytest.raises(grpc.RpcError) as refused:
            stub.PredictChunk(pb.PredictChunkRequest())
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_replica_that_is_killed_costs_no_episode(on_ray: OnRay) -> None:
    config = PlaybackConfig(starvation="decelerate", max_starved_ticks=80 * 30)
    on_ray.replicas.wait()
    before = on_ray.replicas.chunks()
    with PolicyClient(on_ray.address) as client, ChunkPlayer(client, config=config, timeout=10.0) as player:
        robot = MetaWorldRobot("drawer-close-v3")
        for seed in (500_000, 500_001):
            robot.begin_episode(seed)
            player.begin_episode("drawer-close-v3", noise_seed=seed, episode_id=f"ray-{seed}")
            rate = ControlRate(player.spec.action.control_rate_hz, MAX_EPISODE_STEPS)
            rate.start(time.monotonic())
            while not robot.done:
                if robot.steps == 20:
                    then = on_ray.replicas.chunks()
                    killed = on_ray.replicas.kill_the_one_that_serves(before)
                robot.act(player.next_action(robot.observe()))
                time.sleep(rate.seconds_ahead(time.monotonic()))
            assert robot.success
            # The arm's stream was cut, and another replica answered it from then on.
            now = on_ray.replicas.chunks()
            assert any(now.get(port, 0.0) > chunks for port, chunks in then.items() if port != killed)
            on_ray.replicas.wait()
            before = on_ray.replicas.chunks()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ray"], "pass --insecure on a network that you trust"),
        (["--replicas", "2"], "go with --ray"),
        (["--ray", "--insecure"], "Ray's proxy listens on all"),
        (["--ray", "--insecure", "--listen", "0.0.0.0:0"], "name one with --listen"),
        (
            ["--ray", "--insecure", "--ray-address", "ray://head:10001"],
            "serve from one that is, with --ray-address auto",
        ),
        (
            ["--ray", "--insecure", "--listen", "0.0.0.0:1", "--token-file", "x"],
            "--token-file is for this server's own ports",
        ),
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], message: str) -> None:
    command = [str(SERVE), "--bundle", str(SHIPPED_BUNDLE), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = ["--listen", f"0.0.0.0:{free_port()}", "--ray-http-port", str(taken.getsockname()[1])]
        command = [str(SERVE), "--ray", "--insecure", "--bundle", str(SHIPPED_BUNDLE), *ports]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"--ray-http-port: port {ports[-1]} cannot be had" in done.stderr


def test_a_bundle_that_cannot_be_served_is_said_in_one_line(tmp_path: Path) -> None:
    command = [str(SERVE), "--ray", "--insecure", "--listen", f"0.0.0.0:{free_port()}", "--bundle", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "policy.json" in done.stderr
    assert "Traceback" not in done.stderr
