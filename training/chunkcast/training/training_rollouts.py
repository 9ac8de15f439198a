"""Success while a policy trains: a checkpoint exported, served, and played over gRPC."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace

from chunkcast.simulation.errors import SimulationError
from chunkcast.training.checkpoint import top_checkpoint
from chunkcast.training.errors import TrainingError
from chunkcast.training.health.rollouts import Rollouts
from chunkcast.training.top_checkpoints import Candidate
from chunkcast.training.train_config import TrainConfig

PLAYERS = ("scipy", "imageio", "structlog", "grpc_health")
"""What chunkcast-sim and chunkcast-serve need beyond the trainer."""


def require_playable(tasks: Sequence[str], flag: str = "--rollout-every") -> None:
    """Refuse now what would be found out after the first epochs; ``flag`` is what asked for it.

    Raises:
        TrainingError: what plays is not installed, or a task is none of MetaWorld's.
    """
    from chunkcast.simulation.metaworld_tasks import make_expert

    if missing := [name for name in PLAYERS if importlib.util.find_spec(name) is None]:
        raise TrainingError(
            f"{flag} serves and plays, and {', '.join(missing)} is not installed; run "
            "pip install 'chunkcast[sim,server]'"
        )
    try:
        for task in tasks:
            make_expert(task)
    except SimulationError as error:
        raise TrainingError(f"{error}; what is none of MetaWorld's is not played here: pass {flag} 0") from None


def played(config: TrainConfig, candidate: Candidate) -> Candidate:
    """``candidate`` with the success of its checkpoint, which is written.

    Raises:
        TrainingError: it cannot be exported or played.
    """
    rollouts = Rollouts(config.rollout_episodes, config.rollout_seed, config.rollout_workers)
    summary = rollouts.play_checkpoint(config.out / top_checkpoint(candidate.epoch))
    low, high = summary["ci95"]
    return replace(
        candidate,
        success=summary["success_rate"],
        episodes=summary["episodes"],
        ci95=(low, high),
        first_seed=config.rollout_seed,
    )
