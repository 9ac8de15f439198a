"""Columns of a table as tensors: in memory, or mapped from files that need not fit into it.

Where a table is mapped, the kernel reads the pages that a batch asks for and drops them again as it pleases: what a
process holds itself does not grow with the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

BLOCK_ROWS = 65_536
"""Rows that are looked at together where all are."""


class Rows:
    """A matrix of float32 ``[N, D]`` in shards that follow each other.

    NumPy takes it for an array; indices go to its rows first, as an array's do.

    Args:
        shards: float32 ``[N_i, D]``, at least one.
        mapped: whether they are mapped from files.
    """

    def __init__(self, shards: Sequence[torch.Tensor], *, mapped: bool = False) -> None:
        self._shards = list(shards)
        self.mapped = mapped
        self._ends = torch.tensor([len(shard) for shard in shards]).cumsum(0)
        self.shape = (int(self._ends[-1]), int(shards[0].shape[1]))

    @classmethod
    def of(cls, *arrays: npt.NDArray[np.float32]) -> Rows:
        """Of arrays in memory."""
        return cls([torch.from_numpy(np.ascontiguousarray(array, np.float32)) for array in arrays])

    @property
    def shards(self) -> list[torch.Tensor]:
        """As given, in order."""
        return list(self._shards)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> npt.NDArray[np.float32]:
        """A copy of some rows; ``[rows, columns]`` of some of their entries."""
        if isinstance(index, tuple):
            rows, *columns = index
            found = self[rows]
            return found[(..., *columns)] if np.ndim(rows) == 0 and not isinstance(rows, slice) else found[:, *columns]
        numbers = np.arange(len(self))[index]
        return self.take(torch.from_numpy(np.asarray(numbers))).numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All rows."""
        whole = self._shards[0] if len(self._shards) == 1 else torch.cat(self._shards)
        return np.array(whole.cpu().numpy(), dtype=dtype, copy=bool(copy))

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Float32 ``[*rows, D]``, where the shards are.

        Args:
            rows: int64, any shape.
        """
        if len(self._shards) == 1:
            return self._shards[0][rows]
        flat = rows.flatten()
        shard_of_row = torch.searchsorted(self._ends, flat.cpu(), right=True)
        taken = torch.empty((len(flat), self.shape[1]), dtype=torch.float32, device=self._shards[0].device)
        for number in torch.unique(shard_of_row).tolist():
            places = (shard_of_row == number).nonzero()[:, 0].to(taken.device)
            begin = int(self._ends[number - 1]) if number else 0
            taken[places] = self._shards[number][flat[places] - begin]
        return taken.view(*rows.shape, self.shape[1])

    def near(self, device: torch.device) -> Rows:
        """The same on ``device``; what is mapped stays where it is."""
        return self if self.mapped else Rows([shard.to(device) for shard in self._shards])

    @property
    def device(self) -> torch.device:
        """Where ``take`` wants its indices and gives its rows."""
        return self._shards[0].device

    def narrowed(self, columns: int) -> Rows:
        """Their first ``columns`` entries."""
        return Rows([shard[:, :columns] for shard in self._shards], mapped=self.mapped)

    def blocks(self, rows: npt.NDArray[np.int64]) -> Iterator[torch.Tensor]:
        """``rows`` in order, as many at a time as fit into memory whatever their number."""
        for first in range(0, len(rows), BLOCK_ROWS):
            yield self.take(torch.from_numpy(rows[first : first + BLOCK_ROWS]))


def joined(parts: Sequence[Rows]) -> Rows:
    """One after the other."""
    return Rows([shard for part in parts for shard in part.shards], mapped=any(part.mapped for part in parts))
