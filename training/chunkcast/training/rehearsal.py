"""Old demonstrations beside new ones: of every batch a share is rehearsed, however few the new ones are.

A network that learns new demonstrations alone forgets what it was taught before (McCloskey & Cohen 1989); one that also
meets the old ones keeps it (experience replay, Rolnick et al. 2019, arXiv:1811.11682).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chunkcast.training.errors import TrainingError


@dataclass(frozen=True)
class Rehearsal:
    """Which windows are rehearsed.

    Attributes:
        old: bool ``[N]``, of all windows.
        share: of a batch, those that are old; in (0, 1).

    Raises:
        TrainingError: all windows are old, or all new.
    """

    old: torch.Tensor
    share: float

    def __post_init__(self) -> None:
        """Refuse what has nothing to rehearse, or nothing to learn."""
        if bool(self.old.all()) or not bool(self.old.any()):
            raise TrainingError("--rehearsal has no windows to train on, or --data has none; collect more episodes")

    def order(self, batches: int, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """Indices of the windows of ``batches`` batches, int64 ``[batches * batch_size]``.

        Of each batch as many are old; new and old ones are gone through in random orders, again and again.
        """
        old_each = min(max(1, round(self.share * batch_size)), batch_size - 1)
        new = _passes(torch.nonzero(~self.old)[:, 0], batches * (batch_size - old_each), generator)
        old = _passes(torch.nonzero(self.old)[:, 0], batches * old_each, generator)
        together = torch.cat([new.view(batches, -1), old.view(batches, -1)], 1)
        # A batch's first windows are treated differently from its last (see ``objective``).
        mixed = torch.stack([row[torch.randperm(batch_size, generator=generator)] for row in together])
        return mixed.flatten()


def _passes(windows: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` of ``windows``: all in a random order, then all in another, and so on."""
    passes = [windows[torch.randperm(len(windows), generator=generator)] for _ in range(-(-count // len(windows)))]
    return torch.cat(passes)[:count] if passes else windows[:0]
