"""Trains, exports and plays the rows of a table that are not in its JSON yet; see the package."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.policies.latency import graph_latency_ms
from benchmarks.policies.tables import DEMONSTRATIONS, SEED_REPORTED, SUITES, TABLES, TOLD, Play, Run
from chunkcast.training.files import write_json
from chunkcast.training.health.rollouts import Rollouts
from chunkcast.training.presets import config_of

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
    """Which comparison: few-step (what the network predicts against evaluations), denoisers (networks), seed (the
    recipe that this project began with, beside ours), recipe (what each part of ours is worth), or chunks (horizon and
    executed actions)."""
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


@dataclass(frozen=True)
class Experiment:
    """A run and all that decides what becomes of it.

    Attributes:
        run: as the table names it.
        data: its demonstrations, collected.
        flags: of chunkcast-train, but for the folder of the run and how long it trains.
        minutes: of training; 0 for as long as the flags say.
        identity: flags, defaults and demonstrations, as a hash: what was measured with others is another row.
    """

    run: Run
    data: Path
    flags: str
    minutes: float
    identity: str


def main(config: PoliciesConfig) -> None:
    """Fill the table and print it."""
    file = config.json or Path(f"docs/results/policies-{config.table}-{config.suite}.json")
    kept: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"rows": []}
    runs = {run.name: run for run in TABLES[config.table] if config.suite in run.suites}
    for run in runs.values():
        if config.only and run.name not in config.only:
            continue
        experiment = _experiment(config, run, runs)
        missing = [play for play in run.plays if not _is_kept(kept, config, experiment, play)]
        if not missing:
            continue
        folder = _train(config, experiment)
        for play in missing:
            kept["rows"].append(_play(config, experiment, play, folder))
            write_json(file, kept)
    print_rows(kept["rows"], config)
    if config.table == "few-step" and kept["rows"]:
        from benchmarks.policies.plot import plot_evaluations

        title = f"MetaWorld {config.suite}: success by evaluations, and its 95 % interval"
        plot_evaluations(kept["rows"], title, config.plot)


def _experiment(config: PoliciesConfig, run: Run, runs: dict[str, Run]) -> Experiment:
    data = _collect(config.suite, run.collect)
    flags = f"--data {data} {TOLD[config.suite]} {run.flags} --patience 0 --keep-epochs"
    minutes = run.minutes * config.minutes
    facts = {
        "settings": asdict(config_of([*shlex.split(flags), "--out", "run"])),
        "data": json.loads((data / "manifest.json").read_text())["sha256"],
        "minutes": minutes,
    }
    if run.student_of:
        teacher = _experiment(config, runs[run.student_of], runs)
        flags = f"--teacher {_folder(config, teacher)} {flags}"
        facts["teacher"] = teacher.identity
    identity = hashlib.sha256(json.dumps(facts, default=str, sort_keys=True).encode()).hexdigest()[:12]
    return Experiment(run, data, flags, minutes, identity)


def _folder(config: PoliciesConfig, experiment: Experiment) -> Path:
    return (
        config.work
        / config.suite
        / f"{experiment.run.name.replace(' ', '-').replace(chr(39), '')}-{experiment.identity}"
    )


def _is_kept(kept: dict[str, Any], config: PoliciesConfig, experiment: Experiment, play: Play) -> bool:
    keys = ("run", "identity", "evaluations", "asked_execute_steps", "first_seed", "episodes_a_task")
    name, identity = experiment.run.name, experiment.identity
    wanted = (name, identity, play.evaluations, play.execute_steps, config.seed, config.episodes)
    return any(tuple(row[key] for key in keys) == wanted for row in kept["rows"])


def _train(config: PoliciesConfig, experiment: Experiment) -> Path:
    """The folder of the run, trained if it is not."""
    folder = _folder(config, experiment)
    if (folder / "done.json").is_file():
        return folder
    flags = experiment.flags
    # Kept before it is trained: an interrupted run is resumed with what it was begun with.
    plan = folder.with_name(f"{folder.name}.plan.json")
    if plan.is_file():
        flags = json.loads(plan.read_text())["flags"]
    elif experiment.minutes:
        flags = f"{flags} {_budget(flags, experiment.data, experiment.minutes * 60)}"
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


def _play(config: PoliciesConfig, experiment: Experiment, play: Play, folder: Path) -> dict[str, Any]:
    run = experiment.run
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
            "minutes": experiment.minutes,
            "episodes_a_task": config.episodes,
            "identity": experiment.identity,
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
