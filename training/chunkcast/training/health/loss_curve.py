"""Losses by epoch, of this project's runs or of any other trainer's log."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from chunkcast.training.errors import TrainingError
from chunkcast.training.history import EpochRecord

MAX_BYTES = 64 * 2**20
MAX_EPOCHS = 100_000

EPOCH_NAMES = ("epoch",)
TRAIN_NAMES = ("train_loss", "training_loss", "loss", "train/loss")
VALIDATION_NAMES = ("val_loss", "validation_loss", "valid_loss", "eval_loss", "val/loss")

LossKind = Literal["noise-mse", "other"]
"""What a bare history's loss is: the noise-prediction MSE, whose scale is known (1.0 is predicting no noise), or
something else, of which only the course can be judged."""


@dataclass(frozen=True)
class EpochLosses:
    """What one epoch measured; None where it was not.

    Attributes:
        epoch: its number.
        train_loss, validation_loss: what was minimised, on training and held-out data.
        train_noise_mse, validation_noise_mse: the noise-prediction MSE, comparable across prediction types.
        action_mse: error of sampled actions on held-out data, normalised units.
        action_variance: what the best policy scores there that does not look at its observation.
        gradient_norm: mean norm before clipping.
    """

    epoch: int
    train_loss: float
    validation_loss: float | None = None
    train_noise_mse: float | None = None
    validation_noise_mse: float | None = None
    action_mse: float | None = None
    action_variance: float | None = None
    gradient_norm: float | None = None

    @property
    def noise_mse(self) -> float | None:
        """On held-out data where it was measured there, else on training data."""
        return self.train_noise_mse if self.validation_noise_mse is None else self.validation_noise_mse

    @property
    def judged_loss(self) -> float:
        """The loss on held-out data where it was measured there, else on training data."""
        return self.train_loss if self.validation_loss is None else self.validation_loss


LossCurve = Sequence[EpochLosses]
"""By ascending epoch."""


def curve_of_records(records: Iterable[EpochRecord]) -> list[EpochLosses]:
    """The losses of a run of chunkcast-train."""
    return [
        EpochLosses(
            epoch=record.epoch,
            train_loss=record.train_loss,
            validation_loss=record.validation_loss,
            train_noise_mse=record.train_noise_mse,
            validation_noise_mse=record.validation_noise_mse,
            action_mse=record.validation_action_mse,
            action_variance=record.validation_action_variance,
            gradient_norm=record.gradient_norm,
        )
        for record in records
    ]


def read_curve(file: Path, loss: LossKind = "noise-mse") -> list[EpochLosses]:
    """Read a history: chunkcast-train's ``history.jsonl``, or a CSV or JSONL with the columns epoch, train_loss (or
    loss) and perhaps val_loss.

    Rows of the same epoch are merged, as loggers write training and validation losses in rows of their own.

    Args:
        file: ``.csv``, ``.jsonl`` or ``.json`` (lines).
        loss: what a bare history's loss is; a history of chunkcast-train says so itself.

    Raises:
        TrainingError: the file is missing, too large, not in this form, or has no epoch.
    """
    if not file.is_file():
        raise TrainingError(f"{file} is missing; expected a history: CSV or JSONL with epoch, train_loss[, val_loss]")
    if (size := file.stat().st_size) > MAX_BYTES:
        raise TrainingError(f"{file} has {size} bytes, expected at most {MAX_BYTES}: one row an epoch")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise TrainingError(f"{file} is not text; expected CSV or JSONL with epoch, train_loss[, val_loss]") from None
    rows = list(_csv_rows(text)) if file.suffix.lower() == ".csv" else list(_json_rows(file, text))
    if rows and "train_noise_mse" in rows[0][1]:
        return _own_curve(file, rows)
    return _bare_curve(file, rows, loss)


def _csv_rows(text: str) -> Iterable[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(csv.DictReader(text.splitlines()), start=2):
        # Where a row is longer than the header, the rest stands under None.
        yield number, {name.strip(): value for name, value in row.items() if name and value not in (None, "")}


def _json_rows(file: Path, text: str) -> Iterable[tuple[int, dict[str, Any]]]:
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines) and not line.endswith("\n"):
                return  # a crash while the last line was written
            raise TrainingError(f"{file}, line {number} is not JSON ({error}); expected one object a line") from None
        if not isinstance(row, dict):
            raise TrainingError(
                f"{file}, line {number} is {str(row)[:40]!r}, expected an object with epoch, train_loss"
            )
        yield number, {name: value for name, value in row.items() if value is not None}


def _own_curve(file: Path, rows: list[tuple[int, dict[str, Any]]]) -> list[EpochLosses]:
    try:
        return curve_of_records(EpochRecord(**row) for _, row in rows)
    except TypeError as error:
        raise TrainingError(
            f"{file} is a history of another release of chunkcast-train ({str(error).split('__init__() ')[-1]}); "
            "train again, or pass on its columns epoch, train_loss, val_loss"
        ) from None


def _bare_curve(file: Path, rows: list[tuple[int, dict[str, Any]]], loss: LossKind) -> list[EpochLosses]:
    train: dict[int, float] = {}
    validation: dict[int, float] = {}
    epochs: dict[int, None] = {}
    for number, row in rows:
        where = f"{file}, line {number}"
        value = _first(row, EPOCH_NAMES)
        if value is None:
            raise TrainingError(f"{where} has no epoch; its columns are {', '.join(map(str, row)) or 'none'}")
        epoch = _number(where, "epoch", value)
        if not epoch.is_integer() or not 0 <= epoch < 2**53:
            raise TrainingError(f"{where}: epoch is {value!r}, expected a whole number: one row an epoch")
        epochs[int(epoch)] = None
        for losses, names in ((train, TRAIN_NAMES), (validation, VALIDATION_NAMES)):
            if (value := _first(row, names)) is not None:
                losses[int(epoch)] = _number(where, "loss", value)
        if len(epochs) > MAX_EPOCHS:
            raise TrainingError(f"{file} has more than {MAX_EPOCHS} epochs; expected one row an epoch, not a step")
    if not train:
        raise TrainingError(f"{file} has no training loss; expected a column {' or '.join(TRAIN_NAMES[:3])}")
    if missing := [epoch for epoch in epochs if epoch not in train and epoch < max(train)]:
        raise TrainingError(f"{file} has no training loss in epoch {min(missing)}")
    absolute = loss == "noise-mse"
    return [
        EpochLosses(
            epoch=epoch,
            train_loss=train[epoch],
            validation_loss=validation.get(epoch),
            train_noise_mse=train[epoch] if absolute else None,
            validation_noise_mse=validation.get(epoch) if absolute else None,
        )
        for epoch in sorted(train)
    ]


def _first(row: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if name in row), None)


def _number(where: str, name: str, value: Any) -> float:
    try:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TrainingError(f"{where}: {name} is {str(value)[:40]!r}, expected a number") from None


def is_finite(value: float | None) -> bool:
    """Whether ``value`` is absent or finite."""
    return value is None or math.isfinite(value)
