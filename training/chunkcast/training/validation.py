"""What a policy does on held-out demonstrations: its denoising loss, and the error of the actions that it samples.

The noise MSE says little about the actions: at high timesteps the noise is easily told from any chunk, so a network
that ignores the observation still scores well there, and at the first timesteps a hundredth of an action weighs
hundreds. The error of the *sampled* actions is what the robot executes. Both are measured here, of each window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from chunkcast.training.distributed import ALONE, Processes
from chunkcast.training.loss import denoising_loss
from chunkcast.training.policy import DiffusionPolicy
from chunkcast.training.sampling import sample_chunk
from chunkcast.training.windows import Windows

VALIDATION_BATCH = 2048
IMAGE_VALIDATION_BATCH = 128
VALIDATION_SEED = 20_240
"""Noise and timesteps of the validation loss are the same at every epoch of every run, so that losses compare."""
SAMPLING_SEED = 20_241
TIMESTEP_BANDS = 10

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WindowErrors:
    """Errors of ``N`` windows, each at one timestep.

    Attributes:
        timestep: int64 ``[N]``, stratified over the whole process.
        task: int64 ``[N]``, index into the demonstrations' tasks.
        objective: float32 ``[N]``, squared error of what the network predicts.
        noise_mse: float32 ``[N]``, squared error of the noise, whatever is predicted.
        action_mse: float32 ``[N]``, squared error of the sampled actions that would be executed, normalised units.
        displacement_mse: float32 ``[N]``, squared error of their mean over the executed ticks. An arm integrates what
            it is told: errors that cancel from tick to tick hardly move it, those that last do.
        action_deviation: float32 ``[N]``, squared deviation of the same demonstrated actions from their task's mean:
            what the best policy scores that does not look at its observation.
    """

    timestep: IntArray
    task: IntArray
    objective: FloatArray
    noise_mse: FloatArray
    action_mse: FloatArray
    displacement_mse: FloatArray
    action_deviation: FloatArray


@torch.no_grad()
def window_errors(
    policy: DiffusionPolicy,
    noise_scheduler: Any,
    sampler: Any,
    windows: Windows,
    execute_steps: int,
    first_timestep: int = 0,
    processes: Processes = ALONE,
) -> WindowErrors:
    """Measure ``policy`` on every window; fp32, fixed noise, and nothing committed, so that runs with and without
    real-time chunking compare.

    Args:
        policy: as it is to be judged (averaged weights), on the windows' device.
        noise_scheduler: from ``training_noise_scheduler``.
        sampler: from ``sampling_scheduler``.
        windows: of held-out episodes.
        execute_steps: the first actions of a chunk, those that a robot executes.
        first_timestep: the losses are measured from there on; a one-step student knows only the last.
        processes: they share the batches, and all get the whole.
    """
    policy.eval()
    generator = torch.Generator().manual_seed(VALIDATION_SEED)
    sampling_generator = torch.Generator().manual_seed(SAMPLING_SEED)
    device = policy.state_mean.device
    timesteps_total = policy.config.train_timesteps
    shape = (policy.config.horizon, policy.config.action_size)
    own: dict[int, tuple[torch.Tensor, ...]] = {}
    batch_size = IMAGE_VALIDATION_BATCH if policy.config.views else VALIDATION_BATCH
    for number, part in enumerate(torch.split(torch.arange(len(windows)), batch_size)):
        size = len(part)
        nothing_committed = torch.zeros(size, dtype=torch.int64, device=device)
        measured = timesteps_total - first_timestep
        offset = torch.randint(measured, (1,), generator=generator)
        timestep = first_timestep + (torch.randperm(size, generator=generator) + offset) % measured
        added_noise = torch.randn(size, *shape, generator=generator).to(device)
        noise = torch.randn(size, *shape, generator=sampling_generator).to(device)
        if number % processes.count != processes.rank:
            continue
        batch = windows.take(part)
        loss = denoising_loss(policy, noise_scheduler, batch, timestep.to(device), added_noise, nothing_committed)
        chunk = sample_chunk(
            policy,
            sampler,
            batch.state,
            batch.instruction,
            noise,
            torch.zeros_like(noise),
            nothing_committed,
            batch.images,
        )
        demonstrated = policy.normalize_actions(batch.actions)[:, :execute_steps]
        mask = batch.foreseeable(nothing_committed)[:, :execute_steps]
        difference = (policy.normalize_actions(chunk)[:, :execute_steps] - demonstrated) * mask[..., None]
        counted = mask.sum(-1).clamp_min(1.0)
        action_mse = (difference**2).mean(-1).sum(-1) / counted
        displacement_mse = ((difference.sum(1) / counted[:, None]) ** 2).mean(-1)
        measured_here = (loss.objective, loss.noise_mse, action_mse, displacement_mse, demonstrated, mask)
        own[number] = (timestep, *(value.cpu() for value in measured_here))
    batches = {number: values for theirs in processes.gathered(own) for number, values in theirs.items()}
    columns = [torch.cat(column) for column in zip(*(batches[number] for number in sorted(batches)), strict=True)]
    timesteps, objective, noise_mse, action_errors, displacement_errors, actions, masks = columns
    deviation = torch.zeros_like(masks)
    for index in range(int(windows.task.max()) + 1):
        inside = windows.task == index
        weights = masks[inside][..., None]
        mean_action = (actions[inside] * weights).sum((0, 1)) / weights.sum().clamp_min(1.0)
        deviation[inside] = ((actions[inside] - mean_action) ** 2).mean(-1)
    return WindowErrors(
        timestep=timesteps.numpy(),
        task=windows.task.cpu().numpy(),
        objective=objective.numpy(),
        noise_mse=noise_mse.numpy(),
        action_mse=action_errors.numpy(),
        displacement_mse=displacement_errors.numpy(),
        action_deviation=((deviation * masks).sum(-1) / masks.sum(-1).clamp_min(1.0)).numpy(),
    )


def measurements(errors: WindowErrors, train_timesteps: int, tasks: tuple[str, ...]) -> dict[str, Any]:
    """What an epoch's record keeps of ``errors``, by its names."""
    return {
        "validation_loss": float(errors.objective.mean()),
        "validation_noise_mse": float(errors.noise_mse.mean()),
        "validation_noise_mse_by_timestep": by_timestep(errors, train_timesteps),
        "validation_noise_mse_by_task": by_task(errors.noise_mse, errors.task, tasks),
        "validation_action_mse": float(errors.action_mse.mean()),
        "validation_action_mse_by_task": by_task(errors.action_mse, errors.task, tasks),
        "validation_action_variance": float(errors.action_deviation.mean()),
    }


def by_timestep(errors: WindowErrors, train_timesteps: int) -> dict[str, float]:
    """The mean noise MSE by band of timesteps, such as ``0-9``; bands without a window are left out."""
    bands: dict[str, float] = {}
    for edges in np.array_split(np.arange(train_timesteps), min(TIMESTEP_BANDS, train_timesteps)):
        inside = (errors.timestep >= edges[0]) & (errors.timestep <= edges[-1])
        if inside.any():
            bands[f"{edges[0]}-{edges[-1]}"] = float(errors.noise_mse[inside].mean())
    return bands


def by_task(values: FloatArray, task: IntArray, tasks: tuple[str, ...]) -> dict[str, float]:
    """The mean of ``values [N]`` over each task's windows."""
    return {name: float(values[task == index].mean()) for index, name in enumerate(tasks) if (task == index).any()}
