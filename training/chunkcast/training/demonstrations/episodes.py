"""Demonstrations as training takes them, whatever files they were read from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from chunkcast.training.demonstrations.rows import Rows
from chunkcast.training.demonstrations.rows import joined as joined_rows
from chunkcast.training.errors import DemonstrationsError

SAME_MACHINE = ("state", "action", "control_rate_hz")
"""What demonstrations that are trained on together have in common, by their manifests."""

BOUNDS, DEMONSTRATED = "bounds", "demonstrated"
"""In a manifest's ``action``: its bounds are not the robot's, which nobody recorded, but the range of what was done."""


@dataclass(frozen=True)
class Episode:
    """One recorded episode of ``T`` control ticks.

    Attributes:
        task: task name.
        seed: the integer that names the episode's start and goal.
        states: float32 ``[T, S]``, what was observed before each action.
        actions: float32 ``[T, A]``, the expert's clean, clipped actions.
        executed: float32 ``[T, A]``, what was executed in their place.
        success: bool ``[T]``, solved at or before this tick.
    """

    task: str
    seed: int
    states: npt.NDArray[np.float32]
    actions: npt.NDArray[np.float32]
    executed: npt.NDArray[np.float32]
    success: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Demonstrations:
    """A whole set of demonstrations; ``N`` rows over all episodes.

    Attributes:
        states: float32 ``[N, S]``.
        actions: float32 ``[N, A]``, the expert's.
        executed: float32 ``[N, A]``, what was executed.
        episode_index: int32 ``[N]``, ascending from 0 without gaps.
        episode_tasks: the task name of each episode.
        episode_seeds: the seed of each episode.
        manifest: the manifest as read.
    """

    states: Rows
    actions: Rows
    executed: Rows
    episode_index: npt.NDArray[np.int32]
    episode_tasks: tuple[str, ...]
    episode_seeds: tuple[int, ...]
    manifest: dict[str, Any]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, sorted: the order of the policy's task codes."""
        return tuple(sorted(set(self.episode_tasks)))

    @property
    def action_bounds(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The robot's inclusive bounds, lower and upper, float32 ``[A]`` each."""
        bounds = np.array([element[2:] for element in self.manifest["action"]["elements"]], np.float32)
        return bounds[:, 0], bounds[:, 1]

    @property
    def bounds_demonstrated(self) -> bool:
        """Whether these bounds are but the range of the demonstrated actions."""
        return bool(self.manifest["action"].get(BOUNDS) == DEMONSTRATED)

    def bounded(self, low: Sequence[float], high: Sequence[float]) -> Demonstrations:
        """The same with other bounds of the actions."""
        elements = [
            [*element[:2], *bounds]
            for element, *bounds in zip(self.manifest["action"]["elements"], low, high, strict=True)
        ]
        return replace(self, manifest={**self.manifest, "action": {**self.manifest["action"], "elements": elements}})

    @property
    def sha256(self) -> str:
        """SHA-256 of the table: what a policy names as the data it was trained on."""
        return str(self.manifest["sha256"])


def joined(parts: Sequence[Demonstrations]) -> Demonstrations:
    """Several sets as one, episodes in the order of ``parts``.

    Raises:
        DemonstrationsError: they are of robots with other states, actions or control rates.
    """
    if len(parts) == 1:
        return parts[0]
    if all(part.bounds_demonstrated for part in parts) and len({len(part.action_bounds[0]) for part in parts}) == 1:
        lows, highs = zip(*(part.action_bounds for part in parts), strict=True)
        low, high = np.min(lows, 0).tolist(), np.max(highs, 0).tolist()
        parts = [part.bounded(low, high) for part in parts]
    first = parts[0].manifest
    for part in parts[1:]:
        for key in SAME_MACHINE:
            if part.manifest[key] != first[key]:
                raise DemonstrationsError(
                    f"demonstrations of one robot go together; {key} is {str(first[key])[:120]} in one set and "
                    f"{str(part.manifest[key])[:120]} in another"
                )
    offsets = np.cumsum([0, *(len(part.episode_tasks) for part in parts)])
    shifted = [part.episode_index + offset for part, offset in zip(parts, offsets, strict=False)]
    manifest = {
        **first,
        "sha256": hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest(),
        "episodes": sum(len(part.episode_tasks) for part in parts),
        "frames": sum(len(part.episode_index) for part in parts),
        "first_seed": min(part.manifest["first_seed"] for part in parts),
        "last_seed": max(part.manifest["last_seed"] for part in parts),
        "sources": [part.manifest for part in parts],
    }
    return Demonstrations(
        states=joined_rows([part.states for part in parts]),
        actions=joined_rows([part.actions for part in parts]),
        executed=joined_rows([part.executed for part in parts]),
        episode_index=np.concatenate(shifted).astype(np.int32),
        episode_tasks=tuple(task for part in parts for task in part.episode_tasks),
        episode_seeds=tuple(seed for part in parts for seed in part.episode_seeds),
        manifest=manifest,
    )
