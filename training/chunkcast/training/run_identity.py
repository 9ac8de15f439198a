"""Which run a run is: what decides its result, whatever its folders are called, and whether another goes on with it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from chunkcast.training.errors import CheckpointError
from chunkcast.training.train_config import TrainConfig

DEFAULTS = {field.name: field.default for field in fields(TrainConfig) if field.default is not MISSING}

ALONE_FACTS = {"processes": 1, "shares_memory": False}
"""Of a run by one process; runs of earlier releases do not say so."""

ROUNDED_OTHERWISE = "rounded_otherwise"
"""True in a run whose numbers of processes, or what these shared, changed on the way."""


def what_decides_the_result(run: dict[str, Any]) -> dict[str, Any]:
    """The settings, data and arithmetic of a run; not where its files lie, what it keeps, nor that it resumes.

    Args:
        run: as ``Checkpoint.run``.
    """
    elsewhere = {"data", "out", "resume", "device", "precision", "keep_epochs", "preset", "frame_memory_gb"}
    elsewhere |= {"data_memory_gb", "mapped_folder", "keep_best"}
    elsewhere |= {f"rollout_{name}" for name in ("every", "episodes", "seed", "workers")}
    # Paths: their contents are compared.
    elsewhere |= {"text_encoder", "instructions", "teacher", "start_from", "rehearsal"}
    settings = {name: value for name, value in run["config"].items() if name not in elsewhere}
    contents = ("told", "data_sha256", "teacher_sha256", "start_from_sha256", "bf16")
    seen = {"frames": run["frames"]} if run.get("frames") else {}  # runs without cameras are who they were
    return {**settings, **{name: run[name] for name in contents}, **seen}


def run_identity(run: dict[str, Any]) -> str:
    """Twelve digits that a run shares with its copies alone, whatever their folders are called."""
    decides = json.dumps(what_decides_the_result(run), sort_keys=True)
    return hashlib.sha256(decides.encode()).hexdigest()[:12]


def require_same_run(mine: dict[str, Any], theirs: dict[str, Any], folder: Path) -> None:
    """Refuse to go on with another run.

    Args:
        mine: of the run that is to go on, as ``Checkpoint.run``.
        theirs: of the checkpoint in ``folder``.

    Raises:
        CheckpointError: a setting, the data or the arithmetic differs.
    """
    decides = what_decides_the_result(mine)
    # A setting that the run's release did not know was as it is by default now.
    before = {**json.loads(json.dumps(DEFAULTS, default=str)), **what_decides_the_result(theirs)}
    if changed := [key for key in decides if decides[key] != before.get(key)]:
        raise CheckpointError(
            f"{folder} was begun with other settings ({', '.join(changed)}); resume with the same "
            "settings and demonstrations on the same kind of processor, or choose another --out"
        )


def gone_on(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """The facts of ``theirs`` as the run ``mine`` goes on with them, which says from then on whether it rounds
    otherwise than an uninterrupted one: it had other processes, or these shared less.
    """
    alike = all(theirs.get(name, alone) == mine[name] for name, alone in ALONE_FACTS.items())
    return theirs if alike else {**theirs, ROUNDED_OTHERWISE: True}
