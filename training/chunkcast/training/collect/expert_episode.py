"""One episode of a scripted expert, recorded.

Noise is added to the *executed* action while the expert's clean action is what a policy learns: the episode then
visits states off the expert's own path and shows how the expert comes back from them (DART, Laskey et al. 2017,
arXiv:1703.09327). Noise comes in bursts: between two of them the expert's actions follow from each other undisturbed,
as a chunk's should. Both actions are recorded, since what was executed is what decides the next state.
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


BURST_TICKS = 8.0
PAUSE_TICKS = 16.0
"""Mean lengths of a burst of noise and of the pause between two, both geometrically distributed. A pause is about as
long as a chunk."""


@cache
def _environment(task: str) -> Any:
    """One environment a task and process: making it costs half a second, resetting it 8 ms."""
    return make_environment(task)


def record_expert_episode(task: str, seed: int, noise: float) -> Episode | None:
    """Play the scripted expert of ``task`` once; ``None`` if it did not succeed.

    Args:
        task: MetaWorld task name.
        seed: names the episode's start, goal and noise.
        noise: standard deviation of the Gaussian noise on the executed action during bursts (action units, 0 for
            none).
    """
    environment, expert = _environment(task), make_expert(task)
    generator = np.random.default_rng([seed, zlib.crc32(task.encode())])
    environment.seed(seed)
    observation, _ = environment.reset()
    states, actions, executed, success = [], [], [], []
    solved_for, in_burst = 0, True
    push = generator.standard_normal(4)
    for _ in range(MAX_EPISODE_STEPS):
        clean = np.clip(expert.get_action(observation), -1.0, 1.0).astype(np.float32)
        states.append(observation.astype(np.float32))
        actions.append(clean)
        disturbance = noise * (push + generator.standard_normal(clean.shape)) if in_burst else 0.0
        executed.append(np.clip(clean + disturbance, -1.0, 1.0).astype(np.float32))
        if generator.random() < 1.0 / (BURST_TICKS if in_burst else PAUSE_TICKS):
            in_burst = not in_burst
            push = generator.standard_normal(clean.shape)
        observation, _, _, _, info = environment.step(executed[-1])
        solved_for += bool(info["success"]) or solved_for > 0
        success.append(solved_for > 0)
        if solved_for > STEPS_AFTER_SUCCESS:
            break
    if not solved_for:
        return None
    return Episode(task, seed, np.stack(states), np.stack(actions), np.stack(executed), np.array(success))
