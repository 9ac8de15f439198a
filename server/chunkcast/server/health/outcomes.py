"""Measured success: what robots reported lately, with its interval. The counterpart of what was expected."""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import NamedTuple

from chunkcast.server.bundle import ALL_TASKS

OTHER_TASK = "other"
"""Reported tasks that the policy does not know are counted together: clients do not choose metric labels."""

WINDOW = 100
"""Episodes of each task: old ones, of another version or another day, go out."""

RECENT = 20
"""Episodes that are shown one by one."""

_Z = statistics.NormalDist().inv_cdf(0.975)


class Success(NamedTuple):
    """A share of successes with its 95 % interval."""

    ratio: float
    low: float
    high: float
    episodes: int


class Episode(NamedTuple):
    """A reported episode.

    Attributes:
        ended: Unix time of the report.
        task: one of the policy's instructions, or ``other``.
        outcome: ``success``, ``failure`` or ``aborted``.
        steps: control ticks.
        robot_id: who reported it.
    """

    ended: float
    task: str
    outcome: str
    steps: int
    robot_id: str


class Outcomes:
    """One policy's last episodes. Written by the event loop."""

    def __init__(self) -> None:
        self._by_task: dict[str, deque[bool]] = {}
        self.recent: deque[Episode] = deque(maxlen=RECENT)

    def report(self, task: str, outcome: str, steps: int, robot_id: str) -> None:
        """Count an episode. One that was aborted says nothing of the policy, and is only shown."""
        self.recent.append(Episode(time.time(), task, outcome, steps, robot_id))
        if outcome != "aborted":
            self._by_task.setdefault(task, deque(maxlen=WINDOW)).append(outcome == "success")

    def measured(self) -> dict[str, Success]:
        """Task to success over its window, and ``all``: over the episodes of every known task together."""
        found = {task: wilson(sum(window), len(window)) for task, window in list(self._by_task.items())}
        known = [success for task, success in found.items() if task != OTHER_TASK]
        if known:
            successes = sum(round(each.ratio * each.episodes) for each in known)
            found[ALL_TASKS] = wilson(successes, sum(each.episodes for each in known))
        return found


def wilson(successes: int, episodes: int) -> Success:
    """Wilson's score interval at 95 % (Wilson 1927).

    Args:
        episodes: at least 1.
    """
    ratio, z2 = successes / episodes, _Z * _Z
    centre = (ratio + z2 / (2 * episodes)) / (1 + z2 / episodes)
    half = _Z / (1 + z2 / episodes) * (ratio * (1 - ratio) / episodes + z2 / (4 * episodes**2)) ** 0.5
    return Success(ratio, max(0.0, centre - half), min(1.0, centre + half), episodes)
