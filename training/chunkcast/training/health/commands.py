"""The subcommands of ``chunkcast-health``: their flags, and what they do."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from chunkcast.training.errors import TrainingError
from chunkcast.training.health.loss_curve import LossKind
from chunkcast.training.health.measure_command import Measure, measure_command
from chunkcast.training.health.monitor_command import Monitor, monitor_command
from chunkcast.training.seeds import CALIBRATION_SEED

if TYPE_CHECKING:
    from chunkcast.training.demonstrations.episodes import Demonstrations
    from chunkcast.training.health.calibration_file import Played
    from chunkcast.training.health.rollouts import Rollouts


@dataclass(frozen=True)
class Check:
    """Print the findings about a training run; exit code 1 if one of them is an error."""

    history: Positional[Path]
    """A run of chunkcast-train, its history.jsonl, or any trainer's CSV or JSONL with the columns epoch, train_loss (or
    loss) and perhaps val_loss."""
    json: Path | None = None
    """File for the findings."""
    loss: LossKind = "noise-mse"
    """What a bare history's loss is. The noise-prediction MSE has a scale (1.0 is predicting no noise); of any other
    loss only the course is judged."""
    samples: int | None = None
    """Training samples that an epoch passes over, for the advice by data-set size; a run knows its own."""
    batch_size: int | None = None
    """Samples per optimiser step, for the same; a run knows its own."""


@dataclass(frozen=True)
class Report:
    """Write report.html, for people, and report.json about a training run."""

    run: Positional[Path]
    """As chunkcast-health check takes it."""
    out: Path | None = None
    """Folder of the report; by default the run's."""
    calibration: Path | None = None
    """What chunkcast-health calibrate wrote; by default calibration.json in the run's folder, if it is there."""
    loss: LossKind = "noise-mse"
    """What a bare history's loss is."""
    samples: int | None = None
    """Training samples that an epoch passes over; a run knows its own."""
    batch_size: int | None = None
    """Samples per optimiser step; a run knows its own."""


@dataclass(frozen=True)
class Calibrate:
    """Play the checkpoints along several runs through the server, fit measured success on offline metrics, and write
    the expected success into a bundle.
    """

    runs: Positional[tuple[Path, ...]]
    """Runs of chunkcast-train with kept checkpoints (--keep-epochs); three or more, so that one can be left out."""
    bundle: Path
    """The bundle that gets the expectation; exported from one of the runs. It is played too."""
    data: Path
    """Demonstrations that no run was trained on, such as chunkcast-collect --seed 400000 --episodes 10 makes."""
    episodes: int = 20
    """Episodes of each task and checkpoint."""
    seed: int = CALIBRATION_SEED
    """First episode seed; neither of demonstrations, choices (500000) nor evaluations (1000000)."""
    workers: int = os.cpu_count() or 1
    """Parallel robots."""
    json: Path | None = None
    """File for everything measured; by default calibration.json in the folder of the bundle's run."""


@dataclass(frozen=True)
class Expect:
    """Write into a new bundle what an earlier calibration expects of it, without playing an episode."""

    run: Positional[Path]
    """The run that the bundle was exported from."""
    bundle: Path
    """The bundle that gets the expectation."""
    calibration: Path
    """What chunkcast-health calibrate wrote."""
    data: Path
    """The demonstrations of that calibration."""


Command = Check | Report | Calibrate | Expect | Measure | Monitor


def run_health(command: Command) -> None:
    """Do what was asked for.

    Raises:
        TrainingError: bad input.
        SystemExit: with 1 if ``check`` finds an error.
    """
    # diffusers announces that optional packages (a GPU's) are absent.
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    match command:
        case Check():
            check_command(command)
        case Report():
            report_command(command)
        case Calibrate():
            calibrate_command(command)
        case Expect():
            expect_command(command)
        case Measure():
            measure_command(command)
        case Monitor():
            monitor_command(command)


def check_command(config: Check) -> None:
    """Print and write the findings.

    Raises:
        TrainingError: the history cannot be read.
        SystemExit: with 1 if a finding is an error.
    """
    from chunkcast.training.files import write_json
    from chunkcast.training.health.judge import judge
    from chunkcast.training.health.tables import print_findings
    from chunkcast.training.health.whole_run import read_run

    if config.json and config.json.resolve() == config.history.resolve():
        raise TrainingError(f"--json is {config.json}, the history itself; name another file")
    curve, _, settings, _ = read_run(config.history, config.loss, config.samples, config.batch_size)
    findings = judge(curve, settings)
    if config.json:
        facts = {
            "history": str(config.history),
            "epochs": len(curve),
            "findings": [each.as_json() for each in findings],
        }
        write_json(config.json, facts)
    print_findings(findings)
    if any(finding.severity == "error" for finding in findings):
        raise SystemExit(1)


def report_command(config: Report) -> None:
    """Write the report.

    Raises:
        TrainingError: the history or the calibration cannot be read.
    """
    from rich.console import Console

    from chunkcast.training.health.judge import judge
    from chunkcast.training.health.report import write_report
    from chunkcast.training.health.whole_run import read_run

    curve, records, settings, facts = read_run(config.run, config.loss, config.samples, config.batch_size)
    folder = config.run if config.run.is_dir() else config.run.parent
    beside = folder / "calibration.json"
    calibration = config.calibration or (beside if beside.is_file() else None)
    with Console(stderr=True).status("drawing"):
        files = write_report(
            config.out or folder,
            curve,
            records,
            judge(curve, settings),
            facts,
            _calibration_about(config.run, calibration) if calibration else None,
        )
    print("\n".join(map(str, files)))


def _calibration_about(run: Path, file: Path) -> dict[str, Any]:
    """A calibration; what it expects of its bundle only if that came from this very run."""
    from chunkcast.training.checkpoint import read_run_facts
    from chunkcast.training.health.calibration_file import read_calibration, require_reportable
    from chunkcast.training.run_identity import run_identity

    facts, _ = read_calibration(file)
    require_reportable(file, facts)
    last = run / "checkpoints" / "last.safetensors"
    own = run_identity(read_run_facts(last)) if last.is_file() else None
    return facts if own == facts.get("bundle_run_identity") else {**facts, "expected": []}


def calibrate_command(config: Calibrate) -> None:
    """Play, fit, write, and print what came out.

    Raises:
        TrainingError: a run, the data or the bundle cannot be used.
    """
    from chunkcast.training.checkpoint import read_run_facts
    from chunkcast.training.demonstrations.sources import read_demonstrations
    from chunkcast.training.export.bundle_writer import read_spec, write_expectations
    from chunkcast.training.files import write_json
    from chunkcast.training.health import calibration_file, messages
    from chunkcast.training.health.calibrate import find_checkpoint, measure
    from chunkcast.training.health.calibration import MIN_RUNS, Calibration, hold_out
    from chunkcast.training.health.rollouts import Rollouts
    from chunkcast.training.health.tables import print_calibration
    from chunkcast.training.run_identity import run_identity

    rollouts = Rollouts(config.episodes, config.seed, config.workers)
    if not config.runs:
        raise TrainingError("no run to calibrate on; name the folders of three or more runs of chunkcast-train")
    if len(config.runs) < MIN_RUNS:
        print(f"warning: {len(config.runs)} runs; the error on held-out runs needs {MIN_RUNS}", file=sys.stderr)
    spec = read_spec(config.bundle)
    demonstrations = read_demonstrations(config.data)
    own_run, own_file = find_checkpoint(spec, config.runs)
    played = _play(config, demonstrations, rollouts, spec.sampler.evaluations)
    summary = rollouts.play_bundle(config.bundle)

    points = [each.point for each in played]
    held_out = hold_out(points) if len(config.runs) >= MIN_RUNS else None
    facts = calibration_file.calibration_json(played, held_out)
    expected = [*messages.measured_messages(summary), messages.seed_table_message(spec, facts["held_out"])]
    others = [point for point in points if point.run != own_run.name]
    if len({point.run for point in others}) >= 2:
        # The bundle's own run is left out: what is expected of it is what would be expected of a new one.
        metrics = measure(own_file, demonstrations, spec.sampler.evaluations)
        calibration = Calibration(others)
        facts["metric"] = calibration.metric
        expected += messages.calibrated_messages(calibration, metrics, facts["held_out"])
    facts |= {
        "policy": spec.name,
        "policy_version": spec.version,
        "evaluations": spec.sampler.evaluations,
        "episodes_per_task": config.episodes,
        "first_seed": config.seed,
        "last_seed": config.seed + config.episodes - 1,
        "data_sha256": demonstrations.sha256,
        "bundle_run_identity": run_identity(read_run_facts(own_file)),
        "expected": [messages.expectation_json(each) for each in expected],
        "command": shlex.join(["chunkcast-health", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
    }
    file = config.json or own_run / "calibration.json"
    write_json(file, facts)
    write_expectations(config.bundle, expected)
    print_calibration(facts)
    print(f"{file}\n{config.bundle / 'policy.json'}")


def _play(config: Calibrate, demonstrations: Demonstrations, rollouts: Rollouts, evaluations: int) -> list[Played]:
    """Play every checkpoint behind a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from chunkcast.training.health.calibrate import play_runs

    console = Console(stderr=True)
    columns = (
        TextColumn("playing checkpoints"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[latest]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=None, latest="offline metrics")

        def on_checkpoint(latest: str, done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total, latest=latest)
            if not console.is_terminal:  # a log wants a line each, where a terminal has the bar
                console.print(latest, highlight=False)

        return play_runs(config.runs, demonstrations, rollouts, evaluations, on_checkpoint)


def expect_command(config: Expect) -> None:
    """Apply an earlier calibration to a bundle.

    Raises:
        TrainingError: it does not fit: other demonstrations, tasks or sampler.
    """
    from chunkcast.training.checkpoint import read_run_facts
    from chunkcast.training.demonstrations.sources import read_demonstrations
    from chunkcast.training.export.bundle_writer import read_spec, write_expectations
    from chunkcast.training.health import messages
    from chunkcast.training.health.calibrate import find_checkpoint, measure
    from chunkcast.training.health.calibration import Calibration
    from chunkcast.training.health.calibration_file import read_calibration
    from chunkcast.training.health.tables import print_expectations
    from chunkcast.training.run_identity import run_identity

    spec = read_spec(config.bundle)
    facts, points = read_calibration(config.calibration)
    demonstrations = read_demonstrations(config.data)
    made_with = str(facts.get("data_sha256"))
    if demonstrations.sha256 != made_with:
        raise TrainingError(
            f"{config.data} has SHA-256 {demonstrations.sha256[:12]}..., the calibration was made with "
            f"{made_with[:12]}...; metrics on other demonstrations do not compare: calibrate again"
        )
    if facts.get("evaluations") != spec.sampler.evaluations:
        raise TrainingError(
            f"{spec.name} samples in {spec.sampler.evaluations} evaluations, the calibration was made with "
            f"{facts.get('evaluations')} evaluations; export it with as many, or calibrate again"
        )
    _, file = find_checkpoint(spec, [config.run])
    own = run_identity(read_run_facts(file))
    identities = [each.get("run_identity") for each in facts["checkpoints"]]
    others = [point for point, identity in zip(points, identities, strict=True) if identity != own]
    metrics = measure(file, demonstrations, spec.sampler.evaluations)
    expected = [
        *messages.calibrated_messages(Calibration(others), metrics, facts["held_out"]),
        messages.seed_table_message(spec, facts["held_out"]),
    ]
    write_expectations(config.bundle, expected)
    print_expectations([messages.expectation_json(each) for each in expected])
    print(config.bundle / "policy.json")
