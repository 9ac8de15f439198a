"""One episode of a scripted expert, recorded.

Noise is added to the *executed* action while the expert's clean action is what is recorded: the episode then visits
states off the expert's own path and shows how the expert comes back from them (DART, Laskey et al. 2017,
arXiv:1703.09327).
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any

import numpy as np

from chunkcast.training.demonstrations import Episode
from chunkcast.training.metaworld_tasks import MAX_EPISODE_STEPS, make_environment, make_expert

STEPS_AFTER_SUCCESS = 10
"""An episode goes on a little after success, so that the policy also learns to stay there."""


@cache
def _environment(task: str) -> Any:
    """One environment a task and process: making it costs half a second, resetting it 8 ms."""
    return make_environment(task)


def record_expert_episode(task: str, seed: int, noise: float) -> Episode | None:
    """Play the scripted expert of ``task`` once; ``None`` if it did not succeed.

    Args:
        task: MetaWorld task name.
        seed: names the episode's start, goal and noise.
        noise: standard deviation of the Gaussian noise on the executed action (action units, 0 for none).
    """
    environment, expert = _environment(task), make_expert(task)
    generator = np.random.default_rng([seed, zlib.crc32(task.encode())])
    environment.seed(seed)
    observation, _ = environment.reset()
    states, actions, success = [], [], []
    solved_for = 0
    for _ in range(MAX_EPISODE_STEPS):
        clean = np.clip(expert.get_action(observation), -1.0, 1.0).astype(np.float32)
        states.append(observation.astype(np.float32))
        actions.append(clean)
        executed = np.clip(clean + noise * generator.standard_normal(clean.shape), -1.0, 1.0)
        observation, _, _, _, info = environment.step(executed.astype(np.float32))
        solved_for += bool(info["success"]) or solved_for > 0
        success.append(solved_for > 0)
        if solved_for > STEPS_AFTER_SUCCESS:
            break
    if not solved_for:
        return None
    return Episode(task, seed, np.stack(states), np.stack(actions), np.array(success))
