"""What normalisation needs to know of the states, in passes over their rows that hold a block at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from chunkcast.training.demonstrations.rows import Rows

SAMPLE_ROWS = 2**18
"""Evenly spaced rows stand for all where order statistics are taken."""


@dataclass(frozen=True)
class RowStatistics:
    """Of chosen rows, ``[D]`` each.

    Attributes:
        mean: float32.
        std: float32, unbiased.
        low: float32, the smallest.
        high: float32, the largest.
        sample: float32 ``[M, D]``, evenly spaced rows; all of them where there are few.
    """

    mean: torch.Tensor
    std: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    sample: torch.Tensor


def row_statistics(values: Rows, rows: npt.NDArray[np.int64]) -> RowStatistics:
    """Of ``rows``; the same however ``values`` are cut into shards.

    Two passes: squares around zero would lose what little a state varies far from it.
    """
    total = torch.zeros(values.shape[1], dtype=torch.float64)
    low, high = torch.full((values.shape[1],), torch.inf), torch.full((values.shape[1],), -torch.inf)
    for block in values.blocks(rows):
        total += block.double().sum(0)
        low, high = torch.minimum(low, block.amin(0)), torch.maximum(high, block.amax(0))
    mean = total / len(rows)
    squares = torch.zeros_like(total)
    for block in values.blocks(rows):
        squares += (block.double() - mean).square().sum(0)
    std = (squares / max(1, len(rows) - 1)).sqrt()
    sample = values.take(torch.from_numpy(rows[:: -(-len(rows) // SAMPLE_ROWS)]))
    return RowStatistics(mean.float(), std.float(), low, high, sample)
