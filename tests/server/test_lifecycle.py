"""A server's life as its operator sees it: ready after warm-up, drained on SIGTERM, one clear line when it cannot."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from chunkcast.client import PolicyClient, PolicyUnavailable
from chunkcast.client.private_server import PrivateServer, private_server
from tests.conftest import ServeBundle
from tests.handmade_bundle import STATE_KEY, STATE_SIZE, write_echo_bundle

OBSERVATION = {STATE_KEY: np.zeros(STATE_SIZE, np.float32)}


def run_serve(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "chunkcast.server.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_health_says_serving_for_the_server_and_its_service(echo_server: PrivateServer) -> None:
    with grpc.insecure_channel(echo_server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "chunkcast.v1.PolicyService"):
            response = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert response.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_service(echo_server: PrivateServer) -> None:
    with grpc.insecure_channel(echo_server.address) as channel:
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=10
        )
        names = {service.name for service in next(call).list_services_response.service}
    assert "chunkcast.v1.PolicyService" in names


def test_sigterm_lets_a_stream_have_its_answer_and_ends_it(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"))
    with PolicyClient(server.address) as client, client.stream() as stream:
        stream.request(OBSERVATION, episode_id="e", step=0, instruction="left")
        with grpc.insecure_channel(server.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            server.process.send_signal(signal.SIGTERM)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        # Draining: the next observation is answered still, and the stream then ends.
        chunk = stream.request(OBSERVATION, episode_id="e", step=1)
        assert chunk.step == 1
        with pytest.raises(PolicyUnavailable, match="shutting down; reconnect"):
            stream.request(OBSERVATION, episode_id="e", step=2)
    assert server.process.wait(20) == 0


def test_sigterm_does_not_wait_for_ever_for_an_idle_stream(serve_bundle: ServeBundle, tmp_path: Path) -> None:
    server = serve_bundle(write_echo_bundle(tmp_path / "echo"), "--drain-seconds", "0.2")
    with PolicyClient(server.address) as client, client.stream() as stream:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0
        with pytest.raises(PolicyUnavailable):
            stream.request(OBSERVATION, episode_id="e", step=0, instruction="left")


def test_a_bad_bundle_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    result = run_serve("--bundle", tmp_path, "--listen", "127.0.0.1:0", "--metrics-listen", "")
    assert result.returncode == 2
    assert result.stderr.strip() == (
        f"error: {tmp_path}/policy.json is missing; expected a bundle folder made by chunkcast-export"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--listen", "0.0.0.0:0"), "reachable from other machines"),
        (("--listen", "localhost"), "expected HOST:PORT"),
        (("--metrics-listen", "192.0.2.1:9100"), "reachable from other machines"),
        (("--listen", "127.0.0.1:99999"), "expected HOST:PORT"),
        (("--threads", "0"), "must be at least 1, got 0"),
        (("--cpus", "4096"), "--cpus is [4096], expected some of"),
    ],
)
def test_bad_flags_are_one_line_and_exit_code_2(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run_serve("--bundle", tmp_path, *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_port_in_use_is_refused(echo_server: PrivateServer, tmp_path: Path) -> None:
    bundle = write_echo_bundle(tmp_path / "echo")
    taken = run_serve("--bundle", bundle, "--listen", echo_server.address, "--metrics-listen", "")
    assert taken.returncode == 2
    assert f"cannot listen on {echo_server.address}" in taken.stderr
    metrics = run_serve("--bundle", bundle, "--listen", "127.0.0.1:0", "--metrics-listen", echo_server.metrics_address)
    assert metrics.returncode == 2
    assert f"cannot listen on {echo_server.metrics_address} for metrics" in metrics.stderr


def test_a_store_with_a_damaged_bundle_serves_the_others(tmp_path: Path) -> None:
    write_echo_bundle(tmp_path / "store" / "good")
    damaged = write_echo_bundle(tmp_path / "store" / "damaged", name="other")
    (damaged / "policy.onnx").write_bytes(b"")
    with private_server(None, "--store", str(tmp_path / "store")) as server, PolicyClient(server.address) as client:
        assert [spec.name for spec in client.list_policies()] == ["echo"]
