"""What an inference delay costs, and what real-time chunking saves of it: success, and the jump at chunk borders.

``python -m benchmarks.real_time_chunking`` (``make delays``) plays the six tasks through the server with chunks that
come 0, 1, 2, 4 and 8 control ticks late, for each way to join two chunks; docs/results/real-time-chunking.json has all
of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

OVERLAPS = ("replace", "ensemble", "real-time-chunking")


@dataclass(frozen=True)
class DelaysConfig:
    """Play the six tasks with injected inference delays."""

    bundle: Path = Path("policies/metaworld-six")
    """The policy."""
    delays: tuple[int, ...] = (0, 1, 2, 4, 8)
    """Control ticks from an observation to its chunk."""
    episodes: int = 100
    """Of each task."""
    seed: int = 1_000_000
    """First episode seed."""
    json: Path = Path("docs/results/real-time-chunking.json")
    """File for everything measured."""


def play(config: DelaysConfig, delay: int, overlap: str) -> dict[str, Any]:
    """One run of ``chunkcast-sim``: its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sim.json"
        command = [sys.executable, "-m", "chunkcast.client.sim.cli", "--bundle", str(config.bundle)]
        command += ["--episodes", str(config.episodes), "--seed", str(config.seed), "--delay-ticks", str(delay)]
        command += ["--overlap", overlap, "--json", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summary: dict[str, Any] = json.loads(file.read_text())
    return summary


def main(config: DelaysConfig) -> None:
    """Play, print, record."""
    runs: list[dict[str, Any]] = []
    table = Table(title=f"{config.bundle.name}, {config.episodes} episodes a task", title_justify="left")
    for heading in ("delay, ticks", "overlap", "success", "95 %", "jump mean", "p50", "p99", "max", "elsewhere, mean"):
        table.add_column(heading, justify="left" if heading == "overlap" else "right")
    for delay in config.delays:
        for overlap in OVERLAPS:
            if delay == 0 and overlap == "real-time-chunking":
                continue  # nothing plays meanwhile, so nothing is committed: the same as replace
            summary = play(config, delay, overlap)
            runs.append(summary)
            low, high = summary["ci95"]
            jump = summary["jump_at_chunk_borders"]
            table.add_row(
                str(delay),
                overlap,
                f"{summary['success_rate']:.1%}",
                f"{low:.1%} - {high:.1%}",
                *(f"{jump[key]:.3f}" for key in ("mean", "p50", "p99", "max")),
                f"{summary['jump_elsewhere']['mean']:.3f}",
            )
        table.add_section()
    Console(width=120).print(table)
    config.json.parent.mkdir(parents=True, exist_ok=True)
    aside = config.json.with_name(f".{config.json.name}.writing")
    aside.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    os.replace(aside, config.json)


if __name__ == "__main__":
    main(tyro.cli(DelaysConfig))
