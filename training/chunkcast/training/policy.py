"""The diffusion policy as a module: physical units in, the denoiser's prediction out.

Normalisation belongs to the policy, so that a checkpoint and an exported graph both carry it. Shapes: ``B`` batch,
``T`` observation steps, ``S`` state size, ``E`` instruction embedding size, ``W`` size of the encoded observation,
``H`` horizon, ``A`` action size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from chunkcast.training.choices import DenoiserName, Objective, PredictionType
from chunkcast.training.denoisers.denoiser import DenoiserConfig, make_denoiser

NORMALIZED_STATE_LIMIT = 5.0
"""States are clamped to this many standard deviations: one sensor's glitch must not drive the network anywhere."""

MIN_STATE_STD = 1e-3
"""Entries that never vary (padding) are divided by this and stay at zero; real ones vary by more than a millimetre."""


@dataclass(frozen=True)
class PolicyConfig:
    """What fixes the network's shapes and its diffusion process; stored in every checkpoint."""

    state_size: int
    action_size: int
    instruction_size: int
    """Of an instruction's embedding, ``E``."""
    observation_steps: int
    horizon: int
    denoiser: DenoiserName
    width: int
    blocks: int
    embedding_size: int
    """Of the encoded observation and instruction, ``W``."""
    objective: Objective
    prediction_type: PredictionType
    train_timesteps: int
    max_committed_steps: int = 0
    """The longest prefix of committed actions that the network has learned to continue; 0: none."""
    state_frequencies: int = 0
    """Sines and cosines of each entry of the state that the encoder sees beside it; 0: none."""


class DiffusionPolicy(nn.Module):
    """Normaliser, encoder of observation and instruction, and denoiser.

    Args:
        config: the shapes.
        state_mean, state_std: float32 ``[S]``, of the training windows.
        instruction_mean: float32 ``[E]``, of the instructions' embeddings.
        instruction_scale: float32 ``[]``, their root mean square distance from it, an entry.
        action_low, action_high: float32 ``[A]``, the robot's bounds; actions are scaled from them to [-1, 1].
    """

    state_mean: torch.Tensor
    state_std: torch.Tensor
    instruction_mean: torch.Tensor
    instruction_scale: torch.Tensor
    action_low: torch.Tensor
    action_high: torch.Tensor

    def __init__(
        self,
        config: PolicyConfig,
        state_mean: torch.Tensor,
        state_std: torch.Tensor,
        instruction_mean: torch.Tensor,
        instruction_scale: torch.Tensor,
        action_low: torch.Tensor,
        action_high: torch.Tensor,
    ) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("state_mean", state_mean)
        self.register_buffer("state_std", state_std.clamp_min(MIN_STATE_STD))
        self.register_buffer("instruction_mean", instruction_mean)
        self.register_buffer("instruction_scale", instruction_scale)
        self.register_buffer("action_low", action_low)
        self.register_buffer("action_high", action_high)
        state_features = config.state_size * (1 + 2 * config.state_frequencies)
        condition_size = config.observation_steps * state_features + config.instruction_size
        self.encoder = nn.Sequential(
            nn.Linear(condition_size, config.embedding_size),
            nn.SiLU(),
            nn.Linear(config.embedding_size, config.embedding_size),
        )
        self.denoiser = make_denoiser(
            config.denoiser,
            DenoiserConfig(
                horizon=config.horizon,
                action_size=config.action_size,
                embedding_size=config.embedding_size,
                width=config.width,
                blocks=config.blocks,
                sees_committed=config.max_committed_steps > 0,
            ),
        )

    def encode(self, state: torch.Tensor, instruction: torch.Tensor) -> torch.Tensor:
        """``state [B, T, S]`` in physical units and ``instruction [B, E]``, encoded ``[B, W]``: once for a chunk,
        whatever the number of evaluations.

        Beside each entry of the state the encoder sees ``sin(2^k x)`` and ``cos(2^k x)`` of its normalised value
        (Fourier features, Tancik et al. 2020, arXiv:2006.10739): a network learns slowly what changes fast with its
        input, and among fifty tasks' states a grasp's last centimetre is a tenth of a standard deviation.
        """
        normalized = (state - self.state_mean) / self.state_std
        normalized = normalized.clamp(-NORMALIZED_STATE_LIMIT, NORMALIZED_STATE_LIMIT)
        scaled = [normalized * 2.0**power for power in range(self.config.state_frequencies)]
        waves = [wave for angle in scaled for wave in (angle.sin(), angle.cos())]
        state_features = torch.cat([normalized, *waves], dim=-1)  # [B, T, S * (1 + 2 K)]
        told = (instruction - self.instruction_mean) / self.instruction_scale
        return cast(torch.Tensor, self.encoder(torch.cat([state_features.flatten(1), told], dim=-1)))

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
        self, noisy: torch.Tensor, timestep: torch.Tensor, embedding: torch.Tensor, committed: torch.Tensor
    ) -> torch.Tensor:
        """The denoiser's prediction ``[B, H, A]``, in normalised units; ``committed [B, H]`` marks given rows."""
        return cast(torch.Tensor, self.denoiser(noisy, timestep, embedding, committed))
