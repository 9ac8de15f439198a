"""``chunkcast-health calibrate`` and ``expect``: play checkpoints, fit, and write what is expected into a bundle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from chunkcast.training.checkpoint import Checkpoint, read_checkpoint, read_run_facts
from chunkcast.training.demonstrations.episodes import Demonstrations
from chunkcast.training.errors import TrainingError
from chunkcast.training.health.calibration import Estimate, PlayedCheckpoint
from chunkcast.training.health.calibration_file import Played
from chunkcast.training.health.offline_metrics import TaskMetrics, offline_metrics
from chunkcast.training.health.rollouts import Rollouts
from chunkcast.training.run_identity import run_identity
from chunkcast.v1 import policy_pb2 as pb


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoints along a run, by epoch: those that were kept, and the last.

    Raises:
        TrainingError: there is none.
    """
    folder = run / "checkpoints"
    files = [*sorted(folder.glob("epoch-*.safetensors")), *folder.glob("last.safetensors")]
    if not files:
        raise TrainingError(f"{run} has no checkpoints; expected a run of chunkcast-train")
    return files


def find_checkpoint(spec: pb.PolicySpec, runs: Sequence[Path]) -> tuple[Path, Path]:
    """The run and the file that a bundle was exported from.

    Raises:
        TrainingError: it is in none of ``runs``.
    """
    wanted = spec.provenance.checkpoint_sha256
    for run in runs:
        for file in sorted((run / "checkpoints").glob("*.safetensors")):
            if hashlib.sha256(file.read_bytes()).hexdigest() == wanted:
                return run, file
    raise TrainingError(
        f"{spec.name} was exported from a checkpoint with SHA-256 {wanted[:12]}..., which is in none of "
        f"{', '.join(map(str, runs))}; name its run too, or export the bundle again"
    )


def check_seeds(run: Path, checkpoint: Checkpoint, demonstrations: Demonstrations, rollouts: Rollouts | None) -> None:
    """Nothing that judges a run may have been seen by it.

    Raises:
        TrainingError: seeds overlap.
    """
    manifest = checkpoint.run["data_manifest"]
    first, last = manifest["first_seed"], manifest["last_seed"]
    judged = {"the demonstrations in --data": demonstrations.episode_seeds}
    if rollouts is not None:
        played = range(rollouts.seed, rollouts.seed + rollouts.episodes)
        judged["the episodes from --seed"] = tuple(played)
        if shown := [seed for seed in demonstrations.episode_seeds if seed in played]:
            raise TrainingError(f"seed {shown[0]} is played and in --data too; take another --seed")
    for what, seeds in judged.items():
        if seen := [seed for seed in seeds if first <= seed <= last]:
            raise TrainingError(
                f"{what} have seed {seen[0]}, and {run} was trained on seeds {first} to {last}; take others, such as "
                "chunkcast-collect --seed 400000 and chunkcast-health calibrate --seed 600000"
            )


def play_runs(
    runs: Sequence[Path],
    demonstrations: Demonstrations,
    rollouts: Rollouts,
    steps: int,
    on_checkpoint: Callable[[str, int, int], None],
) -> list[Played]:
    """Measure every checkpoint of every run: all of them offline, which shows within seconds what is wrong with one,
    and then through the server.

    Args:
        steps: DDIM evaluations, as the bundle samples.
        on_checkpoint: called after each is played: what came out, how many are done, of how many.

    Raises:
        TrainingError: a run has no checkpoints, shares its name, has seen what it is judged on, or cannot be played.
    """
    names = [run.name for run in runs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise TrainingError(
            f"two runs are called {twice[0]}; expected distinct folder names: runs are told apart by them"
        )
    identities: dict[str, Path] = {}
    for run in runs:
        same = identities.setdefault(run_identity(read_run_facts(checkpoints_of(run)[-1])), run)
        if same != run:
            raise TrainingError(
                f"{same} and {run} are the same run: a copy would not be left out with it; name one of them"
            )
    measured: list[tuple[Path, Path, Checkpoint, TaskMetrics]] = []
    for run in runs:
        epochs = set()
        for file in checkpoints_of(run):
            checkpoint = read_checkpoint(file)
            check_seeds(run, checkpoint, demonstrations, rollouts)
            if checkpoint.progress.epoch in epochs:
                continue  # the last epoch was kept too
            epochs.add(checkpoint.progress.epoch)
            metrics = offline_metrics(checkpoint, demonstrations, evaluations=steps, file=file)
            measured.append((run, file, replace(checkpoint, tensors={}), metrics))
    played = []
    for run, file, checkpoint, metrics in measured:
        summary = rollouts.play_checkpoint(file, steps)
        point = PlayedCheckpoint(
            run=run.name,
            epoch=checkpoint.progress.epoch,
            metrics=metrics,
            successes={task: facts["successes"] for task, facts in summary["tasks"].items()},
            episodes={task: facts["episodes"] for task, facts in summary["tasks"].items()},
        )
        record = checkpoint.run["history"][-1]
        success = Estimate(summary["success_rate"], *summary["ci95"])
        identity = run_identity(checkpoint.run)
        played.append(Played(point, identity, success, record["train_noise_mse"], record["validation_noise_mse"]))
        on_checkpoint(f"{point.run} epoch {point.epoch}: {point.ratio():.0%}", len(played), len(measured))
    return played


def measure(file: Path, demonstrations: Demonstrations, steps: int) -> TaskMetrics:
    """The offline metrics of the checkpoint in ``file``, by task.

    Raises:
        TrainingError: it cannot be read, or was trained on the demonstrations.
    """
    checkpoint = read_checkpoint(file)
    check_seeds(file.parent.parent, checkpoint, demonstrations, None)
    return offline_metrics(checkpoint, demonstrations, evaluations=steps, file=file)
