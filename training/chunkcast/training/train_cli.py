"""``chunkcast-train``: a diffusion policy from demonstrations."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from chunkcast.training.errors import CheckpointError, TrainingError, run_command
from chunkcast.training.presets import default_settings
from chunkcast.training.train_config import TrainConfig

if TYPE_CHECKING:
    import torch

    from chunkcast.training.health.findings import Finding
    from chunkcast.training.history import EpochRecord


def main() -> None:
    """Console script."""
    run_command(TrainConfig, train_command, default=lambda: default_settings(sys.argv[1:]))


def train_command(config: TrainConfig) -> None:
    """Train with a live display; interrupting keeps the last epoch's checkpoint."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # diffusers announces that optional packages (a GPU's) are absent.
    logging.getLogger("diffusers").setLevel(logging.ERROR)

    from chunkcast.training.checkpoint import BEST_CHECKPOINT, LAST_CHECKPOINT
    from chunkcast.training.demonstrations.sources import read_demonstrations
    from chunkcast.training.files import write_json
    from chunkcast.training.health.judge import judge, run_settings
    from chunkcast.training.history import HistoryWriter
    from chunkcast.training.trainer import Trainer

    if not config.resume and (config.out / LAST_CHECKPOINT).exists():
        raise CheckpointError(
            f"{config.out} already holds a run; pass --resume to continue it, or choose another --out"
        )
    console = Console(stderr=True)
    demonstrations = read_demonstrations(config.data, config.memory)
    device = choose_device(config.device)
    bf16 = choose_bf16(config.precision, device)
    trainer = Trainer(config, demonstrations, device, bf16)
    if trainer.progress.epoch >= config.epochs:
        print(f"{config.out} is done: {trainer.progress.epoch} epochs; its learning rate has ended with the last")
        return
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "config.json").write_text(json.dumps(asdict(config), indent=2, default=str) + "\n")
    write_json(config.out / "demonstrations.json", demonstrations.manifest)
    console.print(
        f"{len(demonstrations.episode_tasks)} episodes of {len(demonstrations.tasks)} tasks: "
        f"{len(trainer.training)} training and {len(trainer.validation)} validation windows; "
        f"{trainer.run_facts['parameters'] / 1e6:.1f} M parameters; {device.type}, {'bf16' if bf16 else 'fp32'}"
    )

    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  validation {task.fields[validation]}"),
        TextColumn("{task.fields[rate]:.0f} windows/s"),
        TimeRemainingColumn(),
    )
    total = config.epochs * trainer.steps_per_epoch
    with HistoryWriter(config.out, trainer.progress.epoch) as history, Progress(*columns, console=console) as bar:
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
            if not console.is_terminal:  # a log wants a line an epoch, where a terminal has the bar
                console.print(
                    f"epoch {record.epoch}/{config.epochs} loss {record.train_loss:.5f} "
                    f"validation {record.validation_loss:.5f} noise MSE {record.validation_noise_mse:.4f} "
                    f"{record.samples_per_second:.0f} windows/s {record.seconds:.1f} s"
                )

        try:
            reason = trainer.run(on_epoch, on_step)
        except KeyboardInterrupt:
            bar.stop()
            console.print(
                f"interrupted after epoch {trainer.progress.epoch}; continue with --resume"
                if trainer.progress.epoch
                else "interrupted before the first epoch ended; nothing to resume"
            )
            raise SystemExit(130) from None
    for finding in judge(trainer.loss_curve, run_settings(trainer.run_facts)):
        if finding.severity != "info":
            print(f"{finding.severity}: {finding.code}: {finding.evidence}; {finding.advice}")
    best = min(record["validation_noise_mse"] for record in trainer.run_facts["history"])
    print(
        f"{reason}: {trainer.progress.epoch} epochs in {trainer.run_facts['seconds']:.0f} s, best validation "
        f"noise MSE {best:.4f}\n"
        f"{config.out / LAST_CHECKPOINT}\n{config.out / BEST_CHECKPOINT} (epoch {trainer.progress.best_epoch})\n"
        "A low loss proves no success: measure it with chunkcast-export and chunkcast-sim."
    )


def choose_device(name: str) -> torch.device:
    """``auto`` or a torch device name.

    Raises:
        TrainingError: the device is unknown or not on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(
            f"--device {name!r} cannot be used ({str(error).splitlines()[0]}); expected auto, cpu or cuda[:N]"
        ) from None
    return device


def choose_bf16(precision: str, device: torch.device) -> bool:
    """Whether to autocast to bfloat16: as told, or where the processor multiplies in it."""
    import torch

    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # get_capabilities is younger than the oldest torch that works.
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16", False))


if __name__ == "__main__":
    main()
