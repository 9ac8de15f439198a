"""MetaWorld's tasks, and how an episode of a task follows from its seed.

Does not know: demonstrations, policies, servers. metaworld is imported late, so that ``--help`` is quick.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from typing import Any

from chunkcast.simulation.errors import UnknownTask

SIX_TASKS: tuple[str, ...] = (
    "button-press-topdown-v3",
    "door-open-v3",
    "drawer-close-v3",
    "drawer-open-v3",
    "peg-insert-side-v3",
    "pick-place-v3",
)
"""The tasks of the TinyVLA-style seed policy that chunkcast started from."""

MT50 = "mt50"
"""Stands for all fifty tasks on a command line, as in MetaWorld's own benchmark."""

_ONE_TICK = (
    *((f"hand_{axis}", "m") for axis in "xyz"),
    ("gripper_opening", "1"),
    *((f"object_1_{axis}", "m") for axis in "xyz"),
    *((f"object_1_q{axis}", "1") for axis in "xyzw"),
    *((f"object_2_{axis}", "m") for axis in "xyz"),
    *((f"object_2_q{axis}", "1") for axis in "xyzw"),
)

STATE_ELEMENTS: tuple[tuple[str, str], ...] = (
    *_ONE_TICK,
    *((f"previous_{name}", unit) for name, unit in _ONE_TICK),
    *((f"goal_{axis}", "m") for axis in "xyz"),
)
"""Name and unit of the 39 entries of MetaWorld's observation: this tick, the tick before, the goal."""

PROPRIOCEPTION = 4
"""The first entries of the observation, what a robot knows of itself: hand and gripper at this tick."""

STATE_MEANING = (
    "MetaWorld v3 observation with the goal visible: hand, gripper and up to two objects at this tick and the one "
    "before (absent objects are zero), and the goal's position"
)

ACTION_ELEMENTS: tuple[tuple[str, str, float, float], ...] = (
    ("hand_dx", "cm/tick", -1.0, 1.0),
    ("hand_dy", "cm/tick", -1.0, 1.0),
    ("hand_dz", "cm/tick", -1.0, 1.0),
    ("gripper_effort", "1", -1.0, 1.0),
)
"""Name, unit and inclusive bounds: a displacement of the hand's set point, and a gripper effort (1 closes)."""

CONTROL_RATE_HZ = 80.0
"""MetaWorld steps physics 5 times of 2.5 ms for each action."""

MAX_EPISODE_STEPS = 500
"""MetaWorld's own limit; a step beyond it raises."""


def all_tasks() -> tuple[str, ...]:
    """The names of MetaWorld's fifty tasks, sorted."""
    from metaworld.policies import ENV_POLICY_MAP

    return tuple(sorted(ENV_POLICY_MAP))


def make_environment(task: str) -> Any:
    """The MetaWorld environment of ``task`` with its goal visible; what is given to its ``seed`` decides the episode.

    Raises:
        UnknownTask: the task is not one of MetaWorld's fifty.
    """
    from metaworld import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

    environment = _lookup(ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE, task, suffix="-goal-observable")(seed=0)
    # Draw goal and object positions from the environment's own generator at each reset, rather than
    # replay the one drawn at construction: then one integer names the whole episode.
    environment._freeze_rand_vec = False
    environment.seeded_rand_vec = True
    return environment


def make_expert(task: str) -> Any:
    """MetaWorld's scripted expert of ``task``: an object with ``get_action(observation) -> action``.

    Raises:
        UnknownTask: the task is not one of MetaWorld's fifty.
    """
    from metaworld.policies import ENV_POLICY_MAP

    # The experts' proportional gains overshoot [-1, 1] and say so at every step; callers clip.
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high", category=UserWarning)
    return _lookup(ENV_POLICY_MAP, task)()


def _lookup(table: Mapping[str, Any], task: str, suffix: str = "") -> Any:
    if task + suffix not in table:
        names = [name.removesuffix(suffix) for name in table]
        near = difflib.get_close_matches(task, names, n=3) or SIX_TASKS
        raise UnknownTask(f"unknown MetaWorld task {task!r}; expected a v3 name such as {', '.join(near)}")
    return table[task + suffix]
