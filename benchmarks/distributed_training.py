"""Two gloo processes beside one on the same two cores: windows a second, and how far their losses are apart.

``python -m benchmarks.distributed_training`` (``make distributed``) writes docs/results/distributed-training.json. Runs
take turns, since what else the machine does changes from minute to minute. The losses of the first steps are compared
too, in fp32: there rounding has not grown yet, which in training it does, as between one thread and two of one process.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from chunkcast.training.history import read_history

STEPS = """
import sys, torch
from pathlib import Path
from chunkcast.training.demonstrations.sources import read_demonstrations
from chunkcast.training.distributed import by_environment, joined
from chunkcast.training.draws import Draws
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.trainer import Trainer

processes, device = by_environment(), torch.device("cpu")
with joined(processes, device):
    config = TrainConfig(data=Path(sys.argv[1]), out=Path(sys.argv[2]), precision="fp32")
    trainer = Trainer(config, read_demonstrations(config.data), device, False, processes)
    trainer.policy.train()
    generator = torch.Generator().manual_seed(1)
    draws = Draws(generator, processes.rank, processes.count)
    for step, batch in enumerate(trainer.training.shuffled(config.batch_size, generator, 0, processes)):
        loss, _ = trainer.update.step(trainer.objective.loss(batch, draws)[0])
        if processes.writes:
            print(float(loss), flush=True)
        if step + 1 == int(sys.argv[3]):
            break
"""


@dataclass(frozen=True)
class DistributedConfig:
    """Train with one process and with two, in turns."""

    data: Path = Path("data/six")
    """Demonstrations."""
    epochs: int = 3
    """Of each run; the first is not counted."""
    repeats: int = 3
    """Runs of each kind."""
    steps: int = 50
    """Whose losses are compared one by one."""
    json: Path = Path("docs/results/distributed-training.json")
    """File for everything measured."""


def _launcher(processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable]
    torchrun = Path(sys.executable).parent / "torchrun"
    return [str(torchrun), "--standalone", "--nproc-per-node", str(processes)]


def _environment(processes: int) -> dict[str, str]:
    """One process has both cores; two have one each."""
    return {**os.environ, "OMP_NUM_THREADS": str(2 // processes)}


def _trained(config: DistributedConfig, processes: int, precision: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [*_launcher(processes), "-m", "chunkcast.training.train_cli", "--data", str(config.data)]
        command += ["--out", str(out), "--epochs", str(config.epochs), "--keep-best", "0", "--precision", precision]
        subprocess.run(command, check=True, capture_output=True, env=_environment(processes))
        history = read_history(out)
    return {
        "windows_per_second": round(statistics.median(record.samples_per_second for record in history[1:]), 1),
        "train_loss": [record.train_loss for record in history],
        "validation_loss": [record.validation_loss for record in history],
    }


def _first_losses(config: DistributedConfig, processes: int, threads: int) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "steps.py"
        script.write_text(STEPS)
        command = [*_launcher(processes), str(script), str(config.data), folder, str(config.steps)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return [float(line) for line in printed.splitlines()]


def main(config: DistributedConfig) -> None:
    """Train, compare, write."""
    console = Console()
    report: dict[str, Any] = {
        "command": f"python -m benchmarks.distributed_training --epochs {config.epochs} --repeats {config.repeats}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }
    alone, shared, threads = (_first_losses(config, *how) for how in ((1, 2), (2, 1), (1, 1)))
    report["first_steps_fp32"] = {
        "steps": len(alone),
        "most_difference_two_processes": max(abs(a - b) / a for a, b in zip(alone, shared, strict=True)),
        "most_difference_one_thread": max(abs(a - b) / a for a, b in zip(alone, threads, strict=True)),
    }
    console.print(report["first_steps_fp32"])
    for precision in ("auto", "fp32"):
        runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
        for _ in range(config.repeats):
            for processes, done in runs.items():
                done.append(_trained(config, processes, precision))
                console.print(precision, processes, done[-1]["windows_per_second"], "windows/s")
        median = {
            processes: statistics.median(run["windows_per_second"] for run in done) for processes, done in runs.items()
        }
        report[precision] = {
            "one_process": {"windows_per_second": median[1], **_losses(runs[1])},
            "two_processes": {"windows_per_second": median[2], **_losses(runs[2])},
            "ratio": round(median[2] / median[1], 3),
            "all": {str(processes): [run["windows_per_second"] for run in done] for processes, done in runs.items()},
        }
        console.print(precision, report[precision])
    config.json.parent.mkdir(parents=True, exist_ok=True)
    config.json.write_text(json.dumps(report, indent=2) + "\n")


def _losses(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the first run: the others are the same."""
    return {key: [round(value, 6) for value in runs[0][key]] for key in ("train_loss", "validation_loss")}


if __name__ == "__main__":
    main(tyro.cli(DistributedConfig))
