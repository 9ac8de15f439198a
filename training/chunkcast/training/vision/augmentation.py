"""Frames as another camera might have made them: moved by some pixels, in other light."""

from __future__ import annotations

import torch

from chunkcast.training.draws import Draws


def shifted(frames: torch.Tensor, most: int, draws: Draws) -> torch.Tensor:
    """``frames [B, T, H, W, 3]``, each window's moved by up to ``most`` pixels along both axes, its border repeated
    (random shift, Yarats et al. 2021, arXiv:2004.13649).
    """
    if not most:
        return frames
    batch, ticks, height, width, _ = frames.shape
    offsets = draws.integers(-most, most + 1, batch, 2, 1).to(frames.device)
    rows = (torch.arange(height, device=frames.device) + offsets[:, 0]).clamp(0, height - 1)  # [B, H]
    columns = (torch.arange(width, device=frames.device) + offsets[:, 1]).clamp(0, width - 1)  # [B, W]
    window = torch.arange(batch, device=frames.device)[:, None, None, None]
    tick = torch.arange(ticks, device=frames.device)[None, :, None, None]
    return frames[window, tick, rows[:, None, :, None], columns[:, None, None, :]]


def recoloured(frames: torch.Tensor, spread: float, draws: Draws) -> torch.Tensor:
    """``frames [B, T, H, W, 3]`` as float, 0 to 255: each window's brighter or darker, and each of its colours, by up
    to ``spread`` as a share.
    """
    if not spread:
        return frames
    gain = 1.0 + spread * (2.0 * draws.uniform(len(frames), 1, 1, 1, 3) - 1.0)
    light = 255.0 * 0.5 * spread * (2.0 * draws.uniform(len(frames), 1, 1, 1, 1) - 1.0)
    # In place: a batch of frames is larger than the caches, and each pass over it costs as much as a convolution.
    return frames.float().mul_(gain.to(frames.device)).add_(light.to(frames.device)).clamp_(0.0, 255.0)
