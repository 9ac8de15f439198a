"""Which entries of a state are compared with which: the vectors between its points, and how each point moved.

What a hand is told depends on where it is from the thing that it reaches for, rarely on where both are. A network
that is shown the places alone must learn each subtraction to the millimetre from the few places that were demonstrated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations

PREVIOUS = "previous_"


def differences_of(elements: Sequence[Sequence[str]]) -> tuple[tuple[int, int], ...]:
    """Pairs of indices into the state, each the minuend's and the subtrahend's.

    Three elements ``NAME_x``, ``NAME_y``, ``NAME_z`` in metres are a point. Every two are compared, axis by axis;
    ``previous_NAME``, the same point a tick before, only with ``NAME``.

    Args:
        elements: name and unit of each entry, as a manifest of demonstrations has them.
    """
    points: dict[str, dict[str, int]] = {}
    for index, (name, unit, *_) in enumerate(elements):
        if unit == "m" and (named := re.fullmatch(r"(.+)_([xyz])", name)):
            points.setdefault(named[1], {})[named[2]] = index
    points = {name: axes for name, axes in points.items() if len(axes) == 3}
    now = [name for name in points if not (name.startswith(PREVIOUS) and name.removeprefix(PREVIOUS) in points)]
    pairs = [*combinations(now, 2), *((name, PREVIOUS + name) for name in now if PREVIOUS + name in points)]
    return tuple((points[one][axis], points[other][axis]) for one, other in pairs for axis in "xyz")


def previous_of(elements: Sequence[Sequence[str]]) -> tuple[tuple[int, int], ...]:
    """Pairs of indices into the state: of ``previous_NAME``, an entry as it was a tick before, and of ``NAME``.

    Args:
        elements: name and unit of each entry, as a manifest of demonstrations has them.
    """
    index = {name: position for position, (name, *_) in enumerate(elements)}
    return tuple((index[PREVIOUS + name], index[name]) for name in index if PREVIOUS + name in index)
