"""One episode of a scripted expert, recorded.

Noise is added to the *executed* action while the expert's clean action is what a policy learns: the episode then
visits states off the expert's own path and shows how the expert comes back from them (DART, Laskey et al. 2017,
arXiv:1703.09327). Noise comes in pushes of some ticks that have a mean, which moves the arm further than white noise: a
policy that is to take account of actions that are executed while it computes must have seen actions that make a
difference. Between two pushes the expert's actions follow from each other undisturbed, as a chunk's should. Both
actions are recorded: the expert's to learn, the executed one because it decides the next state.
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import Any

import numpy as np

from chunkcast.simulation.metaworld_tasks import MAX_EPISODE_STEPS, make_environment, make_expert
from chunkcast.training.demonstrations.episodes import Episode

STEPS_AFTER_SUCCESS = 25
"""An episode goes on a little after success, so that the policy also learns to stay there."""


PUSH_TICKS = 8.0
PAUSE_TICKS = 16.0
"""Mean lengths of a push and of the pause between two, both geometrically distributed. A pause is about as long as a
chunk."""

JITTER = 0.3
"""White noise within a push, as a share of its mean's standard deviation."""


@cache
def _environment(task: str) -> Any:
    """One environment a task and process: making it costs half a second, resetting it 8 ms."""
    return make_environment(task)


def record_expert_episode(task: str, seed: int, noise: float) -> Episode | None:
    """Play the scripted expert of ``task`` once; ``None`` if it did not succeed.

    Args:
        task: MetaWorld task name.
        seed: names the episode's start, goal and noise.
        noise: standard deviation of a push's mean, Gaussian (action units, 0 for none).
    """
    environment, expert = _environment(task), make_expert(task)
    generator = np.random.default_rng([seed, zlib.crc32(task.encode())])
    environment.seed(seed)
    observation, _ = environment.reset()
    states, actions, executed, success = [], [], [], []
    solved_for, pushed, push = 0, False, np.zeros(4)
    for _ in range(MAX_EPISODE_STEPS):
        states.append(observation.astype(np.float32))
        # A copy: some experts (door-open's is one) shift what they are given in place.
        clean = np.clip(expert.get_action(observation.copy()), -1.0, 1.0).astype(np.float32)
        actions.append(clean)
        if generator.random() < 1.0 / (PUSH_TICKS if pushed else PAUSE_TICKS):
            pushed = not pushed
            push = generator.standard_normal(clean.shape)
        disturbance = noise * (push + JITTER * generator.standard_normal(clean.shape)) if pushed else 0.0
        executed.append(np.clip(clean + disturbance, -1.0, 1.0).astype(np.float32))
        observation, _, _, _, info = environment.step(executed[-1])
        solved_for += bool(info["success"]) or solved_for > 0
        success.append(solved_for > 0)
        if solved_for > STEPS_AFTER_SUCCESS:
            break
    if not solved_for:
        return None
    return Episode(task, seed, np.stack(states), np.stack(actions), np.stack(executed), np.array(success))
