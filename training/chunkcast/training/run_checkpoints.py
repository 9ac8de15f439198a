"""What a run leaves of itself: where it stands, and the checkpoints that are worth keeping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from chunkcast.training.checkpoint import (
    BEST_CHECKPOINT,
    LAST_CHECKPOINT,
    Checkpoint,
    epoch_checkpoint,
    read_checkpoint,
    top_checkpoint,
    write_checkpoint,
)
from chunkcast.training.history import EpochRecord
from chunkcast.training.top_checkpoints import Candidate, TopCheckpoints
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.training_rollouts import played


class RunCheckpoints:
    """The files in a run's ``checkpoints``.

    Args:
        config: the run's settings.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.top = TopCheckpoints(config.out, config.keep_best)

    def write(self, record: EpochRecord, best: bool, averaged: Checkpoint, whole: Checkpoint) -> None:
        """Write what an epoch leaves; the last checkpoint last, since it is what is resumed.

        Args:
            best: whether its validation loss is the lowest so far.
            averaged: the averaged weights alone.
            whole: all that resuming needs.
        """
        if best:
            write_checkpoint(self._config.out / BEST_CHECKPOINT, averaged)
        if record.epoch in self._config.keep_epochs:
            write_checkpoint(self._config.out / epoch_checkpoint(record.epoch), averaged)
        if self._is_played(record.epoch) or self.top.wants(record.validation_loss):
            write_checkpoint(self._config.out / top_checkpoint(record.epoch), averaged)
        write_checkpoint(self._config.out / LAST_CHECKPOINT, whole)

    def rank(self, record: EpochRecord, on_played: Callable[[Candidate, int], None], *, stopped: bool = False) -> None:
        """See where the epoch's checkpoint stands; where it is due, by what it does when it is played.

        Args:
            on_played: called with what came of it, and the optimiser's steps so far.
            stopped: whether the run ends with this epoch, before the last.

        Raises:
            TrainingError: it cannot be played.
        """
        due = self._is_played(record.epoch) or (stopped and bool(self._config.rollout_every))
        if not due and not self.top.wants(record.validation_loss):
            return
        candidate = Candidate(record.epoch, record.validation_loss)
        self._require_file(record.epoch)
        if due:
            candidate = played(self._config, candidate)
            on_played(candidate, record.step)
        self.top.add(candidate)

    def _require_file(self, epoch: int) -> None:
        """An epoch that nobody meant to keep has its averaged weights in the last checkpoint alone."""
        file = self._config.out / top_checkpoint(epoch)
        if not file.is_file():
            last = read_checkpoint(self._config.out / LAST_CHECKPOINT)
            averaged = {name: value for name, value in last.tensors.items() if name.startswith("ema.")}
            write_checkpoint(file, replace(last, tensors=averaged))

    def owes(self, epoch: int, *, stopped: bool = False) -> bool:
        """Whether the checkpoint of ``epoch``, the last so far, is to be played and was not.

        Args:
            stopped: whether the run ends with it.
        """
        due = self._is_played(epoch) or (stopped and bool(self._config.rollout_every and epoch))
        return due and not self.top.has_played(epoch)

    def _is_played(self, epoch: int) -> bool:
        """Every so many epochs, and the last."""
        every = self._config.rollout_every
        return bool(every and epoch) and (epoch % every == 0 or epoch == self._config.epochs)
