"""Several processes that train one policy, as torchrun starts them: each takes its part of every batch.

They start from the same weights and move them by the same gradients' mean (see ``weight_update``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from chunkcast.training.errors import TrainingError

_groups: list[Any] = []
"""While they are joined: the group of all, by gloo."""


def _talk() -> Any:
    return _groups[0]


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: 0 for the one that writes.
        count: 1 where one trains alone.
        local_rank: among this machine's processes; the GPU that it takes.
        local_count: this machine's processes.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def writes(self) -> bool:
        """Whether checkpoints, history and messages are this process's."""
        return self.rank == 0

    @property
    def one_machine(self) -> bool:
        """Whether there are several, and all on this machine."""
        return 1 < self.count == self.local_count

    def first_of(self, value: Any) -> Any:
        """The first process's value."""
        return self.gathered(value)[0]

    def mean(self, tensors: Sequence[torch.Tensor]) -> None:
        """Set every tensor to its mean over the processes."""
        if self.count == 1:
            return
        from torch import distributed

        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor.div_(self.count)

    def gathered(self, value: Any) -> list[Any]:
        """The processes' values, by rank."""
        if self.count == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value, group=_talk())
        return values

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier(group=_talk())

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first does what is inside, then the first of each other machine, then all others: what is left on disk,
        which machines may share or not, the next ones find.
        """
        turn = 0 if self.rank == 0 else 1 if self.local_rank == 0 else LAST_TURN
        for _ in range(turn):
            self.wait()
        yield
        for _ in range(LAST_TURN - turn):
            self.wait()

    def spread(self, vector: torch.Tensor) -> None:
        """Set ``vector`` to the first process's."""
        if self.count > 1:
            from torch import distributed

            distributed.broadcast(vector, 0)


ALONE = Processes()

LAST_TURN = 2

LONGEST_WAIT = timedelta(hours=6)
"""While the first copies or decodes a large data set."""


def by_environment() -> Processes:
    """What torchrun says of this process; alone where it says nothing.

    Raises:
        TrainingError: it says only half of it.
    """
    count = os.environ.get("WORLD_SIZE")
    if count is None:
        return ALONE
    try:
        return Processes(
            int(os.environ["RANK"]),
            int(count),
            int(os.environ["LOCAL_RANK"]),
            int(os.environ.get("LOCAL_WORLD_SIZE", "0")),
        )
    except (KeyError, ValueError) as error:
        raise TrainingError(
            f"WORLD_SIZE is {count!r} but {error} is missing or no number; start with torchrun, or unset WORLD_SIZE"
        ) from None


def another_is_lost(processes: Processes, reason: object) -> TrainingError:
    """What a process says that waits for another in vain."""
    return TrainingError(
        f"process {processes.rank} of {processes.count} has lost another one, which says why it ended "
        f"({str(reason).splitlines()[0]}); start them again with --resume"
    )


@contextmanager
def joined(processes: Processes, device: torch.device) -> Iterator[None]:
    """The processes know each other inside this block: by NCCL on GPUs, by gloo on CPUs.

    Raises:
        TrainingError: they do not meet, or another one has ended.
    """
    if processes.count == 1:
        yield
        return
    from torch import distributed

    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
        # What is said, and waited for, goes by the CPU: on a GPU a wait would keep it busy for as long as it lasts.
        _groups.append(distributed.new_group(backend="gloo", timeout=LONGEST_WAIT))
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"process {processes.rank} of {processes.count} cannot meet the others ({reason}); start them with torchrun"
        ) from None
    try:
        yield
    except RuntimeError as error:
        # gloo's own are plain ones, which name its source file.
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise another_is_lost(processes, error) from None
    # Not where something was raised: the others may be waiting for what will never come, and this for them.
    _groups.clear()
    distributed.destroy_process_group()
