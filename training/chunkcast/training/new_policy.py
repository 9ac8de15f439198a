"""A policy of the shapes and the normalisation that demonstrations and settings ask for."""

from __future__ import annotations

import torch

from chunkcast.training.demonstrations.episodes import Demonstrations
from chunkcast.training.demonstrations.statistics import RowStatistics
from chunkcast.training.language.instructions import Instructions
from chunkcast.training.policy import DiffusionPolicy, PolicyConfig
from chunkcast.training.state_differences import differences_of
from chunkcast.training.train_config import TrainConfig
from chunkcast.training.vision.seen import image_shapes
from chunkcast.training.windows import Seen


def policy_config_of(
    config: TrainConfig, demonstrations: Demonstrations, seen: Seen | None, instructions: Instructions
) -> PolicyConfig:
    """The network's shapes.

    Args:
        seen: what a policy with cameras is shown; ``None`` for one of states.
        instructions: of the demonstrations' tasks.
    """
    elements = demonstrations.manifest["state"]["elements"]
    return PolicyConfig(
        state_size=seen.state_entries if seen else demonstrations.states.shape[1],
        action_size=demonstrations.actions.shape[1],
        instruction_size=instructions.size,
        observation_steps=config.observation_steps,
        horizon=config.horizon,
        denoiser=config.denoiser,
        width=config.width,
        blocks=config.blocks,
        embedding_size=config.embedding_size or config.width,
        objective=config.objective,
        prediction_type=config.prediction_type,
        train_timesteps=config.process_timesteps,
        max_committed_steps=config.max_committed_steps,
        differences=differences_of(elements) if config.differences and not seen else (),
        binned=tuple(range(seen.state_entries)) if config.differences and seen else (),
        **image_shapes(config, seen),
    )


def new_policy(
    config: TrainConfig,
    policy_config: PolicyConfig,
    demonstrations: Demonstrations,
    statistics: RowStatistics,
    instructions: Instructions,
) -> DiffusionPolicy:
    """A policy with random weights, drawn from torch's generator, on the CPU.

    Args:
        statistics: of the states that are trained on, as far as the policy sees them.
    """
    action_low, action_high = map(torch.from_numpy, demonstrations.action_bounds)
    policy = DiffusionPolicy(
        policy_config,
        statistics.mean,
        statistics.std,
        *instructions.moments(),
        action_low,
        action_high,
        pretrained=not config.resume,
    )
    policy.fit_intervals(statistics.sample)
    return policy
