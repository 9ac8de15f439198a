"""Two replicas on Ray Serve beside the plain server: throughput, chunk time, and what a killed replica costs.

``python -m benchmarks.ray_serving`` (``make ray``) writes docs/results/ray-serving.json. On one machine the replicas
share its cores with Ray's proxy: the figures say what the proxy costs, not what a cluster gives.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.kills import KILL_TICKS, Arm, Played
from benchmarks.ray_replicas import Replicas
from chunkcast.client import ActionChunk
from chunkcast.simulation.success import success_rate

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class RayServingConfig:
    """Load both, then kill replicas in mid-episode."""

    bundle: Path = Path("policies/metaworld-six")
    """The policy."""
    replicas: int = 2
    """On Ray."""
    streams: tuple[int, ...] = (1, 8, 32)
    """Robots that ask again as soon as they have their chunk."""
    seconds: float = 8.0
    """Of each load."""
    repeats: int = 3
    """Of each load, in turns; medians are reported."""
    episodes: int = 5
    """Of each task, with the arm's replica killed in each."""
    seed: int = 1_000_000
    """The first episode's."""
    json: Path = Path("docs/results/ray-serving.json")
    """File for everything measured."""


@dataclass
class Server:
    """A server that robots reach; on Ray, for ``Arm``, one of whose replicas can be killed and comes back."""

    address: str
    process: subprocess.Popen[str]
    replicas: Replicas
    ready_at: float = field(default_factory=time.monotonic)
    before: dict[int, float] = field(default_factory=dict)

    def kill(self) -> None:
        """The replica that serves the arm."""
        self.replicas.kill_the_one_that_serves(self.before)

    def start(self) -> None:
        """Ray does; until there are as many as before."""
        self.replicas.wait()
        self.ready_at = time.monotonic()


class WaitingArm(Arm):
    """A robot that notes how long it was without a new chunk."""

    longest_wait, _last = 0.0, 0.0

    def begin(self) -> None:
        """A new episode."""
        self.longest_wait, self._last = 0.0, math.inf  # until its first chunk: the simulation is reset before

    def _note(self, chunk: ActionChunk, seconds: float) -> None:
        super()._note(chunk, seconds)
        now = time.monotonic()
        self.longest_wait, self._last = max(self.longest_wait, now - self._last), now


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _served(config: RayServingConfig, *, ray: bool) -> Iterator[Server]:
    port, metrics = _free_port(), _free_port()
    command = [str(BIN / "chunkcast-serve"), "--bundle", str(config.bundle), "--metrics-listen", f"127.0.0.1:{metrics}"]
    if ray:
        command += ["--ray", "--insecure", "--replicas", str(config.replicas), "--ray-http-port", str(_free_port())]
    command += ["--listen", f"{'0.0.0.0' if ray else '127.0.0.1'}:{port}", "--admin-listen", ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        if not process.stdout.readline().startswith("ready"):
            raise RuntimeError("the server did not start")
        try:
            yield Server(f"127.0.0.1:{port}", process, Replicas(metrics, config.replicas))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _load(config: RayServingConfig, server: Server, streams: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "load.json"
        command = [str(BIN / "chunkcast-load"), "--server", server.address, "--streams", str(streams)]
        command += ["--seconds", str(config.seconds), "--json", str(file)]
        subprocess.run(command, check=True, capture_output=True)
        measured = json.loads(file.read_text())
    return {"chunks_per_second": measured["chunks_per_second"], "p50_ms": measured["latency_ms"]["p50"]}


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}


def _killed(config: RayServingConfig, server: Server, console: Console) -> dict[str, Any]:
    generator = random.Random(config.seed)
    server.replicas.wait()
    arm = WaitingArm(server)  # type: ignore[arg-type]  # it asks for what Served and this have in common
    jobs = [(task, config.seed + index) for index in range(config.episodes) for task in arm.tasks]
    played: list[Played] = []
    waits: list[float] = []
    for task, seed in track(jobs, "its replica killed in each", console=console):
        server.before = server.replicas.chunks()
        arm.begin()
        played.append(arm.play(task, seed, generator.randint(*KILL_TICKS)))
        waits.append(1e3 * arm.longest_wait)
    arm.close()
    return {
        **success_rate(sum(each.success for each in played), len(played)),
        "seeds": [config.seed, config.seed + config.episodes - 1],
        "failed": [f"{each.task}/{each.seed}" for each in played if not each.success],
        "longest_time_between_chunks_ms": {"median": round(statistics.median(waits), 1), "max": round(max(waits), 1)},
        "ticks_at_rest": {
            "median": statistics.median(each.starved for each in played),
            "max": max(each.starved for each in played),
        },
    }


def main(config: RayServingConfig) -> None:
    """Load, kill, write."""
    console = Console()
    results: dict[str, dict[int, list[dict[str, float]]]] = {
        kind: {streams: [] for streams in config.streams} for kind in ("plain", "ray")
    }
    for _ in range(config.repeats):
        for kind, runs in results.items():
            with _served(config, ray=kind == "ray") as server:
                for streams, done in runs.items():
                    done.append(_load(config, server, streams))
                    console.print(kind, streams, done[-1])
    with _served(config, ray=True) as server:
        killed = _killed(config, server, console)
    report: dict[str, Any] = {
        "replicas": config.replicas,
        "load": {
            kind: {str(streams): _medians(done) for streams, done in runs.items()} for kind, runs in results.items()
        },
        "its_replica_killed_in_each_episode": killed,
        "command": shlex.join(["python", "-m", "benchmarks.ray_serving", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }
    table = Table("robots", "plain, chunks/s", "Ray", "ratio", "plain p50, ms", "Ray")
    for robots in map(str, config.streams):
        plain, ray = report["load"]["plain"][robots], report["load"]["ray"][robots]
        ratio = ray["chunks_per_second"] / plain["chunks_per_second"]
        rates = [f"{each['chunks_per_second']:.0f}" for each in (plain, ray)]
        times = [f"{each['p50_ms']:.2f}" for each in (plain, ray)]
        table.add_row(robots, *rates, f"{ratio:.2f}", *times)
    console.print(table)
    console.print(killed)
    config.json.parent.mkdir(parents=True, exist_ok=True)
    config.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(RayServingConfig))
