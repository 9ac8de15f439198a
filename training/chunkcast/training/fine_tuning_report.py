"""What fine-tuning came to: the new tasks' success, and the old ones' before and after, on the same episodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chunkcast.simulation.success import pooled
from chunkcast.training.checkpoint import LAST_CHECKPOINT, read_checkpoint, top_checkpoint
from chunkcast.training.errors import CheckpointError
from chunkcast.training.export.bundle_writer import SPEC_NAME, read_spec
from chunkcast.training.files import write_json
from chunkcast.training.health.rollouts import Rollouts
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.warm_start import weights_file

REPORT = "fine-tuning.json"


def require_known(source: Path, old_tasks: Sequence[str]) -> None:
    """Refuse now what could not be compared at the end.

    Raises:
        CheckpointError: a rehearsed task is none of the source's.
    """
    if (source / SPEC_NAME).is_file():
        known = {each.task or each.text for each in read_spec(source).instructions}
    else:
        known = set(read_checkpoint(weights_file(source, LAST_CHECKPOINT)).instructions.tasks)
    if unknown := [task for task in old_tasks if task not in known]:
        raise CheckpointError(f"--rehearsal has {', '.join(unknown)}, which {source} has never learned; leave it out")


def fine_tuning_report(
    config: TrainConfig, epoch: int, new_tasks: Sequence[str], old_tasks: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The success of old tasks before and after, and of the new ones; kept as ``fine-tuning.json`` in the run.

    Args:
        epoch: the run's last, whose averaged weights were played already if they are kept as worth it.

    Raises:
        TrainingError: the source or the last checkpoint cannot be played.
    """
    assert config.start_from is not None
    rollouts = Rollouts(config.rollout_episodes, config.rollout_seed, config.rollout_workers)
    if (config.start_from / SPEC_NAME).is_file():
        before = rollouts.play_bundle(config.start_from, "--tasks", ",".join(old_tasks))
    else:
        source = weights_file(config.start_from, LAST_CHECKPOINT)
        before = rollouts.play_checkpoint(source, folder=config.out / "rollouts" / "source")
    played = config.out / top_checkpoint(epoch)
    after = rollouts.play_checkpoint(played if played.is_file() else config.out / LAST_CHECKPOINT)
    report = {
        "old tasks before": pooled(before, old_tasks),
        "old tasks after": pooled(after, old_tasks),
        "new tasks": pooled(after, new_tasks),
    }
    write_json(
        config.out / REPORT,
        {
            "start_from": str(config.start_from),
            "first_seed": config.rollout_seed,
            "new_tasks": list(new_tasks),
            "old_tasks": list(old_tasks),
            **report,
            "by_task": after["tasks"],
        },
    )
    return report
