"""A Ray cluster in place of local processes: the same demonstrations, the same episodes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chunkcast.client import PolicyClient
from chunkcast.client.private_server import private_server
from tests.conftest import SHIPPED_BUNDLE

BIN = Path(sys.executable).parent
TASKS = ["drawer-close-v3", "reach-v3"]


pytestmark = pytest.mark.slow  # make ray

Words = list[str | Path]


def test_no_cluster_is_said_in_one_line(tmp_path: Path) -> None:
    """Before there is one: ``auto`` would find it."""
    collect: Words = [BIN / "chunkcast-collect", "--tasks", "reach-v3", "--episodes", "1", "--out", tmp_path / "x"]
    done = subprocess.run([*collect, "--ray-address", "auto"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no Ray cluster at 'auto'" in done.stderr
    assert "Traceback" not in done.stderr
    played: Words = [BIN / "chunkcast-sim", "--bundle", SHIPPED_BUNDLE, "--ray-address", "auto"]
    done = subprocess.run(played, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--ray-address plays on other machines" in done.stderr


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster of one machine, as ``ray start`` makes it."""
    head = ["--head", "--port", "0", "--num-cpus", "2", "--include-dashboard", "false", "--disable-usage-stats"]
    started = subprocess.run([BIN / "ray", "start", *head], capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr
    yield "auto"
    subprocess.run([BIN / "ray", "stop", "--force"], capture_output=True, check=True)


def test_a_cluster_collects_the_same_demonstrations(cluster: str, tmp_path: Path) -> None:
    collect: Words = [BIN / "chunkcast-collect", "--tasks", *TASKS, "--episodes", "3", "--out"]
    subprocess.run([*collect, tmp_path / "local"], check=True, capture_output=True)
    subprocess.run([*collect, tmp_path / "ray", "--ray-address", cluster], check=True, capture_output=True)
    name = "demonstrations.parquet"
    assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


def test_a_cluster_plays_the_same_episodes(cluster: str, tmp_path: Path) -> None:
    with private_server(SHIPPED_BUNDLE) as server:
        play: Words = [BIN / "chunkcast-sim", "--server", server.address, "--tasks", "drawer-close", "--episodes", "4"]
        for name, flags in (("local", ()), ("ray", ("--ray-address", cluster))):
            command: Words = [*play, "--seed", "500000", "--json", tmp_path / f"{name}.json", *flags]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    local, ray = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("local", "ray"))
    assert ray["ray_address"] == cluster
    assert ray["episodes"] == 4
    assert ray["tasks"] == local["tasks"]


def test_a_server_that_is_lost_ends_it_with_one_line(cluster: str) -> None:
    play: Words = [BIN / "chunkcast-sim", "--server", "127.0.0.1:9", "--ray-address", cluster, "--episodes", "1"]
    done = subprocess.run(play, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_a_cluster_serves_one_and_keeps_it(cluster: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    on_ray: Words = [BIN / "chunkcast-serve", "--ray", "--insecure", "--ray-address", cluster]
    serve = [*on_ray, "--bundle", SHIPPED_BUNDLE, "--listen", f"0.0.0.0:{port}", "--metrics-listen", "127.0.0.1:0"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline().startswith("ready"), first.stderr and first.stderr.read()
        second = subprocess.run(serve, capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert "another chunkcast-serve serves there already" in second.stderr
        assert "Traceback" not in second.stderr
        with PolicyClient(f"127.0.0.1:{port}") as client:
            client.wait_until_ready(30.0)
            assert client.get_policy().name == "metaworld-six"
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 0
        first.stderr.close() if first.stderr else None
