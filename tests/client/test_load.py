"""chunkcast-load: what its JSON says is what happened, for closed and open loops."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chunkcast.client.private_server import PrivateServer
from tests.conftest import SHIPPED_BUNDLE

SCRIPT = Path(sys.executable).with_name("chunkcast-load")


def load(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result


def summary_of(tmp_path: Path, *arguments: str | Path) -> dict[str, Any]:
    file = tmp_path / "load.json"
    load(*arguments, "--json", file)
    summary: dict[str, Any] = json.loads(file.read_text())
    return summary


def test_a_closed_loop_beside_the_bare_run(tmp_path: Path) -> None:
    short = ("--streams", "4", "--seconds", "1", "--warm-up", "0.3")
    summary = summary_of(tmp_path, "--bundle", SHIPPED_BUNDLE, *short)
    assert summary["streams"] == 4
    assert summary["outcomes"] == {"chunk": summary["chunks"]}
    assert summary["observations"] == summary["chunks"]
    assert summary["chunks_per_second"] == pytest.approx(summary["chunks"], rel=0.01)
    latency = summary["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"]
    bare = summary["bare"]
    assert {"1", "4"} <= bare["by_batch_size"].keys()
    assert summary["ratio"]["latency"] == pytest.approx(latency["p50"] / bare["latency_ms"], abs=0.01)
    assert summary["ratio"]["throughput"] == pytest.approx(
        summary["chunks_per_second"] / bare["chunks_per_second"], abs=0.01
    )
    assert 1 <= summary["batch_size"]["mean"] <= summary["batch_size"]["max"] <= 4
    assert summary["server_memory_mb"]["at_the_end"] > 10


def test_an_open_loop_keeps_its_rate(echo_server: PrivateServer, tmp_path: Path) -> None:
    summary = summary_of(
        tmp_path,
        "--server",
        echo_server.address,
        "--streams",
        "3",
        "--seconds",
        "2",
        "--warm-up",
        "0.2",
        "--rate",
        "10",
    )
    # Ten a second, three robots, two seconds; whatever was not answered with a chunk was told so.
    assert summary["observations"] == pytest.approx(60, abs=3)
    assert sum(summary["outcomes"].values()) == summary["observations"]
    assert "bare" not in summary


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --bundle DIR, or --server HOST:PORT"),
        (("--server", "x:1", "--streams", "0"), "--streams is 0"),
        (("--server", "x:1", "--rate", "-1"), "--rate is -1.0"),
        (("--bundle", "/nowhere"), "/nowhere/policy.json is missing"),
        (("--server", "x:1", "--server-flags=--max-batch 2"), "--server-flags goes with a private server"),
    ],
)
def test_bad_flags_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    refused = load(*arguments, code=2)
    assert refused.stderr.startswith("error: ")
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_an_absent_server_is_one_line() -> None:
    refused = load("--server", "127.0.0.1:1", "--seconds", "1", code=1)
    assert refused.stderr.splitlines()[-1].startswith("error: no server is ready at 127.0.0.1:1")
