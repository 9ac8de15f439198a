"""Random numbers of a batch, of which each process takes its part.

Every process draws the whole batch's numbers and keeps those of its own windows: a batch that several processes share
is the batch of one, and a run does not depend on how many took part but for rounding.

Drawn on the CPU, so that a run's numbers do not depend on where it trains.
"""

from __future__ import annotations

import torch


class Draws:
    """Numbers for this process's windows; the first axis of a shape counts these.

    Args:
        generator: on the CPU, at the same state in every process.
        rank: of this process.
        processes: among which a batch's windows go round.
    """

    def __init__(self, generator: torch.Generator, rank: int = 0, processes: int = 1) -> None:
        self._generator, self._rank, self._processes = generator, rank, processes

    def normal(self, *shape: int) -> torch.Tensor:
        """Standard normal float32."""
        return self.own(torch.randn(self._whole(shape), generator=self._generator))

    def uniform(self, *shape: int) -> torch.Tensor:
        """Float32 in [0, 1)."""
        return self.own(torch.rand(self._whole(shape), generator=self._generator))

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """Int64 in [low, high)."""
        return self.own(torch.randint(low, high, self._whole(shape), generator=self._generator))

    def own(self, whole: torch.Tensor) -> torch.Tensor:
        """This process's rows of what was made for the whole batch."""
        return whole[self._rank :: self._processes]

    def own_of_first(self, count: int) -> int:
        """How many of this process's windows, its first ones, are among the batch's first ``count``."""
        return max(0, -(-(count - self._rank) // self._processes))

    def size(self, own: int) -> int:
        """Windows of the whole batch, where this process has ``own``."""
        return own * self._processes

    def _whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.size(shape[0]), *shape[1:])
