"""Long runs that a policy server must stand: a fleet at its rate, and a thousand reloads under load.

``python -m benchmarks.soak`` (``make soak``) writes docs/results/soak.json and ends with exit code 1 if a request
failed, a stream broke, a deadline was missed too often or memory grew.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from chunkcast.client import PolicyClient
from chunkcast.client.load.process import ProcessSample
from chunkcast.client.load.robots import Measured, drive
from chunkcast.client.private_server import PrivateServer, private_server
from chunkcast.v1 import admin_pb2, admin_pb2_grpc

MISSED_MOST = 0.01
GROWTH_MOST = 0.05


@dataclass(frozen=True)
class SoakConfig:
    """Load a server for long, and reload its policy under load."""

    bundle: Path = Path("policies/metaworld-six")
    """The policy."""
    streams: int = 64
    """Robots of the fleet."""
    rate: float = 20.0
    """Observations per second and robot."""
    seconds: float = 60.0
    """How long the fleet asks."""
    deadline_ms: float = 50.0
    """A chunk that takes longer missed its deadline."""
    reloads: int = 1000
    """Versions that are loaded and promoted under load."""
    reload_streams: int = 8
    """Robots that ask meanwhile, at --rate."""
    json: Path = Path("docs/results/soak.json")
    """File for everything measured."""


def fleet(config: SoakConfig) -> dict[str, Any]:
    """The fleet at its rate: the JSON of ``chunkcast-load``."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fleet.json"
        command = [sys.executable, "-m", "chunkcast.client.load.cli", "--bundle", str(config.bundle)]
        command += ["--streams", str(config.streams), "--rate", str(config.rate), "--seconds", str(config.seconds)]
        command += ["--warm-up", "10", "--deadline-ms", str(config.deadline_ms), "--json", str(file)]
        subprocess.run(command, check=True)
        summary: dict[str, Any] = json.loads(file.read_text())
    return summary


def versions(bundle: Path, store: Path, count: int) -> list[str]:
    """Bundles of one policy that differ in their version; the graph's file is shared."""
    spec = json.loads((bundle / "policy.json").read_text())
    names = []
    for index in range(count):
        folder = store / f"v{index}"
        folder.mkdir()
        os.link(store / "policy.onnx", folder / "policy.onnx")
        (folder / "policy.json").write_text(json.dumps({**spec, "version": f"soak-{index}"}))
        names.append(folder.name)
    return names


async def reload_under_load(config: SoakConfig, server: PrivateServer, names: list[str]) -> dict[str, Any]:
    """Load and promote every version while robots ask; what they saw."""
    with PolicyClient(server.address) as client:
        spec = client.get_policy()
    ended = asyncio.Event()
    memory: list[float] = []
    seconds: list[float] = []

    async def reload() -> None:
        columns = (TextColumn("reloading"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        async with grpc.aio.insecure_channel(server.admin_address) as channel:
            stub: Any = admin_pb2_grpc.AdminServiceStub(channel)
            with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
                try:
                    for name in progress.track(names):
                        started = time.perf_counter()
                        await stub.LoadBundle(admin_pb2.LoadBundleRequest(bundle=name, promote=True), timeout=60)
                        seconds.append(time.perf_counter() - started)
                        memory.append(ProcessSample.of(server.process.pid).resident / 1e6)
                finally:
                    ended.set()  # also where a load failed, which is raised when the robots are done

    async def robots() -> Measured:
        # In rounds, because how long the reloads take is not known: each round opens its streams anew.
        total = Measured()
        while not ended.is_set():
            measured = await drive(
                server.address, spec, streams=config.reload_streams, warm_up=0.0, seconds=20.0, rate_hz=config.rate
            )
            total.latency += measured.latency
            total.outcomes += measured.outcomes
            total.sent += measured.sent
        return total

    started = time.perf_counter()
    reloading = asyncio.create_task(reload())
    measured = await robots()
    await reloading
    latency = sorted(measured.latency)
    warm = memory[len(memory) // 10 :]
    tenth = max(1, len(warm) // 10)
    first, last = sum(warm[:tenth]) / tenth, sum(warm[-tenth:]) / tenth
    return {
        "reloads": len(seconds),
        "seconds": round(time.perf_counter() - started, 1),
        "reload_seconds_p50": round(sorted(seconds)[len(seconds) // 2], 4),
        "observations": measured.sent,
        "outcomes": dict(measured.outcomes),
        "latency_ms": {
            f"p{p:g}": round(latency[min(len(latency) - 1, int(len(latency) * p / 100))] * 1e3, 3)
            for p in (50, 90, 99, 99.9)
        },
        "memory_mb": {
            "after_a_tenth": round(first, 1),
            "at_the_end": round(last, 1),
            "growth": round(last / first - 1.0, 4),
        },
    }


def main(config: SoakConfig) -> None:
    """Run both, record, judge."""
    summary: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"}
    summary["fleet"] = fleet(config)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        shutil.copy(config.bundle / "policy.onnx", store / "policy.onnx")
        names = versions(config.bundle, store, config.reloads)
        with private_server(config.bundle, "--store", str(store)) as server:
            summary["reloads"] = asyncio.run(reload_under_load(config, server, names))
    config.json.parent.mkdir(parents=True, exist_ok=True)
    aside = config.json.with_name(f".{config.json.name}.writing")
    aside.write_text(json.dumps(summary, indent=2) + "\n")
    os.replace(aside, config.json)
    fleet_summary, reloads = summary["fleet"], summary["reloads"]
    print(json.dumps(reloads, indent=2))
    failed = {
        "deadlines missed": fleet_summary["deadline_missed"] > MISSED_MOST,
        "memory grew under the fleet": fleet_summary["server_memory_mb"]["growth"] > GROWTH_MOST,
        "memory grew under reloads": reloads["memory_mb"]["growth"] > GROWTH_MOST,
        "observations without a chunk during reloads": set(reloads["outcomes"]) != {"chunk"}
        or reloads["outcomes"]["chunk"] != reloads["observations"],
    }
    if any(failed.values()):
        print("error: " + ", ".join(name for name, holds in failed.items() if holds), file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(SoakConfig))
