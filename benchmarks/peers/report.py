"""What the blocks come to, for machines and for people."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

SYSTEMS = ("chunkcast", "openpi-client", "in process")

PERCENTILES = (50, 90, 99)


def summary_of(systems: Mapping[str, Sequence[Mapping[str, Any]]], seconds: float) -> dict[str, Any]:
    """Each system's figures over its blocks of ``seconds``; ``p50_ratio`` is its median over chunkcast's."""
    summary: dict[str, Any] = {}
    for name, blocks in systems.items():
        latency = np.concatenate([block["latency_ms"] for block in blocks])
        inference = np.concatenate([block["inference_ms"] for block in blocks])
        sizes = [size for block in blocks for size in block.get("batch_size", [])]
        summary[name] = {
            "chunks": len(latency),
            "chunks_per_second": round(len(latency) / (seconds * len(blocks)), 1),
            "latency_ms": percentiles(latency),
            "latency_p50_ms_by_block": [round(float(np.median(block["latency_ms"])), 3) for block in blocks],
            "inference_p50_ms": round(float(np.median(inference)), 3),
            **({"mean_batch_size": round(float(np.mean(sizes)), 2)} if sizes else {}),
        }
    ours = summary["chunkcast"]
    for figures in summary.values():
        figures["p50_ratio"] = round(figures["latency_ms"]["p50"] / ours["latency_ms"]["p50"], 2)
        figures["chunks_per_second_ratio"] = round(figures["chunks_per_second"] / ours["chunks_per_second"], 3)
    return summary


def percentiles(milliseconds: Any) -> dict[str, float]:
    """p50, p90 and p99, rounded to a microsecond."""
    return {f"p{p}": round(float(np.percentile(milliseconds, p)), 3) for p in PERCENTILES}


def bare_summary(repeats: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The median of the repeats' percentiles."""
    names = {f"p{p}": f"p{p}_ms" for p in PERCENTILES}
    return {
        "latency_ms": {p: round(float(np.median([run[key] for run in repeats])), 3) for p, key in names.items()},
        "latency_p50_ms_by_block": [run["p50_ms"] for run in repeats],
    }


def machine() -> dict[str, Any]:
    """What it runs on; ``load_average`` (of the last minute, before the benchmark) tells whether it ran alone."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    except OSError:
        names = {platform.processor()}
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": ", ".join(sorted(names)),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
    }


def versions(blocks: Mapping[int, Mapping[str, Sequence[Mapping[str, Any]]]]) -> dict[str, Any]:
    """Of both environments; the robots with openpi's client tell theirs."""
    peers: dict[str, str] = next(iter(blocks.values()))["openpi-client"][0]["versions"]
    names = ("chunkcast", "grpcio", "torch", "diffusers", "websockets", "msgpack", "numpy")
    ours = {name: version(name) for name in names}
    import onnxruntime

    return {"python": platform.python_version(), "onnxruntime": onnxruntime.__version__, **ours, "peers": peers}


def print_report(summary: Mapping[str, Any]) -> None:
    """Print the summary as a table."""
    policy = f"{summary['policy']} {summary['policy_version']}"
    table = Table(title=f"the time of a chunk: {policy}, {summary['evaluations']} evaluations", title_justify="left")
    for heading in ("robots", "", "p50 ms", "p90 ms", "p99 ms", "chunks/s", "p50 ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    for robots, systems in summary["robots"].items():
        for name, figures in systems.items():
            times = [f"{value:.2f}" for value in figures["latency_ms"].values()]
            rate, ratio = f"{figures['chunks_per_second']:.0f}", f"{figures['p50_ratio']:.2f}"
            table.add_row(robots if name == "chunkcast" else "", name, *times, rate, ratio)
        table.add_section()
    bare = [f"{value:.2f}" for value in summary["bare_session_run"]["latency_ms"].values()]
    table.add_row("", "bare session.run", *bare, "", "")
    console, threads, host = Console(), summary["threads"], summary["machine"]
    console.print(table)
    console.print(
        "each robot waits for its chunk and asks again; ratio: to chunkcast's; both peers run eager torch\n"
        f"threads in a run: ONNX Runtime {threads['onnxruntime']}, torch {threads['torch']}; {host['cores']} cores, "
        f"{host['processor']}, load average before {host['load_average']}\n"
        f"the peers' weights: {summary['weights_of_the_peers']}",
        highlight=False,
        soft_wrap=True,
    )
