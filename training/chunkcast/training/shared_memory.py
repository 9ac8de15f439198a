"""Vectors of all weights, in memory that the processes of one machine share where they can."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch

from chunkcast.training.distributed import Processes
from chunkcast.training.errors import TrainingError
from chunkcast.training.local_exchange import FOLDER

VECTORS = 4
"""Weights, averages and two moments, beside a gradient for each process."""


class Vectors:
    """Makes vectors of one size.

    Args:
        size: numbers in a vector.
        device: where they live.
        processes: that may share them.

    Attributes:
        shared: whether all processes see the same vectors; each then moves its own ``part``.
        part: of a vector, what this process moves; all of it where they are not shared.
    """

    def __init__(self, size: int, device: torch.device, processes: Processes) -> None:
        self._size, self._device, self._processes = size, device, processes
        needed = (VECTORS + processes.count) * size * torch.float32.itemsize
        # Every process has to come to the same answer: the first one's.
        able = processes.one_machine and device.type == "cpu" and FOLDER.is_dir()
        self.shared = able and bool(processes.first_of(shutil.disk_usage(FOLDER).free > 2 * needed))
        self.part = slice(0, size)
        if self.shared:
            bounds = [size * rank // processes.count for rank in range(processes.count + 1)]
            self.part = slice(bounds[processes.rank], bounds[processes.rank + 1])

    def new(self) -> torch.Tensor:
        """A vector of zeros."""
        return self._mapped(self._size) if self.shared else torch.zeros(self._size, device=self._device)

    def one_of_each(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A vector for this process alone to write, and those of all of them, ``[processes, size]``."""
        if not self.shared:
            alone = self.new()
            return alone, alone[None]
        together = self._mapped(self._processes.count * self._size).view(self._processes.count, self._size)
        return together[self._processes.rank], together

    def _mapped(self, numbers: int) -> torch.Tensor:
        """Memory behind a file that has no name any more once all have it: it ends with the last process."""
        name = ""
        if self._processes.writes:
            descriptor, name = tempfile.mkstemp(prefix="chunkcast-", dir=FOLDER)
            try:
                # Room that is only promised would end the process when it is used and not there.
                os.posix_fallocate(descriptor, 0, numbers * torch.float32.itemsize)
            except OSError as error:
                Path(name).unlink()
                raise TrainingError(f"{FOLDER} has no room for the weights ({error.strerror}); make some") from None
            finally:
                os.close(descriptor)
        try:
            name = self._processes.first_of(name)
            tensor = torch.from_file(name, shared=True, size=numbers, dtype=torch.float32)
            self._processes.wait()
        finally:
            if self._processes.writes:
                Path(name).unlink()
        return tensor
