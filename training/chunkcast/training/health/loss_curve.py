"""Losses by epoch, of this project's runs or of any other trainer's log."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from chunkcast.training.errors import TrainingError
from chunkcast.training.health.log_rows import Row, epoch_number, number, read_rows, shown_names
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
        denoises: whether the noise MSE is what the run was trained for; where it is not, it is not judged.
    """

    epoch: int
    train_loss: float
    validation_loss: float | None = None
    train_noise_mse: float | None = None
    validation_noise_mse: float | None = None
    action_mse: float | None = None
    action_variance: float | None = None
    gradient_norm: float | None = None
    denoises: bool = True

    @property
    def noise_mse(self) -> float | None:
        """On held-out data where it was measured there, else on training data; None where it is not judged."""
        if not self.denoises:
            return None
        return self.train_noise_mse if self.validation_noise_mse is None else self.validation_noise_mse

    @property
    def predicts_noise(self) -> bool:
        """Whether what was minimised is the noise MSE itself: a noise predictor's objective is no other number."""
        return self.train_loss == self.train_noise_mse

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

    Rows of the same epoch are merged, as loggers write training and validation losses in rows of their own. An epoch
    of which a row has neither loss, and none the training loss, has a training loss of NaN: so is NaN written in
    strict JSON (null) and by pandas (an empty cell).

    Args:
        file: ``.csv``, ``.jsonl`` or ``.json`` (lines).
        loss: what a bare history's loss is; a history of chunkcast-train says so itself.

    Raises:
        TrainingError: the file is missing, too large, not in this form, or has no epoch.
    """
    rows = read_rows(file, MAX_BYTES)
    curve: list[EpochLosses] = []
    if rows and "train_noise_mse" in rows[0].cells:
        curve = curve_of_records(_own_records(rows))
    elif rows:
        curve = _bare_curve(file, rows, loss)
    if not curve:
        raise TrainingError(f"{file} has no whole epoch, expected at least one")
    return curve


def _own_records(rows: list[Row]) -> Iterable[EpochRecord]:
    kinds = get_type_hints(EpochRecord)
    before = -1
    for where, cells, ended in rows:
        if not ended:
            return  # as read_history does
        if other := sorted(kinds.keys() ^ cells.keys()):
            raise TrainingError(
                f"{where} is of another release of chunkcast-train, expected the same columns but for "
                f"{shown_names(other)}; train again, or pass on its columns epoch, train_loss, val_loss"
            )
        for name, value in cells.items():
            several = kinds[name] == dict[str, float]
            if several and not isinstance(value, dict):
                raise TrainingError(f"{where}: {name} is {reprlib.repr(value)}, expected an object of numbers")
            for each in value.values() if several else [value]:
                number(where, name, each, (int, float))
        epoch = epoch_number(where, cells["epoch"], (int, float))
        if epoch <= before:
            raise TrainingError(f"{where}: epoch {epoch} comes after epoch {before}, expected ascending epochs")
        before = epoch
        yield EpochRecord(**{**cells, "epoch": epoch})


def _bare_curve(file: Path, rows: list[Row], loss: LossKind) -> list[EpochLosses]:
    train: dict[int, float] = {}
    validation: dict[int, float] = {}
    epochs: set[int] = set()
    without: set[int] = set()
    in_one_row = False
    for where, cells, _ in rows:
        value = _first(cells, EPOCH_NAMES)
        if value is None:
            raise TrainingError(f"{where} has no epoch, expected one in each row; its columns are {shown_names(cells)}")
        epoch = epoch_number(where, value)
        epochs.add(epoch)
        if len(epochs) > MAX_EPOCHS:
            raise TrainingError(f"{file} has more than {MAX_EPOCHS} epochs; expected one row an epoch, not a step")
        trained, held_out = _first(cells, TRAIN_NAMES), _first(cells, VALIDATION_NAMES)
        if trained is not None:
            train[epoch] = number(where, "loss", trained)
        if held_out is not None:
            validation[epoch] = number(where, "validation loss", held_out)
        if trained is None and held_out is None:
            without.add(epoch)
        in_one_row |= trained is not None and held_out is not None
    if not any(name in row.cells for row in rows for name in TRAIN_NAMES):
        raise TrainingError(f"{file} has no training loss; expected a column {' or '.join(TRAIN_NAMES[:3])}")
    for epoch in without - train.keys():
        train[epoch] = math.nan
    # Only a logger that writes the losses in rows of their own leaves the last epoch without: it was not done.
    missing = epochs - train.keys() - (set() if in_one_row else {max(epochs)})
    if missing:
        raise TrainingError(f"{file} has no training loss in epoch {min(missing)}, expected one in each epoch")
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


def _first(cells: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((cells[name] for name in names if cells.get(name) is not None), None)


def is_finite(value: float | None) -> bool:
    """Whether ``value`` is absent or finite."""
    return value is None or math.isfinite(value)
