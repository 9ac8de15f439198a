"""One run of a table: its demonstrations, how long it may train, and the folder that it leaves."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.policies.tables import DEMONSTRATIONS, SUITES, TOLD, Run
from chunkcast.training.files import write_json
from chunkcast.training.history import EpochRecord, read_history
from chunkcast.training.presets import config_of

TRIAL_WINDOWS = 4
"""Of each episode: how long they take tells how many there is time for."""
CORES = len(os.sched_getaffinity(0))
PACE_WINDOWS = {"six": 64, "mt50": 8}
"""Of each episode: some seconds, once the plain recipe has come up to speed."""
TRIAL_SECONDS = 4.0
"""A trial's epoch that is shorter is repeated with more windows."""
PARTIAL_EPOCHS = 8
"""Where there is no time for as many whole ones."""
COLLECT_SEED = 0
COLLECTED = "collected.json"
"""How long collecting took, beside what was collected."""
PACE = "pace.json"
"""How fast the plain recipe trained when a run was first timed, by settings and cores, beside what it trained on."""


@dataclass(frozen=True)
class Experiment:
    """A run and all that decides what becomes of it.

    Attributes:
        run: as the table names it.
        suite: six or mt50.
        data: its demonstrations, collected.
        flags: of chunkcast-train, but for the folder of the run and how long it trains.
        train_seconds: how long it may train; 0 for as long as the flags say.
        identity: flags, defaults and demonstrations, as a hash: what was measured with others is another row.
        folder: of the run.
        teacher: of a student.
    """

    run: Run
    suite: str
    data: Path
    flags: str
    train_seconds: float
    identity: str
    folder: Path
    teacher: Experiment | None = None


def experiment_of(run: Run, suite: str, minutes: float, work: Path, runs: Mapping[str, Run]) -> Experiment:
    """``run`` with its demonstrations collected.

    Args:
        suite: six or mt50.
        minutes: of the table, of which ``run`` takes its share.
        work: folder of the runs.
        runs: of the table, by name.
    """
    data = _collect(suite, run.collect)
    flags = f"--data {data} {TOLD[suite]} {run.flags} --patience 0 --keep-epochs"
    seconds = run.minutes * minutes * 60
    facts = {
        "settings": asdict(config_of([*shlex.split(flags), "--out", "run"])),
        "data": json.loads((data / "manifest.json").read_text())["sha256"],
        "seconds": seconds,
    }
    teacher = None
    if run.student_of:
        teacher = experiment_of(runs[run.student_of], suite, minutes, work, runs)
        flags = f"--teacher {teacher.folder} {flags}"
        facts["teacher"] = teacher.identity
    elif seconds:
        seconds -= collect_seconds(data)
        if seconds <= 0:
            raise SystemExit(f"error: collecting {data} took longer than --minutes {minutes:g}; allow more")
    identity = hashlib.sha256(json.dumps(facts, default=str, sort_keys=True).encode()).hexdigest()[:12]
    return Experiment(
        run, suite, data, flags, seconds, identity, experiment_folder(work, suite, run.name, identity), teacher
    )


def experiment_folder(work: Path, suite: str, run: str, identity: str) -> Path:
    """Of the run that is named ``run``; for the others see ``Experiment``."""
    name = run.replace(" ", "-").replace("'", "").replace(",", "")
    return work / suite / f"{name}-{identity}"


def train(experiment: Experiment) -> Path:
    """The folder of the run, trained if it is not, and its teacher before it."""
    folder = experiment.folder
    if (folder / "done.json").is_file():
        return folder
    if experiment.teacher:
        train(experiment.teacher)
    flags, facts = experiment.flags, dict[str, Any]()
    # Kept before it is trained: an interrupted run is resumed with what it was begun with.
    plan = folder.with_name(f"{folder.name}.plan.json")
    if plan.is_file():
        facts = json.loads(plan.read_text())
        flags = facts["flags"]
    elif experiment.train_seconds:
        slowdown = _slowdown(experiment)
        flags = f"{flags} {_budget(flags, experiment.data, experiment.train_seconds * slowdown)}"
        facts["slowdown"] = round(slowdown, 2)
    facts["flags"] = flags
    write_json(plan, facts)
    command("chunkcast.training.train_cli", f"{flags} --out {shlex.quote(str(folder))}", fresh=folder)
    write_json(folder / "done.json", facts)
    return folder


def _collect(suite: str, further: str) -> Path:
    data = Path("data") / "-".join(["policies", suite, *further.replace("-", "").split()])
    if not (data / COLLECTED).is_file():
        started = time.monotonic()
        episodes = "" if "--episodes" in further else f"--episodes {DEMONSTRATIONS}"
        command(
            "chunkcast.training.collect.cli",
            f"--out {data} {SUITES[suite]} {episodes} {further} --seed {COLLECT_SEED} --overwrite",
        )
        write_json(data / COLLECTED, {"seconds": round(time.monotonic() - started, 1)})
    return data


def collect_seconds(data: Path) -> float:
    """How long it took to collect ``data``."""
    return float(json.loads((data / COLLECTED).read_text())["seconds"])


def _slowdown(experiment: Experiment) -> float:
    """How many times longer than at first the plain recipe takes now: on a shared machine equal times are not equal
    work, and a run that was timed in a slow minute would get fewer epochs than its neighbours.
    """
    data = _collect(experiment.suite, "")
    flags = f"--data {data} {TOLD[experiment.suite]}"
    settings = json.dumps(asdict(config_of([*shlex.split(flags), "--out", "run"])), default=str, sort_keys=True)
    key = f"{hashlib.sha256(settings.encode()).hexdigest()[:12]}, cores: {CORES}"
    pace = data / PACE
    paces = json.loads(pace.read_text()) if pace.is_file() else {}
    now = _trial(flags, PACE_WINDOWS[experiment.suite]).samples_per_second
    if key not in paces:
        write_json(pace, {**paces, key: now})
    return float(paces.get(key, now) / now)


def _budget(flags: str, data: Path, seconds: float) -> str:
    """Flags of chunkcast-train for as many epochs as ``seconds`` have room for, by the speed of a short trial."""
    manifest = json.loads((data / "manifest.json").read_text())
    episodes = sum(facts["episodes"] for facts in manifest["tasks"].values())
    frames = sum(facts["frames"] for facts in manifest["tasks"].values())
    windows, record = TRIAL_WINDOWS, _trial(flags, TRIAL_WINDOWS)
    # A small network is through these before it has come up to speed.
    while record.seconds < TRIAL_SECONDS and 8 * windows < frames / episodes:
        windows *= 8
        record = _trial(flags, windows)
    validating = record.seconds - windows * episodes / record.samples_per_second
    if "--windows-per-episode" in flags:
        each = record.seconds * int(flags.split("--windows-per-episode ")[1].split(maxsplit=1)[0]) / windows
        return f"--epochs {max(1, round(seconds / each))}"
    epoch = frames / record.samples_per_second + validating
    if seconds >= PARTIAL_EPOCHS * epoch:
        return f"--epochs {round(seconds / epoch)}"
    drawn = (seconds / PARTIAL_EPOCHS - validating) * record.samples_per_second / episodes
    return f"--epochs {PARTIAL_EPOCHS} --windows-per-episode {max(1, round(drawn))}"


def _trial(flags: str, windows: int) -> EpochRecord:
    """The second of two short epochs, of ``windows`` an episode."""
    with tempfile.TemporaryDirectory(prefix="chunkcast-") as folder:
        trial = f"{flags} --epochs 2 --windows-per-episode {windows} --out {folder}/trial"
        command("chunkcast.training.train_cli", trial)
        return read_history(Path(folder) / "trial")[-1]


def train_seconds(folder: Path) -> float:
    """How long the run in ``folder`` has trained, validation included."""
    return round(sum(record.seconds for record in read_history(folder)), 1)


def command(module: str, flags: str, fresh: Path | None = None) -> None:
    """Run one of our commands; its progress goes to standard error.

    Args:
        fresh: a folder of a run that may have been interrupted: it is resumed.
    """
    resume = ["--resume"] if fresh is not None and (fresh / "checkpoints" / "last.safetensors").is_file() else []
    arguments = [sys.executable, "-m", module, *shlex.split(flags), *resume]
    print(f"$ {shlex.join(arguments[2:])}", file=sys.stderr, flush=True)
    subprocess.run(arguments, check=True, stdout=sys.stderr)
