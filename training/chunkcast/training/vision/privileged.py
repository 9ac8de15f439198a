"""What an image encoder learns from the recorded states beside acting: where the objects and the goal are.

A demonstration of 100 ticks says little about which few pixels matter. The simulator's state, which was recorded and
which the policy never sees, says it at every tick: the encoder also predicts it, by a head that export leaves out
(privileged information in training alone, as in Chen et al. 2019, arXiv:1912.12294).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from chunkcast.training.demonstrations.episodes import Demonstrations
from chunkcast.training.state_differences import differences_of, previous_of

MIN_SPREAD = 0.005
"""Metres; what varies less within its task needs no telling."""


def privileged_targets(
    demonstrations: Demonstrations, seen: int, episodes: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """What the encoder is to tell of every row, float32 ``[N, P]``: each entry of the state that the policy does not
    see at this tick, and the vectors between points that it does not see both of, as deviations from their task's mean
    in standard deviations within tasks.

    Args:
        seen: entries of the state that the policy sees, the first ones.
        episodes: those whose means and deviations count.
    """
    elements = demonstrations.manifest["state"]["elements"]
    before = {pair[0] for pair in previous_of(elements)}
    unseen = [index for index in range(seen, len(elements)) if index not in before]
    pairs = [pair for pair in differences_of(elements) if pair[1] not in before and max(pair) >= seen]
    states = demonstrations.states
    values = np.concatenate(
        [states[:, unseen], states[:, [pair[0] for pair in pairs]] - states[:, [pair[1] for pair in pairs]]], axis=1
    )
    task_of_episode = np.array([demonstrations.tasks.index(task) for task in demonstrations.episode_tasks])
    task = task_of_episode[demonstrations.episode_index]
    counted = np.isin(demonstrations.episode_index, episodes)
    for index in range(len(demonstrations.tasks)):
        values[task == index] -= values[counted & (task == index)].mean(0)
    spread = np.sqrt((values[counted] ** 2).mean(0)).clip(MIN_SPREAD)
    scaled: npt.NDArray[np.float32] = (values / spread).clip(-5.0, 5.0).astype(np.float32)
    return scaled
