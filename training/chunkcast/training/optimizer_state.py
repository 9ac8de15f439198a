"""The optimiser's part of a checkpoint."""

from __future__ import annotations

from typing import Any

import torch


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Its state by name, ``optimizer.PARAMETER.QUANTITY``."""
    state = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, schedule: Any, tensors: dict[str, torch.Tensor], step: int
) -> None:
    """The inverse, with the learning rate as it stood after ``step`` steps.

    Args:
        schedule: of the learning rate.
        tensors: by ``PARAMETER.QUANTITY``.
    """
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    schedule.last_epoch = step
    for group, base, rate in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * rate(step)
