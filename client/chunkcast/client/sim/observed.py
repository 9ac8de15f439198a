"""What a simulated robot observes: rendered only if somebody looks, since most ticks need no picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy.typing as npt

Observed = Mapping[str, npt.NDArray[Any]]
"""One array for each observation entry."""


class LazyObservation(Observed):
    """Arrays by key, some of them made when they are first asked for.

    Args:
        arrays: those that are there.
        makers: of the others, each called at most once.
        still_now: whether what is observed is still as it was: afterwards nothing new can be seen of it.
    """

    def __init__(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        makers: Mapping[str, Callable[[], npt.NDArray[Any]]],
        still_now: Callable[[], bool],
    ) -> None:
        self._arrays, self._makers, self._still_now = dict(arrays), makers, still_now
        self._keys = (*arrays, *makers)

    def __getitem__(self, key: str) -> npt.NDArray[Any]:
        if key not in self._arrays and key in self._makers:
            if not self._still_now():
                raise RuntimeError(f"{key} was not looked at before the robot moved on")
            self._arrays[key] = self._makers[key]()
        return self._arrays[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def changed(observed: Observed, key_changes: Mapping[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]]) -> Observed:
    """``observed`` with the arrays of these keys replaced by what is made of them, when they are looked at."""

    def maker(key: str) -> Callable[[], npt.NDArray[Any]]:
        change = key_changes.get(key)
        return lambda: change(observed[key].copy()) if change else observed[key]

    return LazyObservation({}, {key: maker(key) for key in observed}, lambda: True)
