"""A new task for a policy of six, from ten demonstrations: its success, and what became of the six.

``python -m benchmarks.fine_tuning`` (``make fine-tuning``) collects, trains the six, fine-tunes with rehearsal, and
plays both on evaluation seeds. Writes docs/results/fine-tuning.json.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from chunkcast.simulation.success import pooled

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class FineTuningConfig:
    """Teach a policy of six tasks a seventh."""

    task: str = "window-open-v3"
    """The new one."""
    demonstrations: int = 10
    """Of it."""
    work: Path = Path("runs/fine-tuning")
    """Folder for demonstrations, runs and bundles; what is there is not made again."""
    data: Path = Path("data/six")
    """Demonstrations of the six."""
    base_flags: str = "--epochs 30"
    """Of chunkcast-train for the six."""
    flags: str = ""
    """Of chunkcast-train for the seventh, beside its own defaults."""
    episodes: int = 20
    """Of each task."""
    seed: int = 1_000_000
    """The first episode's."""
    json: Path = Path("docs/results/fine-tuning.json")
    """File for everything measured."""


def _run(*command: str | Path) -> str:
    words = [str(BIN / command[0]), *map(str, command[1:])]
    subprocess.run(words, check=True)
    return shlex.join(map(str, command))


def _played(config: FineTuningConfig, bundle: Path) -> dict[str, Any]:
    file = config.work / f"{bundle.name}-{config.seed}-{config.episodes}.json"
    if not file.is_file():
        _run(
            *("chunkcast-sim", "--bundle", bundle, "--episodes", str(config.episodes)),
            *("--seed", str(config.seed), "--json", file),
        )
    summary: dict[str, Any] = json.loads(file.read_text())
    return summary


def main(config: FineTuningConfig) -> None:
    """Collect, train, fine-tune, play, write."""
    work, commands, seconds = config.work, [], {}
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "new").is_dir():
        commands.append(
            _run(
                *("chunkcast-collect", "--out", work / "new", "--tasks", config.task),
                *("--episodes", str(config.demonstrations)),
            )
        )
    runs: dict[str, list[str | Path]] = {
        "six": ["--data", config.data, *shlex.split(config.base_flags)],
        "seven": [
            *("--data", work / "new", "--rehearsal", config.data, "--start-from", work / "six"),
            *shlex.split(config.flags),
        ],
    }
    for name, flags in runs.items():
        began = time.monotonic()
        if not (work / name / "checkpoints/last.safetensors").is_file():
            commands.append(_run("chunkcast-train", "--out", work / name, *flags))
        seconds[name] = round(time.monotonic() - began, 1)
        if not (work / f"bundle-{name}").is_dir():
            commands.append(_run("chunkcast-export", "--run", work / name, "--out", work / f"bundle-{name}"))
    before, after = (_played(config, work / f"bundle-{name}") for name in runs)
    old = list(before["tasks"])
    report: dict[str, Any] = {
        "new_task": config.task,
        "demonstrations": config.demonstrations,
        "seeds": [config.seed, config.seed + config.episodes - 1],
        "old_before": pooled(before, old),
        "old_after": pooled(after, old),
        "new": pooled(after, [config.task]),
        "by_task": {task: row["success_rate"] for task, row in after["tasks"].items()},
        "seconds": seconds,
        "commands": commands,
        "command": f"python -m benchmarks.fine_tuning --task {config.task} --episodes {config.episodes}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }
    table = Table("", "success", "95 %", "episodes")
    for name in ("old_before", "old_after", "new"):
        row = report[name]
        low, high = row["ci95"]
        table.add_row(name, f"{row['success_rate']:.1%}", f"{low:.1%} - {high:.1%}", str(row["episodes"]))
    Console().print(table)
    config.json.parent.mkdir(parents=True, exist_ok=True)
    config.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(FineTuningConfig))
