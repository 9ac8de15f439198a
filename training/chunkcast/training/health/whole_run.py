"""A run as the health commands take it: a folder of chunkcast-train, or any trainer's history."""

from __future__ import annotations

from pathlib import Path

from chunkcast.training.checkpoint import read_run_facts
from chunkcast.training.errors import TrainingError
from chunkcast.training.health.judge import RunSettings, run_settings
from chunkcast.training.health.loss_curve import EpochLosses, LossKind, read_curve
from chunkcast.training.history import HISTORY_NAME, EpochRecord, read_history


def read_run(
    path: Path, loss: LossKind, samples: int | None, batch_size: int | None
) -> tuple[list[EpochLosses], list[EpochRecord] | None, RunSettings, dict[str, str]]:
    """A run's losses, its whole records if it is one of chunkcast-train, its settings, and facts for people.

    Raises:
        TrainingError: ``path`` is neither a run nor a history.
    """
    for name, value in (("--samples", samples), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise TrainingError(f"{name} must be at least 1, got {value}")
        if value is not None and path.is_dir():
            raise TrainingError(f"{name} is for a bare history; {path} is a run, which knows its own")
    if not path.is_dir():
        return read_curve(path, loss), None, RunSettings(samples, batch_size), {"history": str(path)}
    if not (path / HISTORY_NAME).is_file():
        raise TrainingError(f"{path} has no {HISTORY_NAME}; expected a run of chunkcast-train, or a history's file")
    curve, records = read_curve(path / HISTORY_NAME, loss), read_history(path)
    last = path / "checkpoints" / "last.safetensors"
    if not last.is_file():  # a run that diverged in its first epoch
        return curve, records, RunSettings(samples, batch_size), {"run": path.name}
    run = read_run_facts(last)
    facts = {
        "run": path.name,
        "command": run["command"],
        "training windows": f"{run['training_windows']:,}",
        "validation windows": f"{run['validation_windows']:,}",
        "episodes": f"{run['episodes']:,}",
        "parameters": f"{run['parameters']:,}",
        "data SHA-256": run["data_sha256"],
        "seconds": f"{run['seconds']:.0f}",
    }
    return curve, records, run_settings(run), facts
