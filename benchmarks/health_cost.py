"""What judging health costs serving: 32 robots on the server's cores, with and without it, in turn.

``python -m benchmarks.health_cost`` (``make health-cost``). Each pair of runs follows one another, so that a machine
whose speed drifts slows both; the ratio of each pair is what counts.
"""

from __future__ import annotations

import json
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

from chunkcast.training.files import write_json


@dataclass(frozen=True)
class CostConfig:
    """Load the same policy with and without health."""

    bundle: Path = Path("policies/metaworld-six")
    """The policy."""
    streams: tuple[int, ...] = (32,)
    """Robots, closed loop."""
    shares: tuple[float, ...] = (0.05,)
    """--health-share of the runs with health; the default first."""
    seconds: float = 8.0
    """Of each run."""
    repeats: int = 5
    """Pairs of runs."""
    json: Path = Path("docs/results/health-cost.json")
    """File for everything measured."""


def load(config: CostConfig, streams: int, share: float) -> dict[str, Any]:
    """One run of ``chunkcast-load``: its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "load.json"
        command = [sys.executable, "-m", "chunkcast.client.load.cli", "--bundle", str(config.bundle)]
        command += ["--streams", str(streams), "--seconds", str(config.seconds), "--json", str(file)]
        command += [f"--server-flags=--health-share {share}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"error: {done.stderr.strip().splitlines()[-1]}")
        summary: dict[str, Any] = json.loads(file.read_text())
    return summary


def main(config: CostConfig) -> None:
    """Measure, print, record."""
    console = Console(width=120)
    table = Table(title=f"medians of {config.repeats} pairs of runs", title_justify="left")
    headings = (
        "robots",
        "health share",
        "chunks/s without",
        "with",
        "ratio",
        "p50 ms without",
        "with",
        "p99 ms",
        "with",
        "bare",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    measured: list[dict[str, Any]] = []
    with console.status("") as status:
        for streams in config.streams:
            for share in config.shares:
                pairs = []
                for repeat in range(config.repeats):
                    status.update(f"{streams} robots, share {share:g}, {repeat + 1} of {config.repeats}")
                    pairs.append((load(config, streams, 0.0), load(config, streams, share)))
                ratios = [after["chunks_per_second"] / before["chunks_per_second"] for before, after in pairs]
                row = {
                    "streams": streams,
                    "health_share": share,
                    "throughput_ratio": round(statistics.median(ratios), 4),
                    "throughput_ratios": [round(ratio, 4) for ratio in ratios],
                    "runs": [{"without": before, "with": after} for before, after in pairs],
                }
                measured.append(row)
                before = statistics.median(one["chunks_per_second"] for one, _ in pairs)
                after = statistics.median(one["chunks_per_second"] for _, one in pairs)
                p50_before = statistics.median(one["latency_ms"]["p50"] for one, _ in pairs)
                p50_after = statistics.median(one["latency_ms"]["p50"] for _, one in pairs)
                p99 = [statistics.median(one["latency_ms"]["p99"] for one in side) for side in zip(*pairs, strict=True)]
                bare = statistics.median(one["ratio"]["throughput"] for _, one in pairs)
                cells = (f"{before:.0f}", f"{after:.0f}", f"{row['throughput_ratio']:.3f}")
                table.add_row(
                    *(str(streams), f"{share:g}", *cells, f"{p50_before:.2f}", f"{p50_after:.2f}"),
                    *(f"{p99[0]:.1f}", f"{p99[1]:.1f}", f"{bare:.2f}"),
                )
    console.print(table)
    write_json(config.json, {"runs": measured})


if __name__ == "__main__":
    main(tyro.cli(CostConfig))
