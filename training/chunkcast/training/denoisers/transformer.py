"""A small diffusion transformer (DiT, Peebles & Xie 2023, arXiv:2212.09748): one token an action.

Timestep and observation reach every block through adaptive layer norm that starts at zero (adaLN-Zero), so a block
begins as the identity.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from chunkcast.training.denoisers.denoiser import Denoiser, DenoiserConfig, TimestepEmbedding
from chunkcast.training.errors import TrainingError

HEAD_SIZE = 64
POSITION_STD = 0.02


class TransformerDenoiser(Denoiser):
    """Self-attention over the chunk's rows.

    Args:
        config: ``width`` is a token's, in heads of 64; ``blocks`` are layers.

    Raises:
        TrainingError: the width is no multiple of 64.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        width = config.width
        if width % HEAD_SIZE:
            raise TrainingError(
                f"--width is {config.width}, expected a multiple of {HEAD_SIZE}, the size of a transformer's head"
            )
        self.sees_committed = config.sees_committed
        self.timestep = nn.Sequential(TimestepEmbedding(width // 2), nn.Linear(width // 2, width))
        self.observation = nn.Linear(config.embedding_size, width)
        self.chunk_in = nn.Linear(config.action_size + self.sees_committed, width)
        self.position = nn.Parameter(POSITION_STD * torch.randn(config.horizon, width))
        self.blocks = nn.ModuleList(AdaptiveBlock(width) for _ in range(config.blocks))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.chunk_out = nn.Linear(width, config.action_size)
        for layer in (self.modulation_out, self.chunk_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, noisy: torch.Tensor, timestep: torch.Tensor, embedding: torch.Tensor, committed: torch.Tensor
    ) -> torch.Tensor:
        """See ``Denoiser.forward``."""
        condition = nn.functional.silu(self.observation(embedding) + self.timestep(timestep))[:, None]  # [B, 1, width]
        rows = torch.cat([noisy, committed[..., None]], dim=-1) if self.sees_committed else noisy
        tokens = self.chunk_in(rows) + self.position  # [B, H, width]
        for block in self.blocks:
            tokens = block(tokens, condition)
        scale, shift = self.modulation_out(condition).chunk(2, dim=-1)
        return cast(torch.Tensor, self.chunk_out(self.norm_out(tokens) * (1.0 + scale) + shift))


class AdaptiveBlock(nn.Module):
    """Self-attention and an MLP, each behind a layer norm whose scale, shift and gate come from the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_SIZE
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """``tokens [B, H, width]`` in and out; ``condition [B, 1, width]``."""
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = self.modulation(condition).chunk(6, dim=-1)
        tokens = tokens + gate_1 * self._attend(self.norm_attention(tokens) * (1.0 + scale_1) + shift_1)
        hidden = self.mlp(self.norm_mlp(tokens) * (1.0 + scale_2) + shift_2)
        return cast(torch.Tensor, tokens + gate_2 * hidden)

    def _attend(self, tokens: torch.Tensor) -> torch.Tensor:
        # [B, H, 3 width] -> three of [B, heads, H, head size]
        query, key, value = self.query_key_value(tokens).unflatten(-1, (3, self.heads, HEAD_SIZE)).unbind(2)
        heads = (part.transpose(1, 2) for part in (query, key, value))
        attended = nn.functional.scaled_dot_product_attention(*heads)
        return cast(torch.Tensor, self.attention_out(attended.transpose(1, 2).flatten(2)))
