"""What fine-tuning came to: the new tasks' success, and the old ones' before and after, on the same episodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chunkcast.training.checkpoint import LAST_CHECKPOINT, read_checkpoint
from chunkcast.training.errors import CheckpointError
from chunkcast.training.export.bundle_writer import SPEC_NAME, read_spec
from chunkcast.training.files import write_json
from chunkcast.training.health.rollouts import Rollouts
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.warm_start import weights_file

REPORT = "fine-tuning.json"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Success:
    """Of some tasks together.

    Attributes:
        what: which tasks, and when.
        successes, episodes: that it is.
        ci95: Wilson's interval.
    """

    what: str
    successes: int
    episodes: int
    ci95: tuple[float, float]

    @property
    def rate(self) -> float:
        """The share."""
        return self.successes / self.episodes


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


def fine_tuning_report(config: TrainConfig, new_tasks: Sequence[str], old_tasks: Sequence[str]) -> list[Success]:
    """Play the source and the last checkpoint; keep it as ``fine-tuning.json`` in the run.

    Raises:
        TrainingError: one cannot be played.
    """
    assert config.start_from is not None
    rollouts = Rollouts(config.rollout_episodes, config.rollout_seed, config.rollout_workers)
    if (config.start_from / SPEC_NAME).is_file():
        before = rollouts.play_bundle(config.start_from, "--tasks", ",".join(old_tasks))
    else:
        source = weights_file(config.start_from, LAST_CHECKPOINT)
        before = rollouts.play_checkpoint(source, folder=config.out / "rollouts" / "source")
    after = rollouts.play_checkpoint(config.out / LAST_CHECKPOINT)
    report = [
        _pooled("old tasks before", before, old_tasks),
        _pooled("old tasks after", after, old_tasks),
        _pooled("new tasks", after, new_tasks),
    ]
    write_json(
        config.out / REPORT,
        {
            "start_from": str(config.start_from),
            "first_seed": config.rollout_seed,
            "new_tasks": list(new_tasks),
            "old_tasks": list(old_tasks),
            **{
                each.what: {
                    "success_rate": round(each.rate, 4),
                    "successes": each.successes,
                    "episodes": each.episodes,
                    "ci95": each.ci95,
                }
                for each in report
            },
            "by_task": after["tasks"],
        },
    )
    return report


def _pooled(what: str, summary: dict[str, Any], tasks: Sequence[str]) -> Success:
    from scipy.stats import binomtest

    successes = sum(summary["tasks"][task]["successes"] for task in tasks)
    episodes = sum(summary["tasks"][task]["episodes"] for task in tasks)
    interval = binomtest(successes, episodes).proportion_ci(CONFIDENCE, method="wilson")
    return Success(what, successes, episodes, (round(float(interval.low), 4), round(float(interval.high), 4)))
