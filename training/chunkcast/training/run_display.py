"""A training run as it is seen in a terminal, or in a log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from chunkcast.training.history import EpochRecord, HistoryWriter
from chunkcast.training.top_checkpoints import Candidate, told

if TYPE_CHECKING:
    from chunkcast.training.health.findings import Finding
    from chunkcast.training.trainer import Trainer


def run_shown(trainer: Trainer, console: Console) -> str:
    """Train, with a bar and a history; returns why it ended.

    Raises:
        SystemExit: it was interrupted; the last epoch's checkpoint is kept.
        TrainingError: as ``Trainer.run``.
    """
    config = trainer.config
    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  validation {task.fields[validation]}"),
        TextColumn("{task.fields[rate]:.0f} windows/s"),
        TimeRemainingColumn(),
    )
    total = config.epochs * trainer.steps_per_epoch
    # A log has a line an epoch.
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    with HistoryWriter(config.out, trainer.progress.epoch) as history, bar:
        done = trainer.progress.step
        row = bar.add_task(
            "",
            total=total,
            completed=done,
            epoch=trainer.progress.epoch + 1,
            epochs=config.epochs,
            loss=float("nan"),
            validation="-",
            rate=0.0,
        )

        def on_step(step: int, loss: float) -> None:
            bar.update(row, completed=trainer.progress.step + step, loss=loss)

        def on_epoch(record: EpochRecord, new_findings: list[Finding]) -> None:
            history.append(record)
            for finding in new_findings:
                line = f"{finding.severity}: {finding.code}: {finding.evidence}; {finding.advice}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            bar.update(
                row,
                epoch=min(record.epoch + 1, config.epochs),
                validation=f"{record.validation_loss:.4f} (noise MSE {record.validation_noise_mse:.4f})",
                rate=record.samples_per_second,
            )
            if bar.disable:
                console.print(
                    f"epoch {record.epoch}/{config.epochs} loss {record.train_loss:.5f} "
                    f"validation {record.validation_loss:.5f} noise MSE {record.validation_noise_mse:.4f} "
                    f"{record.samples_per_second:.0f} windows/s {record.seconds:.1f} s"
                )

        def on_played(candidate: Candidate, step: int) -> None:
            history.append_success(candidate, step)
            console.print(f"epoch {candidate.epoch}: {told(candidate)}", highlight=False)

        try:
            return trainer.run(on_epoch, on_step, on_played)
        except KeyboardInterrupt:
            bar.stop()
            console.print(
                f"interrupted after epoch {trainer.progress.epoch}; continue with --resume"
                if trainer.progress.epoch
                else "interrupted before the first epoch ended; nothing to resume"
            )
            raise SystemExit(130) from None
