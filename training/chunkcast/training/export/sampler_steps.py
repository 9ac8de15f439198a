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
        prediction_type: what it predicts.
        abar: of the chunk that it is given.
        signal: what the clean chunk is multiplied by in the next one; sqrt(abar) there.
        noise: what the noise is multiplied by in the next one; 0 where none is added.
    """

    timestep: int
    prediction_type: PredictionType
    abar: float
    signal: float
    noise: float

    def next_chunk(self, prediction: torch.Tensor, chunk: torch.Tensor) -> torch.Tensor:
        """What the next evaluation is given, or the result: ``[B, H, A]``, normalised units."""
        share, rest = self.abar**0.5, (1.0 - self.abar) ** 0.5
        match self.prediction_type:
            case "sample":
                clean = prediction
            case "epsilon":
                clean = (chunk - rest * prediction) / share
            case "v_prediction":
                clean = share * chunk - rest * prediction
        result = self.signal * clean.clamp(-1.0, 1.0)
        if not self.noise:
            return result
        noise = prediction if self.prediction_type == "epsilon" else (chunk - share * clean) / rest
        return result + self.noise * noise


def sampler_evaluations(config: PolicyConfig, scheduler: Any) -> list[Evaluation]:
    """The evaluations of ``scheduler``, from ``sampling_scheduler``; only its timesteps and abar are taken."""
    timesteps = [int(timestep) for timestep in scheduler.timesteps]
    if config.objective == "mip":
        signals = [T_STAR] * (len(timesteps) - 1) + [1.0]
        return [
            Evaluation(timestep, "sample", 0.0, signal, 0.0)
            for timestep, signal in zip(timesteps, signals, strict=True)
        ]
    # As diffusers has it: a stride of whole timesteps, which misses the next one by a timestep where the number of
    # evaluations does not divide the process. Below zero lies the clean chunk.
    stride = scheduler.config.num_train_timesteps // len(timesteps)
    evaluations = []
    for timestep in timesteps:
        following = timestep - stride
        abar = float(scheduler.alphas_cumprod[following] if following >= 0 else scheduler.final_alpha_cumprod)
        evaluations.append(
            Evaluation(
                timestep=timestep,
                prediction_type=config.prediction_type,
                abar=float(scheduler.alphas_cumprod[timestep]),
                signal=abar**0.5,
                noise=(1.0 - abar) ** 0.5,
            )
        )
    return evaluations
