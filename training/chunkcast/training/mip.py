"""MIP, the minimal iterative policy (Pan et al. 2025, arXiv:2512.01809): two deterministic evaluations.

The first regresses the chunk from nothing but the observation. The second is given the first's answer, scaled by t*,
and corrects it; it was trained on chunks that were scaled alike and disturbed by noise of 1 - t*. No noise is drawn
when sampling: the paper's finding is that supervised iteration, not the fitting of a distribution, makes diffusion
policies good.

It fits what diffusers' schedulers look like, so that training, validation and export treat it as a process of two
timesteps: at 1 the chunk is nothing, at 0 it is t* of the clean one and 1 - t* of noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

T_STAR = 0.9
"""The paper's."""


@dataclass(frozen=True)
class MipStep:
    """As diffusers' steps answer: ``prev_sample [B, H, A]`` is what the next evaluation is given."""

    prev_sample: torch.Tensor


class MipScheduler:
    """Training's and sampling's scheduler in one.

    Args:
        evaluations: 1 stops after the regression, 2 corrects it.

    Attributes:
        init_noise_sigma: what the initial noise is multiplied by: nothing of it is left.
        timesteps: int64 ``[evaluations]``, in order of sampling.
        alphas_cumprod: float32 ``[2]``, the squared share of the clean chunk among signal and noise.
    """

    init_noise_sigma = 0.0

    def __init__(self, evaluations: int = 2) -> None:
        self.timesteps = torch.tensor([1, 0][:evaluations])
        self.signal_rate = torch.tensor([T_STAR, 0.0])
        self.noise_rate = torch.tensor([1.0 - T_STAR, 0.0])
        self.alphas_cumprod = torch.tensor([T_STAR**2 / (T_STAR**2 + (1.0 - T_STAR) ** 2), 0.0])

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """What the network is given for ``clean [B, H, A]`` at ``timestep [B]``."""
        signal, disturbance = (
            rate.to(clean.device)[timestep][:, None, None] for rate in (self.signal_rate, self.noise_rate)
        )
        return signal * clean + disturbance * noise

    def step(self, prediction: torch.Tensor, timestep: torch.Tensor, chunk: torch.Tensor, eta: float = 0.0) -> MipStep:
        """The prediction, scaled for the next evaluation if there is one; ``chunk`` and ``eta`` do not matter."""
        del chunk, eta
        last = int(timestep) == int(self.timesteps[-1])
        return MipStep(prediction.clamp(-1.0, 1.0) * (1.0 if last else T_STAR))
