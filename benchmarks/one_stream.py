"""One robot: the time of a chunk over gRPC beside a bare ``session.run`` of the same graph, in one run.

``python benchmarks/one_stream.py --bundle policies/metaworld-six [--json FILE]`` (``make bench``)

Blocks of both alternate, so that a machine whose speed drifts slows both; medians are quoted. The client waits for
each chunk before it asks for the next, as a robot that re-plans does. Measured twice: with server and robot each kept
to a processor of its own (``chunkcast-serve --cpus``), and with both left to the operating system.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro
from rich.console import Console
from rich.table import Table

from chunkcast.client import ActionStream, PolicyClient
from chunkcast.client.sim.private_server import private_server
from chunkcast.server.bundle import INSTRUCTION_INPUT, NOISE_INPUT, Bundle, read_bundle
from chunkcast.server.engine import Engine


@dataclass(frozen=True)
class BenchConfig:
    """Time a chunk over gRPC and the bare session's run."""

    bundle: Path = Path("policies/metaworld-six")
    """The policy."""
    blocks: int = 10
    """Alternating blocks of each."""
    chunks: int = 300
    """Runs in a block."""
    threads: int = 1
    """ONNX Runtime's threads inside one run, of both."""
    json: Path | None = None
    """File for everything measured."""


def typical_observation(bundle: Bundle) -> dict[str, npt.NDArray[Any]]:
    """The middle of each element's training range."""
    return {
        entry.key: np.array([(e.training_min + e.training_max) / 2 for e in entry.elements], np.float32)
        for entry in bundle.spec.observations
    }


def bare_run(bundle: Bundle, threads: int) -> Callable[[], object]:
    """One run of the graph at batch size 1 in this process."""
    engine = Engine(bundle, threads)
    engine.warm_up()
    spec = bundle.spec
    feeds = {
        key: np.broadcast_to(value, (1, spec.observation_steps, *value.shape)).copy()
        for key, value in typical_observation(bundle).items()
    }
    feeds[INSTRUCTION_INPUT] = np.array([spec.instructions[0].embedding], np.float32)
    shape = (1, spec.action.horizon, len(spec.action.elements))
    feeds[NOISE_INPUT] = np.random.default_rng(0).standard_normal(shape, np.float32)
    return lambda: engine.run(feeds)


def over_grpc(bundle: Bundle, stream: ActionStream) -> Callable[[], object]:
    """One chunk over the stream."""
    observation, instruction = typical_observation(bundle), bundle.spec.instructions[0].text
    step = 0

    def request() -> object:
        nonlocal step
        step += 1
        return stream.request(observation, episode_id="bench", step=step, instruction=instruction)

    return request


def time_block(run: Callable[[], object], count: int) -> list[float]:
    """Milliseconds of each of ``count`` runs."""
    milliseconds = []
    for _ in range(count):
        started = time.perf_counter()
        run()
        milliseconds.append((time.perf_counter() - started) * 1e3)
    return milliseconds


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    """p50, p90 and p99, rounded to a microsecond."""
    return {f"p{p}": round(float(np.percentile(milliseconds, p)), 3) for p in (50, 90, 99)}


def measure(config: BenchConfig, bundle: Bundle, *, pinned: bool) -> dict[str, Any]:
    """Both, alternating; the overhead is the difference of the medians."""
    everywhere = os.sched_getaffinity(0)
    robot_cpu, server_cpu = min(everywhere), max(everywhere)
    arguments = ["--threads", str(config.threads), *(["--cpus", str(server_cpu)] if pinned else [])]
    bare_ms: list[float] = []
    grpc_ms: list[float] = []
    try:
        with private_server(config.bundle, *arguments) as server:
            # After the server's start, which would inherit it; before the client's threads, which should.
            os.sched_setaffinity(0, {robot_cpu} if pinned else everywhere)
            with PolicyClient(server.address) as client, client.stream(robot_id="bench") as stream:
                bare, chunk = bare_run(bundle, config.threads), over_grpc(bundle, stream)
                time_block(chunk, config.chunks)  # warm-up of connection and code, not counted
                for _ in range(config.blocks):
                    bare_ms += time_block(bare, config.chunks)
                    grpc_ms += time_block(chunk, config.chunks)
    finally:
        os.sched_setaffinity(0, everywhere)
    bare_p, grpc_p = percentiles(bare_ms), percentiles(grpc_ms)
    return {
        "runs_of_each": len(bare_ms),
        "bare_ms": bare_p,
        "grpc_ms": grpc_p,
        "overhead_p50_ms": round(grpc_p["p50"] - bare_p["p50"], 3),
        "ratio_p50": round(grpc_p["p50"] / bare_p["p50"], 3),
    }


def main(config: BenchConfig) -> None:
    """Measure, print, record."""
    bundle = read_bundle(config.bundle)
    console = Console()
    table = Table(title=f"one stream, {bundle.spec.name}", title_justify="left")
    for heading in ("processors", "", "p50 ms", "p90 ms", "p99 ms"):
        table.add_column(heading, justify="right" if "ms" in heading else "left")
    placements = {}
    for placement, pinned in (("one each", True), ("any", False)):
        with console.status(f"measuring, {placement}"):
            measured = placements[placement] = measure(config, bundle, pinned=pinned)
        for name, key in (("bare session.run", "bare_ms"), ("chunk over gRPC", "grpc_ms")):
            table.add_row(placement, name, *(f"{value:.3f}" for value in measured[key].values()))
        table.add_section()
    console.print(table)
    for placement, measured in placements.items():
        console.print(
            f"{placement}: p50 difference {measured['overhead_p50_ms']:.3f} ms, ratio {measured['ratio_p50']:.2f}",
            highlight=False,
        )
    if config.json:
        summary = {
            "policy": bundle.spec.name,
            "policy_version": bundle.spec.version,
            "threads": config.threads,
            "processors": placements,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        }
        config.json.parent.mkdir(parents=True, exist_ok=True)
        config.json.write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(BenchConfig))
