"""A new task for a policy of six, from ten demonstrations: its success, and what became of the six.

``python -m benchmarks.fine_tuning`` (``make fine-tuning``) collects, trains the six, fine-tunes with rehearsal, and
plays both on evaluation seeds. Writes docs/results/fine-tuning.json.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.table import Table

from chunkcast.simulation.success import pooled
from chunkcast.training.checkpoint import LAST_CHECKPOINT, read_run_facts

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class FineTuningConfig:
    """Teach a policy of six tasks a seventh."""

    task: str = "window-open-v3"
    """The new one."""
    demonstrations: int = 10
    """Of it."""
    work: Path = Path("runs/fine-tuning")
    """Folder for demonstrations, runs and bundles; runs go on where they were interrupted."""
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


def _made(config: FineTuningConfig, name: str, flags: list[str | Path]) -> tuple[list[str], float]:
    """A run and its bundle, ``bundle-NAME``: the commands, and the seconds of training."""
    run, bundle = config.work / name, config.work / f"bundle-{name}"
    last = run / LAST_CHECKPOINT
    train = _run("chunkcast-train", "--out", run, *flags, *(["--resume"] if last.is_file() else []))
    shutil.rmtree(bundle, ignore_errors=True)
    export = _run("chunkcast-export", "--run", run, "--out", bundle)
    return [train.removesuffix(" --resume"), export], round(read_run_facts(last)["seconds"], 1)


def _played(config: FineTuningConfig, bundle: Path) -> dict[str, Any]:
    file = bundle / "played.json"
    _run(
        *("chunkcast-sim", "--bundle", bundle, "--episodes", str(config.episodes)),
        *("--seed", str(config.seed), "--json", file),
    )
    summary: dict[str, Any] = json.loads(file.read_text())
    return summary


def main(config: FineTuningConfig) -> None:
    """Collect, train, fine-tune, play, write."""
    work, seconds = config.work, {}
    shutil.rmtree(work / "new", ignore_errors=True)
    collected = config.demonstrations
    commands = [
        _run(*("chunkcast-collect", "--out", work / "new", "--tasks", config.task, "--episodes", str(collected)))
    ]
    runs: dict[str, list[str | Path]] = {
        "six": ["--data", config.data, *shlex.split(config.base_flags)],
        "seven": [
            *("--data", work / "new", "--rehearsal", config.data, "--start-from", work / "six"),
            *shlex.split(config.flags),
        ],
    }
    for name, flags in runs.items():
        made, seconds[name] = _made(config, name, flags)
        commands += made
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
        "command": shlex.join(["python", "-m", "benchmarks.fine_tuning", *sys.argv[1:]]),
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
