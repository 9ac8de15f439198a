"""What torch.compile is worth: a training step with and without, in turns, and after how many steps it has paid.

``python -m benchmarks.compiled_training`` (``make compiled``) writes its JSON to docs/results. The first step is what
compiling costs, with nothing in torch's cache.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
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

STEPS = """
import sys, time, torch
from chunkcast.training.demonstrations.sources import read_demonstrations
from chunkcast.training.draws import Draws
from chunkcast.training.presets import config_of
from chunkcast.training.train_cli import choose_bf16
from chunkcast.training.trainer import Trainer

steps, arguments = int(sys.argv[1]), sys.argv[2:]
config, device = config_of(arguments), torch.device("cpu")
trainer = Trainer(config, read_demonstrations(config.data), device, choose_bf16(config.precision, device))
trainer.policy.train()
generator = torch.Generator().manual_seed(1)
draws = Draws(generator)
batches = trainer.training.shuffled(config.batch_size, generator, config.windows_per_episode)
last = time.perf_counter()
for _, batch in zip(range(steps), batches):
    loss, _ = trainer.update.step(trainer.objective.loss(batch, draws)[0])
    now = time.perf_counter()
    print(now - last, float(loss), flush=True)
    last = now
"""

KINDS = {
    "mlp": (),
    "mlp, fp32": ("--precision", "fp32"),
    "unet": ("--denoiser", "unet"),
    "transformer": ("--denoiser", "transformer"),
}


@dataclass(frozen=True)
class CompiledConfig:
    """Train some steps of each network, as it is and compiled."""

    data: Path = Path("data/six")
    """Demonstrations."""
    steps: int = 40
    """Of each run."""
    repeats: int = 2
    """Runs of each kind, in turns; medians are reported."""
    json: Path = Path("docs/results/compiled-training.json")
    """File for everything measured."""


def _seconds(config: CompiledConfig, flags: tuple[str, ...]) -> tuple[list[float], list[float]]:
    """Of each step; and the losses."""
    command = [sys.executable, "-c", STEPS, str(config.steps), "--data", str(config.data), "--out", "nowhere", *flags]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    seconds, losses = zip(*(map(float, line.split()) for line in printed.splitlines()), strict=True)
    return list(seconds), list(losses)


def _measured(config: CompiledConfig, flags: tuple[str, ...]) -> dict[str, Any]:
    ways: dict[str, list[tuple[list[float], list[float]]]] = {"as it is": [], "compiled": []}
    for _ in range(config.repeats):
        for way, runs in ways.items():
            runs.append(_seconds(config, (*flags, "--compile") if way == "compiled" else flags))
    step = {way: statistics.median(statistics.median(run[0][5:]) for run in runs) for way, runs in ways.items()}
    first = {way: statistics.median(run[0][0] for run in runs) for way, runs in ways.items()}
    saved = step["as it is"] - step["compiled"]
    losses = [runs[0][1] for runs in ways.values()]
    return {
        "step_ms": {way: round(1e3 * seconds, 2) for way, seconds in step.items()},
        "first_step_s": {way: round(seconds, 2) for way, seconds in first.items()},
        "ratio": round(step["as it is"] / step["compiled"], 3),
        "pays_after_steps": round((first["compiled"] - first["as it is"]) / saved) if saved > 0 else None,
        "most_difference_of_losses": max(abs(one - other) / one for one, other in zip(*losses, strict=True)),
    }


def main(config: CompiledConfig) -> None:
    """Measure, print, write."""
    report: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.compiled_training", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "results": {},
    }
    table = Table("", "step, ms", "compiled", "faster by", "compiling, s", "pays after steps")
    for kind, flags in KINDS.items():
        row = report["results"][kind] = _measured(config, flags)
        steps = [f"{each:.1f}" for each in row["step_ms"].values()]
        pays = row["pays_after_steps"]
        table.add_row(
            kind, *steps, f"{row['ratio']:.2f}", f"{row['first_step_s']['compiled']:.0f}", str(pays or "never")
        )
    Console().print(table)
    config.json.parent.mkdir(parents=True, exist_ok=True)
    config.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(CompiledConfig))
