"""What every denoiser is, the timestep's embedding that they share, and making one by name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from chunkcast.training.choices import DenoiserName


@dataclass(frozen=True)
class DenoiserConfig:
    """Shapes that any denoiser is made for.

    Attributes:
        horizon: actions in a chunk, ``H``.
        action_size: ``A``.
        embedding_size: of the encoded observation, ``W``.
        width: of the network; each denoiser says what of it.
        blocks: each denoiser says of what.
        sees_committed: whether it is told which rows are committed; without, no row ever is.
    """

    horizon: int
    action_size: int
    embedding_size: int
    width: int
    blocks: int
    sees_committed: bool


class Denoiser(nn.Module, ABC):
    """A network that predicts the scheduler's target for a noisy chunk, whatever that target is.

    Rows of the chunk may be *committed*: the robot will play them while inference runs, so they are given, clean, and
    not denoised.
    """

    @abstractmethod
    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, embedding: torch.Tensor, committed: torch.Tensor
    ) -> torch.Tensor:
        """The prediction ``[B, H, A]`` for ``noisy [B, H, A]`` at ``timestep [B]`` (or ``[1]``).

        Args:
            embedding: ``[B, W]``, the encoded observation and instruction.
            committed: ``[B, H]``, 1 where a row of ``noisy`` is clean already, 0 elsewhere.
        """


def make_denoiser(name: DenoiserName, config: DenoiserConfig) -> Denoiser:
    """The denoiser called ``name``.

    Raises:
        TrainingError: the shapes are none that it can have.
    """
    from chunkcast.training.denoisers.residual_mlp import ResidualMlpDenoiser
    from chunkcast.training.denoisers.transformer import TransformerDenoiser
    from chunkcast.training.denoisers.unet import UnetDenoiser

    denoisers: dict[DenoiserName, type[ResidualMlpDenoiser] | type[UnetDenoiser] | type[TransformerDenoiser]] = {
        "mlp": ResidualMlpDenoiser,
        "unet": UnetDenoiser,
        "transformer": TransformerDenoiser,
    }
    return denoisers[name](config)


class TimestepEmbedding(nn.Module):
    """Timesteps as sines and cosines of geometrically spaced frequencies (Vaswani et al. 2017, section 3.5)."""

    MAX_PERIOD = 10_000.0

    def __init__(self, size: int) -> None:
        super().__init__()
        exponents = torch.arange(size // 2) / (size // 2)
        frequencies = torch.exp(-math.log(self.MAX_PERIOD) * exponents)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        """``[B] -> [B, size]``."""
        angles = timestep.float()[:, None] * cast(torch.Tensor, self.frequencies)[None]
        return torch.cat([angles.sin(), angles.cos()], dim=-1)
