"""Trains, exports and plays the rows of a table that are not in its JSON yet; see the package."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.policies.latency import graph_latency_ms
from benchmarks.policies.tables import DEMONSTRATIONS, SEED_REPORTED, SUITES, TABLES, TOLD, Play, Run
from chunkcast.training.files import write_json
from chunkcast.training.health.rollouts import Rollouts

TRIAL_WINDOWS = 4
"""Of each episode: how long they take tells how many there is time for."""
TRIAL_SECONDS = 4.0
"""A trial's epoch that is shorter is repeated with more windows."""
PARTIAL_EPOCHS = 8
"""Where there is no time for as many whole ones."""
COLLECT_SEED = 0
CHOICE_SEED = 500_000
"""Of the episodes that choices are made on: neither demonstrated nor of the evaluation."""


@dataclass(frozen=True)
class PoliciesConfig:
    """Success of policies that differ in one thing, trained for the same time."""

    table: tyro.conf.Positional[Literal["few-step", "denoisers", "seed", "recipe", "chunks"]]
    """Which comparison."""
    suite: Literal["six", "mt50"] = "six"
    """The six tasks of the seed, or all fifty."""
    minutes: float = 8.7
    """Of training, for every run that does not say otherwise."""
    episodes: int = 20
    """Of each task."""
    seed: int = CHOICE_SEED
    """First episode's."""
    only: tuple[str, ...] = ()
    """Names of runs to take; by default all."""
    json: Path | None = None
    """Where rows are kept; by default docs/results/policies-TABLE-SUITE.json."""
    work: Path = Path("runs/policies")
    """Folder of the runs."""

    @property
    def plot(self) -> Path:
        """Where success against evaluations is drawn."""
        return Path(f"docs/success-by-evaluations-{self.suite}.svg")


def main(config: PoliciesConfig) -> None:
    """Fill the table and print it."""
    file = config.json or Path(f"docs/results/policies-{config.table}-{config.suite}.json")
    kept: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"rows": []}
    for run in TABLES[config.table]:
        if config.suite not in run.suites or (config.only and run.name not in config.only):
            continue
        missing = [play for play in run.plays if not _row(kept, config, run, play)]
        if not missing:
            continue
        folder = _train(config, run)
        for play in missing:
            kept["rows"].append(_play(config, run, play, folder))
            write_json(file, kept)
    print_rows(kept["rows"], config)
    if config.table == "few-step" and kept["rows"]:
        from benchmarks.policies.plot import plot_evaluations

        plot_evaluations(
            kept["rows"], f"MetaWorld {config.suite}: success by evaluations, and its 95 % interval", config.plot
        )


def _row(kept: dict[str, Any], config: PoliciesConfig, run: Run, play: Play) -> dict[str, Any] | None:
    keys = ("run", "evaluations", "asked_execute_steps", "minutes", "first_seed", "episodes_a_task", "run_flags")
    wanted = (run.name, play.evaluations, play.execute_steps, config.minutes, config.seed, config.episodes, run.flags)
    return next((row for row in kept["rows"] if tuple(row[key] for key in keys) == wanted), None)


def _train(config: PoliciesConfig, run: Run) -> Path:
    """The folder of ``run``, trained if it is not."""
    data = _collect(config.suite, run.collect)
    folder = config.work / config.suite / f"{run.name.replace(' ', '-').replace(chr(39), '')}-{config.minutes:g}-min"
    if (folder / "done.json").is_file():
        return folder
    flags = f"--data {data} {TOLD[config.suite]} {run.flags} --patience 0 --keep-epochs"
    if run.student_of:
        flags = f"--teacher {config.work / config.suite / run.student_of}-{config.minutes:g}-min {flags}"
    minutes = config.minutes if run.minutes is None else run.minutes
    minutes *= config.minutes if 0 < minutes < 1 else 1
    # Kept before it is trained: an interrupted run is resumed with what it was begun with.
    plan = folder.with_name(f"{folder.name}.plan.json")
    if plan.is_file():
        flags = json.loads(plan.read_text())["flags"]
    elif minutes:
        flags = f"{flags} {_budget(flags, data, minutes * 60)}"
    write_json(plan, {"flags": flags})
    _command("chunkcast.training.train_cli", f"{flags} --out {shlex.quote(str(folder))}", fresh=folder)
    write_json(folder / "done.json", {"flags": flags})
    return folder


def _collect(suite: str, further: str) -> Path:
    data = Path("data") / "-".join(["policies", suite, *further.replace("-", "").split()])
    if not (data / "manifest.json").is_file():
        episodes = "" if "--episodes" in further else f"--episodes {DEMONSTRATIONS}"
        _command(
            "chunkcast.training.collect.cli", f"--out {data} {SUITES[suite]} {episodes} {further} --seed {COLLECT_SEED}"
        )
    return data


def _budget(flags: str, data: Path, seconds: float) -> str:
    """Flags of chunkcast-train for as many epochs as ``seconds`` have room for, by the speed of a short trial."""
    manifest = json.loads((data / "manifest.json").read_text())
    episodes = sum(facts["episodes"] for facts in manifest["tasks"].values())
    frames = sum(facts["frames"] for facts in manifest["tasks"].values())
    windows, record = TRIAL_WINDOWS, _trial(flags, TRIAL_WINDOWS)
    # A small network is through these before it has come up to speed.
    while record["seconds"] < TRIAL_SECONDS and 8 * windows < frames / episodes:
        windows *= 8
        record = _trial(flags, windows)
    validating = record["seconds"] - windows * episodes / record["samples_per_second"]
    if "--windows-per-episode" in flags:
        each = record["seconds"] * int(flags.split("--windows-per-episode ")[1].split(maxsplit=1)[0]) / windows
        return f"--epochs {max(1, round(seconds / each))}"
    epoch = frames / record["samples_per_second"] + validating
    if seconds >= PARTIAL_EPOCHS * epoch:
        return f"--epochs {round(seconds / epoch)}"
    drawn = (seconds / PARTIAL_EPOCHS - validating) * record["samples_per_second"] / episodes
    return f"--epochs {PARTIAL_EPOCHS} --windows-per-episode {max(1, round(drawn))}"


def _trial(flags: str, windows: int) -> dict[str, Any]:
    """What the second of two short epochs, of ``windows`` an episode, says in its record."""
    with tempfile.TemporaryDirectory(prefix="chunkcast-") as folder:
        trial = f"{flags} --epochs 2 --windows-per-episode {windows} --out {folder}/trial"
        _command("chunkcast.training.train_cli", trial)
        record: dict[str, Any] = json.loads((Path(folder) / "trial" / "history.jsonl").read_text().splitlines()[-1])
    return record


def _play(config: PoliciesConfig, run: Run, play: Play, folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="chunkcast-") as temporary:
        bundle = Path(temporary) / "policy"
        _command(
            "chunkcast.training.export.cli",
            f"--run {shlex.quote(str(folder))} --out {bundle} --steps {play.evaluations}",
        )
        flags = ["--execute-steps", str(play.execute_steps)] if play.execute_steps else []
        rollouts = Rollouts(config.episodes, config.seed, os.cpu_count() or 1)
        summary = rollouts.play_bundle(bundle, *flags, "--health-share", "0")
        training = json.loads((bundle / "policy.json").read_text())["training"]
        row = {
            "run": run.name,
            "suite": config.suite,
            "train_flags": json.loads((folder / "done.json").read_text())["flags"],
            "parameters": int(training["parameters"]),
            "train_seconds": round(training["seconds"], 1),
            "epochs": training["epochs"],
            "first_train_noise_mse": training["loss_curve"][0]["train_noise_mse"],
            "last_train_noise_mse": training["train_noise_mse"],
            "evaluations": play.evaluations,
            "asked_execute_steps": play.execute_steps,
            "minutes": config.minutes,
            "episodes_a_task": config.episodes,
            "run_flags": run.flags,
            "execute_steps": summary["execute_steps"],
            "graph_ms": graph_latency_ms(bundle / "policy.onnx"),
            **{key: summary[key] for key in ("success_rate", "episodes", "successes", "ci95", "difficulty")},
            "tasks": {task: facts["success_rate"] for task, facts in summary["tasks"].items()},
            "chunk_latency_ms": summary["chunk_latency_ms"],
            "first_seed": config.seed,
            "command": shlex.join(["python", "-m", "benchmarks.policies", *sys.argv[1:]]),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
    low, high = row["ci95"]
    print(
        f"{run.name}, {play.evaluations} evaluations, {row['execute_steps']} actions: {row['success_rate']:.1%} "
        f"({low:.1%}-{high:.1%}, n = {row['episodes']})",
        flush=True,
    )
    return row


def _command(module: str, flags: str, fresh: Path | None = None) -> None:
    """Run one of our commands; its progress goes to standard error.

    Args:
        fresh: a folder of a run that may have been interrupted: it is resumed.
    """
    resume = ["--resume"] if fresh is not None and (fresh / "checkpoints" / "last.safetensors").is_file() else []
    command = [sys.executable, "-m", module, *shlex.split(flags), *resume]
    print(f"$ {shlex.join(command[2:])}", file=sys.stderr, flush=True)
    subprocess.run(command, check=True, stdout=sys.stderr)


def print_rows(rows: list[dict[str, Any]], config: PoliciesConfig) -> None:
    """A table for people."""
    table = Table(title=f"{config.table}, {config.suite}: success through the server", title_justify="left")
    table.add_column("run")
    headings = ["M parameters", "train s", "evaluations", "actions", "ms at 1", "ms at 32", "success", "95 %", "n"]
    if config.table == "seed":
        headings += ["epochs", "noise MSE, first", "last"]
    for heading in headings:
        table.add_column(heading, justify="right")
    if config.table == "seed":
        table.add_row(*SEED_REPORTED)
    for row in rows:
        low, high = row["ci95"]
        cells = [
            row["run"],
            f"{row['parameters'] / 1e6:.1f}",
            f"{row['train_seconds']:.0f}",
            str(row["evaluations"]),
            str(row["execute_steps"]),
            f"{row['graph_ms']['1']:.2f}",
            f"{row['graph_ms']['32']:.1f}",
            f"{row['success_rate']:.1%}",
            f"{low:.1%} - {high:.1%}",
            str(row["episodes"]),
        ]
        if config.table == "seed":
            cells += [str(row["epochs"])]
            cells += [f"{row[key]:.3g}" for key in ("first_train_noise_mse", "last_train_noise_mse")]
        table.add_row(*cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main(tyro.cli(PoliciesConfig))
