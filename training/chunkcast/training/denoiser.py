"""The residual MLP denoiser: from a noisy action chunk, its timestep and a condition to the scheduler's target.

Does not know: normalisation, noise schedules, losses. Shapes: ``B`` batch, ``H`` horizon, ``A`` action size,
``C`` condition size, ``W`` width. Rows of the chunk may be *committed*: the robot will play them while inference runs,
so they are given, clean, and not denoised.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn


class ResidualMlpDenoiser(nn.Module):
    """A residual MLP over the flattened chunk, each block modulated by the condition (FiLM, Perez et al. 2018).

    Args:
        horizon: actions in a chunk, ``H``.
        action_size: ``A``.
        condition_size: size of the condition vector, ``C``.
        width: of the residual stream, ``W``; a block is ``2 W`` wide inside.
        blocks: residual blocks.
        sees_committed: whether it is told which rows are committed; without, no row ever is.
    """

    def __init__(
        self, horizon: int, action_size: int, condition_size: int, width: int, blocks: int, *, sees_committed: bool
    ) -> None:
        super().__init__()
        self.horizon, self.action_size, self.sees_committed = horizon, action_size, sees_committed
        self.timestep = nn.Sequential(SinusoidalEmbedding(width // 2), nn.Linear(width // 2, width))
        self.condition = nn.Sequential(nn.Linear(condition_size, width), nn.SiLU(), nn.Linear(width, width))
        self.chunk_in = nn.Linear(horizon * action_size + (horizon if sees_committed else 0), width)
        self.blocks = nn.ModuleList(FilmBlock(width) for _ in range(blocks))
        self.norm_out = nn.LayerNorm(width)
        self.chunk_out = nn.Linear(width, horizon * action_size)
        # Start from predicting zero, the mean of either target.
        nn.init.zeros_(self.chunk_out.weight)
        nn.init.zeros_(self.chunk_out.bias)

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, condition: torch.Tensor, committed: torch.Tensor
    ) -> torch.Tensor:
        """The prediction ``[B, H, A]`` for ``noisy [B, H, A]`` at ``timestep [B]`` under ``condition [B, C]``.

        Args:
            committed: ``[B, H]``, 1 where a row of ``noisy`` is clean already, 0 elsewhere.
        """
        film_input = nn.functional.silu(self.condition(condition) + self.timestep(timestep))  # [B, W]
        chunk = torch.cat([noisy.flatten(1), committed], dim=-1) if self.sees_committed else noisy.flatten(1)
        stream = self.chunk_in(chunk)  # [B, W]
        for block in self.blocks:
            stream = block(stream, film_input)
        flat = self.chunk_out(self.norm_out(stream))  # [B, H*A]
        return cast(torch.Tensor, flat.unflatten(1, (self.horizon, self.action_size)))


class FilmBlock(nn.Module):
    """``stream + down(silu(scale * up(norm(stream)) + shift))`` with scale and shift from the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.film = nn.Linear(width, 4 * width)
        self.down = nn.Linear(2 * width, width)
        # Begin as an unmodulated block (scale 1, shift 0) that adds nothing to the stream.
        for layer in (self.film, self.down):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, stream: torch.Tensor, film_input: torch.Tensor) -> torch.Tensor:
        """``[B, W]`` in and out; ``film_input [B, W]``."""
        scale, shift = self.film(film_input).chunk(2, dim=-1)  # [B, 2W] each
        hidden = nn.functional.silu((1.0 + scale) * self.up(self.norm(stream)) + shift)
        return cast(torch.Tensor, stream + self.down(hidden))


class SinusoidalEmbedding(nn.Module):
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
