"""What can be measured of a checkpoint without a robot, by task: candidates to predict success from.

============================  =============================================================================
``noise_mse``                 noise-prediction MSE, all timesteps: what losses report
``noise_mse_t1`` to ``_t4``   the same in each quarter of the timesteps, from nearly clean to pure noise
``action_mse``                error of the *sampled* actions that would be executed
``displacement_mse``          error of their mean over the executed ticks: what an arm integrates
``critical_action_mse``,      the same two within the critical intervals alone
``critical_displacement_mse``
============================  =============================================================================

All on demonstrations that no run was trained on, so that runs compare. The critical interval follows Critical Interval
MSE (arXiv:2606.29898): an error counts where the task is decided. There people or a vision model label the intervals;
here an interval begins shortly before an object first moves. Like there, actions are compared as they are executed: the
first of a chunk, not its whole horizon.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from chunkcast.training.checkpoint import Checkpoint, load_policy
from chunkcast.training.demonstrations.episodes import Demonstrations
from chunkcast.training.errors import CheckpointError
from chunkcast.training.sampling import sampling_scheduler, training_noise_scheduler
from chunkcast.training.validation import window_errors
from chunkcast.training.windows import Windows

OBJECT_MOVED = 0.005
"""Metres from its place at the episode's start: above a simulated object's settling."""
CRITICAL_LEAD = 16
"""Ticks before the first movement that belong to the interval: the approach that decides the grasp, one chunk long."""
TIMESTEP_QUARTERS = 4

TaskMetrics = dict[str, dict[str, float]]
"""Task to metric to value."""


def offline_metrics(
    checkpoint: Checkpoint, demonstrations: Demonstrations, *, evaluations: int, file: Path
) -> TaskMetrics:
    """Measure the averaged weights of ``checkpoint``.

    Args:
        demonstrations: of the policy's tasks, of seeds that it was not trained on.
        evaluations: DDIM steps, as the bundle samples.
        file: the checkpoint's, for messages.

    Raises:
        CheckpointError: the policy's tasks or sizes are not the demonstrations'.
    """
    config = checkpoint.policy_config
    tasks = checkpoint.instructions.tasks
    if tasks != demonstrations.tasks or config.state_size != demonstrations.states.shape[1]:
        raise CheckpointError(
            f"{file} knows {', '.join(tasks)} from {config.state_size} state entries; the demonstrations "
            f"have {', '.join(demonstrations.tasks)} and {demonstrations.states.shape[1]}: collect some of its tasks"
        )
    windows = Windows(
        demonstrations,
        np.arange(len(demonstrations.episode_tasks)),
        observation_steps=config.observation_steps,
        horizon=config.horizon,
        instructions=checkpoint.instructions,
        device=torch.device("cpu"),
    )
    errors = window_errors(
        load_policy(checkpoint),
        training_noise_scheduler(config),
        sampling_scheduler(config, evaluations),
        windows,
        checkpoint.run["config"]["execute_steps"],
    )
    quarter = errors.timestep * TIMESTEP_QUARTERS // config.train_timesteps
    critical = critical_ticks(demonstrations)
    metrics: TaskMetrics = {}
    for index, task in enumerate(demonstrations.tasks):
        mine = errors.task == index
        found = {"noise_mse": float(errors.noise_mse[mine].mean())}
        for q in range(TIMESTEP_QUARTERS):
            found[f"noise_mse_t{q + 1}"] = float(errors.noise_mse[mine & (quarter == q)].mean())
        for name, values in (("action_mse", errors.action_mse), ("displacement_mse", errors.displacement_mse)):
            found[name] = float(values[mine].mean())
            if critical is not None and (mine & critical).any():
                found[f"critical_{name}"] = float(values[mine & critical].mean())
        metrics[task] = found
    return metrics


def critical_ticks(demonstrations: Demonstrations) -> npt.NDArray[np.bool_] | None:
    """Bool ``[N]``: the ticks from shortly before an object first moves to the episode's end; an episode in which none
    does counts whole. None where the manifest names no object's position.
    """
    names = [element[0] for element in demonstrations.manifest["state"]["elements"]]
    objects = [
        [names.index(f"object_{number}_{axis}") for axis in "xyz"]
        for number in (1, 2)
        if all(f"object_{number}_{axis}" in names for axis in "xyz")
    ]
    if not objects:
        return None
    critical = np.ones(len(demonstrations.states), dtype=np.bool_)
    for episode in range(len(demonstrations.episode_tasks)):
        rows = np.flatnonzero(demonstrations.episode_index == episode)
        states = demonstrations.states[rows]
        moved = np.zeros(len(rows), dtype=np.bool_)
        for axes in objects:
            moved |= np.linalg.norm(states[:, axes] - states[0, axes], axis=1) > OBJECT_MOVED
        if moved.any():
            critical[rows[: max(0, int(moved.argmax()) - CRITICAL_LEAD)]] = False
    return critical
