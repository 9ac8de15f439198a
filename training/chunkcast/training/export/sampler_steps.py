"""A sampler as numbers: what each evaluation makes of the network's prediction, as constants of the exported graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from chunkcast.training.choices import PredictionType
from chunkcast.training.mip import T_STAR
from chunkcast.training.policy import PolicyConfig


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the denoiser and what follows from it.

    Attributes:
        timestep: that the network is told.
        signal_rate: what the clean chunk is multiplied by in what it is given, sqrt(abar).
        noise_rate: what the noise is multiplied by in it, sqrt(1 - abar).
        next_signal_rate: as ``signal_rate``, of what the next one is given.
        next_noise_rate: as ``noise_rate``, of the same; 0 where none is added.
    """

    timestep: int
    signal_rate: float
    noise_rate: float
    next_signal_rate: float
    next_noise_rate: float


def next_chunk(
    prediction_type: PredictionType,
    prediction: torch.Tensor,
    chunk: torch.Tensor,
    *,
    signal_rate: torch.Tensor,
    noise_rate: torch.Tensor,
    next_signal_rate: torch.Tensor,
    next_noise_rate: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the next evaluation is given, and the clean chunk: ``[B, H, A]`` each, normalised units.

    Args:
        prediction_type: what ``prediction [B, H, A]`` is of.
        chunk: ``[B, H, A]``, what the network was given.
        signal_rate, noise_rate, next_signal_rate, next_noise_rate: scalars, see ``Evaluation``.
    """
    match prediction_type:
        case "sample":
            clean = prediction
        case "epsilon":
            clean = (chunk - noise_rate * prediction) / signal_rate
        case "v_prediction":
            clean = signal_rate * chunk - noise_rate * prediction
    noise = prediction if prediction_type == "epsilon" else (chunk - signal_rate * clean) / noise_rate
    clean = clean.clamp(-1.0, 1.0)
    return next_signal_rate * clean + next_noise_rate * noise, clean


def sampler_evaluations(config: PolicyConfig, scheduler: Any) -> list[Evaluation]:
    """The evaluations of ``scheduler``, from ``sampling_scheduler``; only its timesteps and abar are taken."""
    timesteps = [int(timestep) for timestep in scheduler.timesteps]
    if config.objective == "mip":
        signals = [T_STAR] * (len(timesteps) - 1) + [1.0]
        return [
            Evaluation(timestep, signal_rate=0.0, noise_rate=1.0, next_signal_rate=signal, next_noise_rate=0.0)
            for timestep, signal in zip(timesteps, signals, strict=True)
        ]
    # As diffusers has it: a stride of whole timesteps, which misses the next one by a timestep where the number of
    # evaluations does not divide the process. Below zero lies the clean chunk.
    stride = scheduler.config.num_train_timesteps // len(timesteps)
    evaluations = []
    for timestep in timesteps:
        following = timestep - stride
        there = float(scheduler.alphas_cumprod[following] if following >= 0 else scheduler.final_alpha_cumprod)
        here = float(scheduler.alphas_cumprod[timestep])
        evaluations.append(Evaluation(timestep, here**0.5, (1.0 - here) ** 0.5, there**0.5, (1.0 - there) ** 0.5))
    return evaluations
