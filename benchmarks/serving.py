"""What serving costs beside the bare network: one robot, 32 robots, a large policy, and a slow one.

``python -m benchmarks.serving`` (``make bench``) runs ``chunkcast-load`` in each setting, repeats, takes the medians of
the ratios, and writes every run to docs/results/serving.json. Each ratio's two sides come from one run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.made_policy import MadePolicyConfig, make_bundle
from tests.handmade_bundle import write_echo_bundle

WIDTH = 150
"""Columns of the table, also where it is written to a file."""


@dataclass(frozen=True)
class ServingBenchConfig:
    """Measure serving beside the bare network."""

    bundle: Path = Path("policies/metaworld-six")
    """The shipped policy."""
    seconds: float = 8.0
    """Of load in each run."""
    repeats: int = 3
    """Runs of each setting, in turn."""
    large_width: int = 1472
    """Width of the large policy: as many parameters as a 73 M U-Net."""
    slow_matmuls: int = 120
    """Products that slow the slow policy down, to some 20 ms a run on one core, whatever the batch."""
    only: str = ""
    """Run the settings whose name contains this."""
    json: Path = Path("docs/results/serving.json")
    """File for everything measured."""


@dataclass(frozen=True)
class Setting:
    """One way to load a server."""

    name: str
    bundle: Path
    streams: int
    flags: tuple[str, ...] = ()


def settings(config: ServingBenchConfig, made: Path) -> list[Setting]:
    """What is measured, in order."""
    large, slow = made / "large", made / "slow"
    processors = sorted(os.sched_getaffinity(0))
    apart = ("--cpus", str(processors[0]), f"--server-flags=--cpus {processors[-1]}")
    together = ("--server-flags=--max-delay-ms 5",)
    return [
        Setting("one robot, a processor each", config.bundle, 1, apart),
        Setting("one robot, any processor", config.bundle, 1),
        Setting("8 robots", config.bundle, 8),
        Setting("32 robots", config.bundle, 32),
        Setting("32 robots, large policy", large, 32),
        Setting("32 robots, large policy, --max-delay-ms 20", large, 32, ("--server-flags=--max-delay-ms 20",)),
        Setting("slow policy, one robot", slow, 1),
        Setting("slow policy, 8 robots", slow, 8),
        Setting("slow policy, one robot, --max-delay-ms 5", slow, 1, together),
        Setting("slow policy, 8 robots, --max-delay-ms 5", slow, 8, together),
    ]


def run(config: ServingBenchConfig, setting: Setting) -> dict[str, Any]:
    """One run of ``chunkcast-load``: its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "load.json"
        command = [sys.executable, "-m", "chunkcast.client.load.cli", "--bundle", str(setting.bundle)]
        command += ["--streams", str(setting.streams), "--seconds", str(config.seconds), "--json", str(file)]
        done = subprocess.run([*command, *setting.flags], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"error: {setting.name}: {done.stderr.strip().splitlines()[-1]}")
        summary: dict[str, Any] = json.loads(file.read_text())
    return summary


def median(runs: list[dict[str, Any]], *keys: str) -> float:
    """The median of one figure over the runs."""

    def value(summary: dict[str, Any]) -> float:
        for key in keys:
            summary = summary[key]
        return float(summary)  # type: ignore[arg-type]

    return statistics.median(value(summary) for summary in runs)


def main(config: ServingBenchConfig) -> None:
    """Measure, print, record."""
    console = Console(width=WIDTH)
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder, console.status("making the large and the slow policy") as status:
        made = Path(folder)
        chosen = [setting for setting in settings(config, made) if config.only in setting.name]
        if any("large" in setting.name for setting in chosen):
            make_bundle(MadePolicyConfig(out=made / "large", width=config.large_width, like=config.bundle))
        if any("slow" in setting.name for setting in chosen):
            write_echo_bundle(made / "slow", slow_matmuls=config.slow_matmuls)
        for repeat in range(config.repeats):
            for setting in chosen:
                status.update(f"{setting.name}, {repeat + 1} of {config.repeats}")
                runs.setdefault(setting.name, []).append(run(config, setting))
    table = Table(title=f"medians of {config.repeats} runs", title_justify="left")
    headings = ("", "chunks/s", "bare", "ratio", "p50 ms", "bare", "difference", "p99 ms", "batch", "robots", "server")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for name, summaries in runs.items():
        difference = statistics.median(one["latency_ms"]["p50"] - one["bare"]["latency_ms"] for one in summaries)
        table.add_row(
            name,
            f"{median(summaries, 'chunks_per_second'):.0f}",
            f"{median(summaries, 'bare', 'chunks_per_second'):.0f}",
            f"{median(summaries, 'ratio', 'throughput'):.2f}",
            f"{median(summaries, 'latency_ms', 'p50'):.2f}",
            f"{median(summaries, 'bare', 'latency_ms'):.2f}",
            f"{difference:.2f}",
            f"{median(summaries, 'latency_ms', 'p99'):.2f}",
            f"{median(summaries, 'batch_size', 'mean'):.1f}",
            f"{median(summaries, 'cpu_ms_per_chunk', 'robots'):.3f}",
            f"{median(summaries, 'cpu_ms_per_chunk', 'server'):.3f}",
        )
    console.print(table)
    console.print("robots and server: milliseconds of processor time a chunk", highlight=False)
    known: dict[str, Any] = {}
    if config.only and config.json.is_file():
        known = json.loads(config.json.read_text())["runs"]
    config.json.parent.mkdir(parents=True, exist_ok=True)
    aside = config.json.with_name(f".{config.json.name}.writing")
    aside.write_text(json.dumps({"runs": {**known, **runs}}, indent=1) + "\n")
    os.replace(aside, config.json)


if __name__ == "__main__":
    main(tyro.cli(ServingBenchConfig))
