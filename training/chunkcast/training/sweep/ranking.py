"""What the runs of a sweep came to, and which are better: by measured success, then by the error of their actions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes:
        name: of its folder.
        settings: flag to value.
        success_rate: through the server; ``None`` where it was not played.
        successes, episodes: that it is a share of.
        ci95: Wilson's interval.
        validation_action_mse: of the sampled actions on held-out episodes, normalised units.
        validation_loss: of its objective.
        seconds: of training.
        failed: why there is none of this; empty where there is.
    """

    name: str
    settings: dict[str, str]
    success_rate: float | None = None
    successes: int = 0
    episodes: int = 0
    ci95: tuple[float, float] | None = None
    validation_action_mse: float = math.nan
    validation_loss: float = math.nan
    seconds: float = 0.0
    failed: str = ""


def ranked(results: Sequence[Result]) -> list[Result]:
    """The best first; runs that failed last."""

    def worth(result: Result) -> tuple[Any, ...]:
        return bool(result.failed), -(result.success_rate or 0.0), result.validation_action_mse, result.name

    return sorted(results, key=worth)


def as_good_as_the_first(results: Sequence[Result]) -> list[bool]:
    """Of ranked results, whether the episodes can tell them from the first: whether the intervals meet."""
    first = results[0].ci95 if results else None
    return [first is not None and result.ci95 is not None and result.ci95[1] >= first[0] for result in results]
