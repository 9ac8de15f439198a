"""The diffusion policy as a module: physical units in, the denoiser's prediction out, and DDIM sampling.

Normalisation belongs to the policy, so that a checkpoint and an exported graph both carry it. Shapes: ``B`` batch,
``T`` observation steps, ``S`` state size, ``E`` instruction embedding size, ``H`` horizon, ``A`` action size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from chunkcast.training.denoiser import ResidualMlpDenoiser

PredictionType = Literal["sample", "epsilon"]
"""diffusers' names: ``sample`` predicts the clean action chunk x_0, ``epsilon`` the noise."""

NORMALIZED_STATE_LIMIT = 5.0
"""States are clamped to this many standard deviations: one sensor's glitch must not drive the network anywhere."""

MIN_STATE_STD = 1e-3
"""Entries that never vary (padding) are divided by this and stay at zero; real ones vary by more than a millimetre."""


@dataclass(frozen=True)
class PolicyConfig:
    """What fixes the network's shapes and its diffusion process; stored in every checkpoint."""

    state_size: int
    action_size: int
    instructions: tuple[str, ...]
    observation_steps: int
    horizon: int
    width: int
    blocks: int
    prediction_type: PredictionType
    train_timesteps: int
    max_committed_steps: int = 0
    """The longest prefix of committed actions that the network has learned to continue; 0: none."""


class DiffusionPolicy(nn.Module):
    """Normaliser, condition and denoiser.

    Args:
        config: the shapes.
        state_mean, state_std: float32 ``[S]``, of the training windows.
        action_low, action_high: float32 ``[A]``, the robot's bounds; actions are scaled from them to [-1, 1].
    """

    state_mean: torch.Tensor
    state_std: torch.Tensor
    action_low: torch.Tensor
    action_high: torch.Tensor

    def __init__(
        self,
        config: PolicyConfig,
        state_mean: torch.Tensor,
        state_std: torch.Tensor,
        action_low: torch.Tensor,
        action_high: torch.Tensor,
    ) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("state_mean", state_mean)
        self.register_buffer("state_std", state_std.clamp_min(MIN_STATE_STD))
        self.register_buffer("action_low", action_low)
        self.register_buffer("action_high", action_high)
        condition_size = config.observation_steps * config.state_size + len(config.instructions)
        self.denoiser = ResidualMlpDenoiser(
            config.horizon,
            config.action_size,
            condition_size,
            config.width,
            config.blocks,
            sees_committed=config.max_committed_steps > 0,
        )

    def condition(self, state: torch.Tensor, instruction: torch.Tensor) -> torch.Tensor:
        """``state [B, T, S]`` in physical units and ``instruction [B, E]`` as the denoiser's condition ``[B, C]``."""
        normalized = (state - self.state_mean) / self.state_std
        normalized = normalized.clamp(-NORMALIZED_STATE_LIMIT, NORMALIZED_STATE_LIMIT)
        return torch.cat([normalized.flatten(1), instruction], dim=-1)

    def embed(self, condition: torch.Tensor) -> torch.Tensor:
        """The encoder's embedding ``[B, W]`` of a condition ``[B, C]``: what the denoiser makes of the observation."""
        return cast(torch.Tensor, self.denoiser.condition(condition))

    def normalize_actions(self, actions: torch.Tensor) -> torch.Tensor:
        """Physical units to [-1, 1]."""
        return 2.0 * (actions - self.action_low) / (self.action_high - self.action_low) - 1.0

    def denormalize_actions(self, normalized: torch.Tensor) -> torch.Tensor:
        """[-1, 1] to physical units, clamped to the robot's bounds."""
        unit = (normalized.clamp(-1.0, 1.0) + 1.0) / 2.0
        return self.action_low + unit * (self.action_high - self.action_low)

    def committed_rows(self, prefix_length: torch.Tensor) -> torch.Tensor:
        """``[B, H]``: 1 in the first ``prefix_length [B]`` rows of each chunk, 0 in the others."""
        rows = torch.arange(self.config.horizon, device=prefix_length.device)
        return (rows[None] < prefix_length[:, None]).to(self.state_mean.dtype)

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor, committed: torch.Tensor
    ) -> torch.Tensor:
        """The denoiser's prediction ``[B, H, A]``, in normalised units; ``committed [B, H]`` marks given rows."""
        return cast(torch.Tensor, self.denoiser(noisy, timestep, condition, committed))


def training_noise_scheduler(config: PolicyConfig) -> Any:
    """Diffusers' DDPM scheduler with the cosine schedule (Nichol & Dhariwal 2021), as in Diffusion Policy."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=config.train_timesteps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=config.prediction_type,
    )


def sampling_scheduler(config: PolicyConfig, evaluations: int) -> Any:
    """Diffusers' DDIM scheduler over the same schedule, set to ``evaluations`` steps.

    Trailing spacing begins at the last timestep, where a sample *is* noise; leading spacing would begin two steps'
    sampling at t = 50 with noise that the network has never seen there (Lin et al. 2024, arXiv:2305.08891).
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    scheduler = DDIMScheduler(
        num_train_timesteps=config.train_timesteps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=config.prediction_type,
        clip_sample=True,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(evaluations)
    return scheduler


@torch.no_grad()
def sample_chunk(
    policy: DiffusionPolicy,
    scheduler: Any,
    state: torch.Tensor,
    instruction: torch.Tensor,
    noise: torch.Tensor,
    prefix_actions: torch.Tensor,
    prefix_length: torch.Tensor,
) -> torch.Tensor:
    """Action chunks ``[B, H, A]`` in physical units, by deterministic DDIM (Song et al. 2021, eq. 12, eta = 0).

    This is the reference that the exported graph is compared with.

    Args:
        scheduler: from ``sampling_scheduler``.
        state: ``[B, T, S]``, physical units.
        instruction: ``[B, E]``.
        noise: ``[B, H, A]``, standard normal.
        prefix_actions: ``[B, H, A]``, physical units; the first ``prefix_length`` rows are committed and come back as
            they are, the others are ignored (training-time real-time chunking, Black et al. 2025, arXiv:2512.05964).
        prefix_length: int64 ``[B]``, 0 to the policy's ``max_committed_steps``.
    """
    condition = policy.condition(state, instruction)
    committed = policy.committed_rows(prefix_length)
    given, prefix = committed[..., None] > 0, policy.normalize_actions(prefix_actions).clamp(-1.0, 1.0)
    chunk = torch.where(given, prefix, noise)
    for timestep in scheduler.timesteps:
        prediction = policy(chunk, timestep.expand(len(chunk)).to(chunk.device), condition, committed)
        chunk = scheduler.step(prediction, timestep, chunk, eta=0.0).prev_sample
        chunk = torch.where(given, prefix, chunk)
    return policy.denormalize_actions(chunk)
