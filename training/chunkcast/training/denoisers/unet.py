"""ConditionalUnet1D: Diffusion Policy's temporal U-Net (Chi et al. 2023, arXiv:2303.04137), the seed's head.

Convolutions along the chunk's time axis; every residual block is modulated by timestep and observation (FiLM). With
width 256, three levels and an embedding of 512 it has the seed's 72.8 million parameters (preset ``tinyvla-73m``).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from chunkcast.training.denoisers.denoiser import Denoiser, DenoiserConfig, TimestepEmbedding
from chunkcast.training.errors import TrainingError

KERNEL = 5
GROUPS = 8
"""Of the group norms."""
TIMESTEP_SIZE = 256


class UnetDenoiser(Denoiser):
    """A U-Net over time.

    Args:
        config: ``width`` is the first level's channels, each further one of ``blocks`` levels has twice as many at half
            the rate. The horizon must be a multiple of ``2 ** (blocks - 1)``.

    Raises:
        TrainingError: it is not, or the width is no multiple of 8.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        stride = 2 ** (config.blocks - 1)
        if config.horizon % stride:
            raise TrainingError(
                f"--horizon is {config.horizon}, expected a multiple of {stride} for a U-Net of {config.blocks} levels "
                "(--blocks)"
            )
        if config.width % GROUPS:
            raise TrainingError(f"--width is {config.width}, expected a multiple of {GROUPS} for a U-Net")
        self.sees_committed = config.sees_committed
        widths = [config.width * 2**level for level in range(config.blocks)]
        condition_size = TIMESTEP_SIZE + config.embedding_size
        self.timestep = nn.Sequential(
            TimestepEmbedding(TIMESTEP_SIZE),
            nn.Linear(TIMESTEP_SIZE, 4 * TIMESTEP_SIZE),
            nn.Mish(),
            nn.Linear(4 * TIMESTEP_SIZE, TIMESTEP_SIZE),
        )

        def pair(inputs: int, outputs: int) -> nn.ModuleList:
            return nn.ModuleList(
                [FilmConvBlock(inputs, outputs, condition_size), FilmConvBlock(outputs, outputs, condition_size)]
            )

        channels = [config.action_size + self.sees_committed, *widths]
        self.down = nn.ModuleList(pair(inputs, outputs) for inputs, outputs in zip(channels, widths, strict=False))
        self.downsample = nn.ModuleList(nn.Conv1d(width, width, 3, stride=2, padding=1) for width in widths[:-1])
        self.middle = pair(widths[-1], widths[-1])
        # Each level up takes the level's own activations beside what comes from below.
        upwards = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(pair(2 * inputs, outputs) for inputs, outputs in upwards)
        self.upsample = nn.ModuleList(nn.ConvTranspose1d(width, width, 4, stride=2, padding=1) for _, width in upwards)
        self.smooth = ConvBlock(config.width, config.width)
        self.chunk_out = nn.Conv1d(config.width, config.action_size, 1)

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, embedding: torch.Tensor, committed: torch.Tensor
    ) -> torch.Tensor:
        """See ``Denoiser.forward``."""
        time = self.timestep(timestep).expand(noisy.shape[0], -1)
        condition = torch.cat([time, embedding], dim=-1)  # [B, T + W]
        stream = noisy.mT  # [B, A, H]
        if self.sees_committed:
            stream = torch.cat([stream, committed[:, None]], dim=1)
        skipped = []
        for level, blocks in enumerate(self.down):
            for block in cast(nn.ModuleList, blocks):
                stream = block(stream, condition)
            skipped.append(stream)
            if level < len(self.downsample):
                stream = self.downsample[level](stream)
        for block in self.middle:
            stream = block(stream, condition)
        for blocks, upsample in zip(self.up, self.upsample, strict=True):
            stream = torch.cat([stream, skipped.pop()], dim=1)
            for block in cast(nn.ModuleList, blocks):
                stream = block(stream, condition)
            stream = upsample(stream)
        return cast(torch.Tensor, self.chunk_out(self.smooth(stream)).mT)  # [B, H, A]


class ConvBlock(nn.Sequential):
    """Convolution along time, group norm, Mish: ``[B, inputs, H] -> [B, outputs, H]``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv1d(inputs, outputs, KERNEL, padding=KERNEL // 2), nn.GroupNorm(GROUPS, outputs), nn.Mish()
        )


class FilmConvBlock(nn.Module):
    """Two ``ConvBlock`` and a skip; between them, scale and shift of every channel from the condition."""

    def __init__(self, inputs: int, outputs: int, condition_size: int) -> None:
        super().__init__()
        self.first, self.second = ConvBlock(inputs, outputs), ConvBlock(outputs, outputs)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(condition_size, 2 * outputs))
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, stream: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """``[B, inputs, H]``, ``[B, C] -> [B, outputs, H]``."""
        scale, shift = self.film(condition)[..., None].chunk(2, dim=1)  # [B, outputs, 1] each
        return cast(torch.Tensor, self.second(scale * self.first(stream) + shift) + self.skip(stream))
