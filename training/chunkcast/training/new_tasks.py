"""Weights of a policy that is told its tasks by name, for one that is told more tasks.

Such a policy's network has an input entry a task. A task that it has not known gets an entry of its own, with weights
as they are drawn for a new network; the others keep theirs, wherever they come to stand among the sorted names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from chunkcast.training.errors import CheckpointError
from chunkcast.training.policy import DiffusionPolicy

FIRST_LAYER = "encoder.0.weight"
TOLD = ("instruction_mean", "instruction_scale")
"""Of names nothing is to be normalised: they have one entry a task as well."""


def with_more_tasks(
    weights: Mapping[str, torch.Tensor], known: Sequence[str], policy: DiffusionPolicy, tasks: Sequence[str]
) -> dict[str, torch.Tensor]:
    """``weights`` as ``policy`` takes them.

    Args:
        weights: of a policy that knows the tasks ``known``, in their order.
        policy: of the same shapes, but that it is told ``tasks``, all of ``known`` and others.
        tasks: in their order.

    Raises:
        CheckpointError: it is of other shapes.
    """
    own = policy.state_dict()
    expected = [own[FIRST_LAYER].shape[0], own[FIRST_LAYER].shape[1] - len(tasks) + len(known)]
    found = list(weights[FIRST_LAYER].shape) if FIRST_LAYER in weights else None
    if found != expected:
        raise CheckpointError(
            f"the weights are of another network: their {FIRST_LAYER} is {found}, expected {expected}; train with the "
            "settings that they were trained with"
        )
    entries = policy.config.observation_steps * policy.config.state_size
    old, new = weights[FIRST_LAYER], own[FIRST_LAYER].clone()
    new[:, :entries] = old[:, :entries]
    new[:, entries + len(tasks) :] = old[:, entries + len(known) :]
    for number, task in enumerate(known):
        new[:, entries + tasks.index(task)] = old[:, entries + number]
    return {**weights, FIRST_LAYER: new, **{name: own[name] for name in TOLD}}
