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
        share: of the clean chunk in what it is given, sqrt(abar).
        rest: of the noise in it, sqrt(1 - abar).
        signal: what the clean chunk is multiplied by in the next one; sqrt(abar) there.
        noise_rate: what the noise is multiplied by in the next one; 0 where none is added.
    """

    timestep: int
    share: float
    rest: float
    signal: float
    noise_rate: float


def next_chunk(
    prediction_type: PredictionType,
    prediction: torch.Tensor,
    chunk: torch.Tensor,
    share: torch.Tensor,
    rest: torch.Tensor,
    *,
    signal: torch.Tensor,
    noise_rate: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the next evaluation is given, and the clean chunk: ``[B, H, A]`` each, normalised units.

    Args:
        prediction_type: what ``prediction [B, H, A]`` is of.
        chunk: ``[B, H, A]``, what the network was given.
        share, rest, signal, noise_rate: scalars, see ``Evaluation``.
    """
    match prediction_type:
        case "sample":
            clean = prediction
        case "epsilon":
            clean = (chunk - rest * prediction) / share
        case "v_prediction":
            clean = share * chunk - rest * prediction
    noise = prediction if prediction_type == "epsilon" else (chunk - share * clean) / rest
    clean = clean.clamp(-1.0, 1.0)
    return signal * clean + noise_rate * noise, clean


def sampler_evaluations(config: PolicyConfig, scheduler: Any) -> list[Evaluation]:
    """The evaluations of ``scheduler``, from ``sampling_scheduler``; only its timesteps and abar are taken."""
    timesteps = [int(timestep) for timestep in scheduler.timesteps]
    if config.objective == "mip":
        signals = [T_STAR] * (len(timesteps) - 1) + [1.0]
        return [
            Evaluation(timestep, share=0.0, rest=1.0, signal=signal, noise_rate=0.0)
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
        evaluations.append(
            Evaluation(timestep, here**0.5, (1.0 - here) ** 0.5, signal=there**0.5, noise_rate=(1.0 - there) ** 0.5)
        )
    return evaluations
