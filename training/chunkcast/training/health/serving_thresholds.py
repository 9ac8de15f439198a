"""Up to where health signals are healthy: one-sided conformal calibration on successful episodes.

Each signal has its own unit and each instruction its own course, so a signal is first put in units of what it reaches
in most episodes of the instruction; then one factor for all of them is the conformal quantile of the highest signal of
an episode that had no part in the units. A new healthy, successful episode exceeds any of its thresholds at any of its
chunks with a probability of at most ``alpha`` (Vovk et al. 2005; for failure detection: FAIL-Detect, arXiv:2503.08558,
and FIPER, arXiv:2510.09459).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from chunkcast.training.errors import TrainingError
from chunkcast.v1 import policy_pb2 as pb

UNIT_QUANTILE = 0.9
"""Of an instruction's episodes: what a signal reaches at its highest in nine of ten."""

MIN_UNIT = 1e-3
MIN_RANGE_UNIT = 0.05
"""A signal that stays at zero in every episode has no unit of its own. A twentieth beyond the training range is usual:
no demonstration went just there."""


@dataclass(frozen=True)
class JudgedEpisode:
    """A successful episode.

    Attributes:
        task: its instruction.
        highest: each signal's highest score, by its name in lower case.
    """

    task: str
    highest: Mapping[str, float]


def conformal_quantile(scores: Sequence[float], alpha: float) -> float:
    """The value that a further, exchangeable score exceeds with a probability of at most ``alpha``.

    Raises:
        TrainingError: there are too few scores for so small an ``alpha``.
    """
    rank = math.ceil((len(scores) + 1) * (1.0 - alpha))
    if rank > len(scores):
        raise TrainingError(
            f"{len(scores)} successful episodes cannot bound false alarms at {alpha:g}; expected at least "
            f"{math.ceil(1.0 / alpha) - 1} of them: take more --episodes, or a larger --false-alarms"
        )
    return sorted(scores)[rank - 1]


def fit_thresholds(
    units_from: Sequence[JudgedEpisode], factor_from: Sequence[JudgedEpisode], alpha: float
) -> list[pb.SignalThreshold]:
    """A threshold for each signal and instruction.

    Args:
        units_from: successful episodes of every instruction.
        factor_from: others, of the same instructions.
        alpha: the share of healthy episodes that may exceed a threshold.

    Raises:
        TrainingError: an instruction has no episode, or there are too few for ``alpha``.
    """
    units: dict[tuple[str, str], float] = {}
    judged = [[each for each in half if each.highest] for half in (units_from, factor_from)]
    for task in dict.fromkeys(each.task for each in (*units_from, *factor_from)):
        mine = [each.highest for each in judged[0] if each.task == task]
        if not mine or not any(each.task == task for each in judged[1]):
            raise TrainingError(
                f"too few successful episodes of {task!r} that were judged, expected some of even and of odd seeds; "
                "take more --episodes"
            )
        for signal in sorted(set().union(*mine)):
            reached = [highest[signal] for highest in mine if signal in highest]
            least = MIN_RANGE_UNIT if signal == "range" else MIN_UNIT
            units[task, signal] = max(float(np.quantile(reached, UNIT_QUANTILE)), least)
    factor = conformal_quantile(
        [
            max(
                score / units[each.task, signal]
                for signal, score in each.highest.items()
                if (each.task, signal) in units
            )
            for each in judged[1]
        ],
        alpha,
    )
    return [
        pb.SignalThreshold(signal=signal_of(signal), task=task, threshold=factor * unit)
        for (task, signal), unit in units.items()
    ]


def signal_of(name: str) -> pb.HealthSignal.ValueType:
    """The signal called ``name``, such as ``novelty``."""
    return pb.HealthSignal.Value(f"HEALTH_SIGNAL_{name.upper()}")
