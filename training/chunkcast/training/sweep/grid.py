"""A grid of settings: ``learning-rate=1e-3,3e-3 width=256,352`` are four runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from chunkcast.training.errors import TrainingError

MOST_RUNS = 200
"""A slip of the hand should not fill a week."""


@dataclass(frozen=True)
class Point:
    """One run's settings beside those that all have.

    Attributes:
        settings: flag, without dashes, to value, as they were written.
    """

    settings: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return ",".join(f"{flag}={re.sub(r'[^A-Za-z0-9._+-]', '_', value)}" for flag, value in self.settings)

    @property
    def flags(self) -> list[str]:
        """For chunkcast-train; ``true`` and ``false`` are its switches."""
        flags = []
        for flag, value in self.settings:
            if value in ("true", "false"):
                flags.append(f"--{flag}" if value == "true" else f"--no-{flag}")
            else:
                flags += [f"--{flag}", value]
        return flags


def grid_of(axes: Sequence[str]) -> list[Point]:
    """Every combination of the axes' values, the last axis changing first.

    Args:
        axes: ``FLAG=VALUE,VALUE`` each.

    Raises:
        TrainingError: an axis is none, a flag stands twice, two runs would share a folder, or there are more than
            ``MOST_RUNS`` of them.
    """
    values: dict[str, list[str]] = {}
    for axis in axes:
        flag, equals, listed = axis.partition("=")
        flag = flag.removeprefix("--").replace("_", "-")
        choices = [value for value in listed.split(",") if value]
        if not equals or not re.fullmatch(r"[a-z][a-z0-9-]*", flag) or not choices:
            raise TrainingError(
                f"--grid {axis!r} is no axis, expected FLAG=VALUE,VALUE such as learning-rate=1e-3,3e-3"
            )
        if flag in values or len(set(choices)) < len(choices):
            raise TrainingError(f"--grid names {flag} or one of its values twice")
        if flag in ("out", "data", "resume"):
            raise TrainingError(f"--grid cannot vary --{flag}")
        values[flag] = choices
    combinations = [tuple(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    if len(combinations) > MOST_RUNS:
        raise TrainingError(f"--grid makes {len(combinations)} runs, at most {MOST_RUNS}: leave some out")
    points = [Point(settings) for settings in combinations]
    by_name: dict[str, Point] = {}
    for point in points:
        if (other := by_name.setdefault(point.name, point)) is not point:
            one, another = (" ".join(each.flags) for each in (other, point))
            raise TrainingError(f"--grid: {one!r} and {another!r} would share the folder {point.name}; rename one")
    return points
