"""``chunkcast-train``: a diffusion policy from demonstrations."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from chunkcast.training.errors import CheckpointError, TrainingError, run_command
from chunkcast.training.presets import default_settings
from chunkcast.training.train_config import TrainConfig

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from chunkcast.training.demonstrations.episodes import Demonstrations
    from chunkcast.training.distributed import Processes
    from chunkcast.training.trainer import Trainer

COMPILERS = ("g++", "clang++", "c++")
"""What torch.compile makes its kernels with, beside CXX."""


def main() -> None:
    """Console script."""
    run_command(TrainConfig, train_command, default=lambda: default_settings(sys.argv[1:]))


def train_command(config: TrainConfig) -> None:
    """Train with a live display; interrupting keeps the last epoch's checkpoint.

    Started by torchrun it is one of several processes; only the first of them writes, and says more than errors.
    """
    # diffusers announces that optional packages (a GPU's) are absent.
    logging.getLogger("diffusers").setLevel(logging.ERROR)

    from chunkcast.training.checkpoint import LAST_CHECKPOINT
    from chunkcast.training.distributed import by_environment, joined

    if not config.resume and (config.out / LAST_CHECKPOINT).exists():
        raise CheckpointError(
            f"{config.out} already holds a run; pass --resume to continue it, or choose another --out"
        )
    if config.compile and not any(map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))):
        raise TrainingError(f"--compile needs a C++ compiler, and there is none of {', '.join(COMPILERS)} here")
    processes = by_environment()
    device = choose_device(config.device, processes.local_rank if processes.count > 1 else None)
    with joined(processes, device):
        _train(config, device, processes)


def _train(config: TrainConfig, device: torch.device, processes: Processes) -> None:
    from rich.console import Console

    from chunkcast.training.checkpoint import BEST_CHECKPOINT, LAST_CHECKPOINT, top_checkpoint
    from chunkcast.training.demonstrations.sources import read_training_data
    from chunkcast.training.files import write_json
    from chunkcast.training.fine_tuning_report import REPORT, require_known
    from chunkcast.training.health.judge import judge, run_settings
    from chunkcast.training.run_display import run_shown
    from chunkcast.training.top_checkpoints import by_success, told
    from chunkcast.training.trainer import Trainer
    from chunkcast.training.training_rollouts import require_playable
    from chunkcast.training.warm_start import within_its_bounds

    console = Console(stderr=True, quiet=not processes.writes)
    with processes.in_turn():  # the first may have to copy a large table
        demonstrations, new_episodes = read_training_data(config)
    if config.start_from is not None:
        demonstrations = within_its_bounds(demonstrations, config.start_from, LAST_CHECKPOINT)
    if config.rollout_every:
        require_playable(demonstrations.tasks)
        if new_episodes is not None and config.start_from is not None:
            require_known(config.start_from, sorted(set(demonstrations.episode_tasks[new_episodes:])))
    bf16 = bool(processes.first_of(choose_bf16(config.precision, device)))
    trainer = Trainer(config, demonstrations, device, bf16, processes, new_episodes)
    done = trainer.progress.epoch >= config.epochs and not processes.first_of(
        trainer.checkpoints.owes(trainer.progress.epoch)
    )
    reports = new_episodes is not None and config.rollout_every and not (config.out / REPORT).is_file()
    if done and not reports:
        if processes.writes:
            print(f"{config.out} is done: {trainer.progress.epoch} epochs; its learning rate has ended with the last")
        return
    if processes.writes:
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "config.json").write_text(json.dumps(asdict(config), indent=2, default=str) + "\n")
        write_json(config.out / "demonstrations.json", demonstrations.manifest)
    _announce(trainer, demonstrations, console)
    if not processes.writes:
        trainer.run(lambda record, findings: None)
        return
    reason = run_shown(trainer, console)
    for finding in judge(trainer.loss_curve, run_settings(trainer.run_facts)):
        if finding.severity != "info":
            print(f"{finding.severity}: {finding.code}: {finding.evidence}; {finding.advice}")
    best = min(record["validation_noise_mse"] for record in trainer.run_facts["history"])
    print(
        f"{reason}: {trainer.progress.epoch} epochs in {trainer.run_facts['seconds']:.0f} s, best validation "
        f"noise MSE {best:.4f}\n"
        f"{config.out / LAST_CHECKPOINT}\n{config.out / BEST_CHECKPOINT} (epoch {trainer.progress.best_epoch})"
    )
    for candidate in by_success(trainer.checkpoints.top.candidates)[: config.keep_best]:
        print(f"{config.out / top_checkpoint(candidate.epoch)}: {told(candidate)}")
    if new_episodes is not None and config.rollout_every:
        new_tasks = sorted(set(demonstrations.episode_tasks[:new_episodes]))
        _print_fine_tuning(
            config, trainer.progress.epoch, new_tasks, sorted(set(demonstrations.episode_tasks[new_episodes:]))
        )
    if not config.rollout_every:
        print("A low loss proves no success: measure it with chunkcast-export and chunkcast-sim.")


def _announce(trainer: Trainer, demonstrations: Demonstrations, console: Console) -> None:
    """What is trained, on what."""
    processes = trainer.processes
    how = f"{trainer.device.type}, {'bf16' if trainer.bf16 else 'fp32'}"
    how += f", {processes.count} processes" if processes.count > 1 else ""
    console.print(
        f"{len(demonstrations.episode_tasks)} episodes of {len(demonstrations.tasks)} tasks: "
        f"{len(trainer.training)} training and {len(trainer.validation)} validation windows; "
        f"{trainer.run_facts['parameters'] / 1e6:.1f} M parameters; {how}"
    )
    if not trainer.goes_on_as_it_began:
        console.print(
            "the run was not all trained by as many processes as now, or they shared no memory: it differs by rounding "
            "from one that was not interrupted"
        )


def _print_fine_tuning(config: TrainConfig, epoch: int, new_tasks: list[str], old_tasks: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from chunkcast.training.fine_tuning_report import fine_tuning_report

    # Demonstrations may be further ones of a task that is rehearsed too.
    new_tasks = [task for task in new_tasks if task not in old_tasks] or new_tasks
    with Console(stderr=True).status("playing old and new tasks"):
        report = fine_tuning_report(config, epoch, new_tasks, old_tasks)
    table = Table("", "success", "95 %", "episodes", title=f"{config.out}, through the server")
    for what, row in report.items():
        low, high = row["ci95"]
        table.add_row(what, f"{row['success_rate']:.1%}", f"{low:.1%} - {high:.1%}", str(row["episodes"]))
    Console().print(table)


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """``auto`` or a torch device name.

    Args:
        local_rank: of several processes on this machine; ``auto`` and ``cuda`` then take the GPU of that number.

    Raises:
        TrainingError: the device is unknown or not on this machine.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda:") and local_rank is not None:
        raise TrainingError(f"--device {name}: each process takes the GPU of its own number; pass cuda, or auto")
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
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
