"""A run's history: one record an epoch, in history.jsonl and in TensorBoard."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from chunkcast.training.errors import TrainingError
from chunkcast.training.files import write_text
from chunkcast.training.top_checkpoints import Candidate

HISTORY_NAME = "history.jsonl"


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch measured. Losses are means over windows; the noise MSE is comparable across prediction types."""

    epoch: int
    """1-based."""
    step: int
    """Optimiser steps so far."""
    train_loss: float
    """The objective (x_0 or noise MSE, as the prediction type says), of the weights as they trained."""
    train_noise_mse: float
    """Noise MSE on the same batches."""
    validation_loss: float
    """The objective of the averaged weights on held-out episodes, at fixed noise and timesteps."""
    validation_noise_mse: float
    """Noise MSE on the same windows."""
    validation_noise_mse_by_timestep: dict[str, float]
    """The same by band of timesteps, such as ``0-9``."""
    validation_noise_mse_by_task: dict[str, float]
    """The same by task."""
    validation_action_mse: float
    """Error of the *sampled* actions that a robot would execute, normalised units, on the same windows."""
    validation_action_mse_by_task: dict[str, float]
    """The same by task."""
    validation_action_variance: float
    """What each task's best constant action scores there: an action MSE near it learned nothing from observations."""
    gradient_norm: float
    """Mean norm before clipping."""
    learning_rate: float
    """After the epoch's last step."""
    samples_per_second: float
    """Training windows per second, validation not counted."""
    seconds: float
    """Wall time of the epoch."""

    def measurements(self) -> dict[str, object]:
        """All fields but the wall-clock ones: what two equal runs share."""
        return {k: v for k, v in asdict(self).items() if k not in ("seconds", "samples_per_second")}


class HistoryWriter:
    """Appends records to ``history.jsonl`` and TensorBoard, flushed at each epoch.

    Args:
        folder: the run's folder.
        keep_epochs: records of later epochs are cut off (they were written after the checkpoint that is resumed).
    """

    def __init__(self, folder: Path, keep_epochs: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        kept = [record for record in read_history(folder) if record.epoch <= keep_epochs]
        file = folder / HISTORY_NAME
        write_text(file, "".join(json.dumps(asdict(record)) + "\n" for record in kept))
        self._file = file.open("a", encoding="utf-8")
        purge_step = kept[-1].step + 1 if kept else 0
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge_step)

    def append(self, record: EpochRecord) -> None:
        """Write one epoch."""
        self._file.write(json.dumps(asdict(record)) + "\n")
        self._file.flush()
        for name in ("loss", "noise_mse"):
            for split in ("train", "validation"):
                self._board.add_scalar(f"{name}/{split}", getattr(record, f"{split}_{name}"), record.step)
        for band, value in record.validation_noise_mse_by_timestep.items():
            self._board.add_scalar(f"noise_mse_by_timestep/{band}", value, record.step)
        for name in ("validation_action_mse", "gradient_norm", "learning_rate", "samples_per_second"):
            self._board.add_scalar(name, getattr(record, name), record.step)
        self._board.flush()

    def append_success(self, candidate: Candidate, step: int) -> None:
        """Show what a checkpoint's rollouts came to beside its losses."""
        assert candidate.success is not None
        self._board.add_scalar("success", candidate.success, step)
        self._board.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()


def read_history(folder: Path) -> list[EpochRecord]:
    """The records of a run so far; empty if there are none.

    Raises:
        TrainingError: they are not records of this release.
    """
    file = folder / HISTORY_NAME
    if not file.is_file():
        return []
    lines = file.read_bytes().splitlines(keepends=True)
    # A crash while a line was written leaves it without its end; that epoch's checkpoint was not written either.
    try:
        return [EpochRecord(**json.loads(line)) for line in lines if line.endswith(b"\n") and line.strip()]
    except (TypeError, ValueError, RecursionError) as error:
        raise TrainingError(
            f"{file} is not of this release of chunkcast-train ({str(error)[:120]!r}), expected one record a line"
        ) from None
