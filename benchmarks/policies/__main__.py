"""Trains, exports and plays the rows of a table that are not in its JSON yet; see the package."""

from __future__ import annotations

import json
import platform
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.policies.experiment import (
    CORES,
    Experiment,
    collect_seconds,
    command,
    experiment_folder,
    experiment_of,
    train,
    train_seconds,
)
from benchmarks.policies.latency import graph_latency_ms
from benchmarks.policies.tables import SEED_REPORTED, TABLES, Play
from chunkcast.training.files import write_json
from chunkcast.training.health.rollouts import Rollouts

MACHINE = f"{platform.machine()}, cores: {CORES}"

CHOICE_SEED = 500_000
"""Of the episodes that choices are made on: neither demonstrated nor of the evaluation."""


@dataclass(frozen=True)
class PoliciesConfig:
    """Success of policies that differ in one thing, trained for the same time."""

    table: tyro.conf.Positional[Literal["few-step", "denoisers", "seed", "recipe", "chunks"]]
    """Which comparison: few-step (what the network predicts against evaluations), denoisers (networks), seed (the
    recipe that this project began with, beside ours), recipe (what each part of ours is worth), or chunks (horizon and
    executed actions)."""
    suite: Literal["six", "mt50"] = "six"
    """The six tasks of the seed, or all fifty."""
    minutes: float = 8.7
    """Of collecting and training, for every run that does not say otherwise, at the speed that the plain recipe had
    when a run was first timed."""
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
    latency: bool = False
    """Measure the graphs' latencies of the kept rows anew (those of --only) whose runs are still in --work, and nothing
    else: for a machine that was busy."""

    @property
    def plot(self) -> Path:
        """Where success against evaluations is drawn."""
        return Path(f"docs/success-by-evaluations-{self.suite}.svg")


def main(config: PoliciesConfig) -> None:
    """Fill the table and print it."""
    file = config.json or Path(f"docs/results/policies-{config.table}-{config.suite}.json")
    kept: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"rows": []}
    runs = {run.name: run for run in TABLES[config.table] if config.suite in run.suites}
    for run in runs.values():
        if config.latency or (config.only and run.name not in config.only):
            continue
        experiment = experiment_of(run, config.suite, config.minutes, config.work, runs)
        missing = [play for play in run.plays if not _is_kept(kept, config, experiment, play)]
        if not missing:
            continue
        folder = train(experiment)
        for play in missing:
            kept["rows"].append(_play(config, experiment, play, folder))
            write_json(file, kept)
    if config.latency:
        for row in kept["rows"]:
            if not config.only or row["run"] in config.only:
                _measure_latency(row, config)
                write_json(file, kept)
    asked = {"minutes": config.minutes, "first_seed": config.seed, "asked_episodes": config.episodes}
    rows = [row for row in kept["rows"] if all(row[key] == value for key, value in asked.items())]
    print_rows(rows, config)
    if config.table == "few-step" and rows:
        from benchmarks.policies.plot import plot_evaluations

        title = f"MetaWorld {config.suite}: success by evaluations, and its 95 % interval"
        plot_evaluations(rows, title, config.plot)


def _measure_latency(row: dict[str, Any], config: PoliciesConfig) -> None:
    folder = experiment_folder(config.work, config.suite, row["run"], row["identity"])
    if not folder.is_dir():
        print(f"left as it was: {row['run']}, {row['evaluations']} evaluations: {folder} is gone", flush=True)
        return
    with exported(folder, row["evaluations"]) as bundle:
        row["graph_ms"] = graph_latency_ms(bundle / "policy.onnx")
        row["graph_ms_machine"] = MACHINE


def _is_kept(kept: dict[str, Any], config: PoliciesConfig, experiment: Experiment, play: Play) -> bool:
    keys = ("run", "identity", "evaluations", "asked_execute_steps", "first_seed", "episodes_a_task")
    name, identity = experiment.run.name, experiment.identity
    episodes = play.episodes_of(config.suite, config.episodes)
    wanted = (name, identity, play.evaluations, play.execute_steps, config.seed, episodes)
    return any(tuple(row[key] for key in keys) == wanted for row in kept["rows"])


def _play(config: PoliciesConfig, experiment: Experiment, play: Play, folder: Path) -> dict[str, Any]:
    run = experiment.run
    with exported(folder, play.evaluations) as bundle:
        flags = ["--execute-steps", str(play.execute_steps)] if play.execute_steps else []
        rollouts = Rollouts(play.episodes_of(config.suite, config.episodes), config.seed, CORES)
        summary = rollouts.play_bundle(bundle, *flags, "--health-share", "0")
        training = json.loads((bundle / "policy.json").read_text())["training"]
        done = json.loads((folder / "done.json").read_text())
        row = {
            "run": run.name,
            "suite": config.suite,
            "train_flags": done["flags"],
            "parameters": int(training["parameters"]),
            "collect_seconds": collect_seconds(experiment.data),
            "teacher_seconds": train_seconds(experiment.teacher.folder) if experiment.teacher else 0.0,
            "train_seconds": train_seconds(folder),
            "slowdown": done.get("slowdown"),
            "epochs": training["epochs"],
            "first_train_noise_mse": training["loss_curve"][0]["train_noise_mse"],
            "last_train_noise_mse": training["train_noise_mse"],
            "evaluations": play.evaluations,
            "asked_execute_steps": play.execute_steps,
            "minutes": config.minutes,
            "asked_episodes": config.episodes,
            "episodes_a_task": rollouts.episodes,
            "identity": experiment.identity,
            "execute_steps": summary["execute_steps"],
            "graph_ms": graph_latency_ms(bundle / "policy.onnx"),
            **{key: summary[key] for key in ("success_rate", "episodes", "successes", "ci95", "difficulty")},
            "tasks": {task: facts["success_rate"] for task, facts in summary["tasks"].items()},
            "chunk_latency_ms": summary["chunk_latency_ms"],
            "first_seed": config.seed,
            "command": f"python -m benchmarks.policies {config.table} --suite {config.suite} --minutes "
            f"{config.minutes:g} --episodes {config.episodes} --seed {config.seed}",
            "machine": MACHINE,
        }
    low, high = row["ci95"]
    print(
        f"{run.name}, {play.evaluations} evaluations, {row['execute_steps']} actions: {row['success_rate']:.1%} "
        f"({low:.1%}-{high:.1%}, n = {row['episodes']})",
        flush=True,
    )
    return row


@contextmanager
def exported(folder: Path, evaluations: int) -> Iterator[Path]:
    """A bundle of the run in ``folder`` with that many evaluations a chunk, for a while."""
    with tempfile.TemporaryDirectory(prefix="chunkcast-") as temporary:
        bundle = Path(temporary) / "policy"
        flags = f"--run {shlex.quote(str(folder))} --out {bundle} --steps {evaluations}"
        command("chunkcast.training.export.cli", flags)
        yield bundle


def print_rows(rows: list[dict[str, Any]], config: PoliciesConfig) -> None:
    """A table for people."""
    table = Table(title=f"{config.table}, {config.suite}: success through the server", title_justify="left")
    table.add_column("run")
    headings = ["M parameters", "s in all", "evaluations", "actions", "ms at 1", "ms at 32", "success", "95 %", "n"]
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
            f"{row['collect_seconds'] + row['teacher_seconds'] + row['train_seconds']:.0f}",
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
