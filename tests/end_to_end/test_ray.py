"""Two replicas on Ray Serve: the robot's client as it is, a replica killed in mid-episode, statuses and metrics."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

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
    metrics_port: int
    process: subprocess.Popen[str]

    def replicas(self) -> dict[int, float]:
        """Metrics port to chunks of the replicas that answer."""
        chunks: dict[int, float] = {}
        for port in range(self.metrics_port, self.metrics_port + 2 * REPLICAS):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2.0) as page:
                    lines = page.read().decode().splitlines()
            except OSError:
                continue
            answered = [line for line in lines if line.startswith('chunkcast_chunks_total{outcome="ok"')]
            chunks[port] = float(answered[0].split()[-1]) if answered else 0.0
        return chunks


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
        yield OnRay(f"127.0.0.1:{port}", metrics, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        process.stderr.close() if process.stderr else None


def replica_processes() -> list[int]:
    found = subprocess.run(["pgrep", "-f", "ray::ServeReplica"], capture_output=True, text=True, check=False)
    return [int(number) for number in found.stdout.split()]


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
    before = on_ray.replicas()
    assert len(before) == REPLICAS
    with PolicyClient(on_ray.address) as client, ChunkPlayer(client, config=config, timeout=10.0) as player:
        robot = MetaWorldRobot("drawer-close-v3")
        for seed in (500_000, 500_001):
            robot.begin_episode(seed)
            player.begin_episode("drawer-close-v3", noise_seed=seed, episode_id=f"ray-{seed}")
            rate = ControlRate(player.spec.action.control_rate_hz, MAX_EPISODE_STEPS)
            rate.start(time.monotonic())
            while not robot.done:
                if robot.steps == 20:
                    killed, others = kill_the_one_that_serves(on_ray, before)
                robot.act(player.next_action(robot.observe()))
                time.sleep(rate.seconds_ahead(time.monotonic()))
            assert robot.success
            # The arm's stream was cut, and another replica answered it from then on.
            now = on_ray.replicas()
            assert any(now.get(port, 0.0) > chunks for port, chunks in others.items() if port != killed)
            before = wait_for_replicas(on_ray)


def kill_the_one_that_serves(on_ray: OnRay, before: dict[int, float]) -> tuple[int, dict[int, float]]:
    """The replica whose count of chunks has grown, by the process that listens on its metrics port; returns that port,
    and what all had answered until then.
    """
    now = on_ray.replicas()
    port = max(now, key=lambda each: now[each] - before.get(each, 0.0))
    assert now[port] > before.get(port, 0.0)
    listening = f"127.0.0.1:{port}"
    inode = next(
        fields[9]
        for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
        if fields[1] == f"0100007F:{port:04X}" and fields[3] == "0A"
    )
    for process in replica_processes():
        links = [os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()]
        if f"socket:[{inode}]" in links:
            os.kill(process, signal.SIGKILL)
            return port, now
    raise AssertionError(f"no replica listens on {listening}")


def wait_for_replicas(on_ray: OnRay) -> dict[int, float]:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        found = on_ray.replicas()
        if len(found) == REPLICAS:
            return found
        time.sleep(0.2)
    raise AssertionError("the killed replica was not replaced within a minute")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ray"], "pass --insecure on a network that you trust"),
        (["--replicas", "2"], "go with --ray"),
        (["--ray", "--insecure"], "Ray's proxy listens on all"),
        (["--ray", "--insecure", "--listen", "0.0.0.0:0"], "name one with --listen"),
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


def test_a_bundle_that_cannot_be_served_is_said_in_one_line(tmp_path: Path) -> None:
    command = [str(SERVE), "--ray", "--insecure", "--listen", f"0.0.0.0:{free_port()}", "--bundle", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "policy.json" in done.stderr
    assert "Traceback" not in done.stderr
