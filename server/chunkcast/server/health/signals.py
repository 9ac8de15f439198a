"""The health signals of one observation and its chunk, as pure functions. Higher is stranger.

Sizes as in ``reference``; ``H`` is the horizon. An observation is its floating-point elements, flattened.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from chunkcast.server.health.reference import Reference

NEIGHBOURS = 5
"""The mean distance to so many: one lonely reference observation does not make its surroundings familiar."""

MIN_SPEED = 0.05
"""Of actions from tick to tick, as a share of their range: an arm at rest does not make rounding a disagreement."""

MAX_DEVIATIONS = 20.0
"""Beyond which an element's surprise counts no further: one jump must not drown an episode's average."""

Array = npt.NDArray[np.float32]


def range_exceedance(state: Array, low: Array, high: Array) -> float:
    """How far the furthest element of ``state [S]`` lies beyond ``[low, high]``, as a share of ``high - low``."""
    span = np.maximum(high - low, np.finfo(np.float32).tiny)
    beyond = np.maximum(np.maximum(low - state, state - high), 0.0)
    return float(np.max(np.minimum(beyond / span, 1e6), initial=0.0))


def novelty(state: Array, reference: Reference) -> float:
    """Mean Euclidean distance of ``state [S]``, scaled, to its k nearest reference observations."""
    scaled = state / reference.scale
    squared = reference.squares - 2.0 * (reference.observations @ scaled) + scaled @ scaled
    count = min(NEIGHBOURS, len(squared))
    nearest = np.partition(squared, count - 1)[:count]
    return float(np.sqrt(np.maximum(nearest, 0.0)).mean())


def embedding_novelty(embedding: Array, reference: Reference) -> float:
    """Mahalanobis distance of ``embedding [W]`` within the reference's principal axes, per axis."""
    whitened = reference.embedding_axes @ (embedding - reference.embedding_mean)
    return float(np.sqrt((whitened**2).mean()))


def disagreement(older: Array, newer: Array, ticks: int, span: Array) -> float | None:
    """How far two chunks ``[H, A]`` are apart over the ticks that both know, relative to the newer one's own speed.

    Velocity-normalised as in ACC (arXiv:2606.21386), from which the average over an episode is taken too.

    Args:
        ticks: from the older chunk's first row to the newer's.
        span: ``[A]``, each action's range.

    Returns:
        ``None`` if they have no tick in common.
    """
    if ticks >= len(older):
        return None
    apart = np.linalg.norm((older[ticks:] - newer[: len(newer) - ticks]) / span, axis=1).mean()
    speed = np.linalg.norm(np.diff(newer, axis=0) / span, axis=1).mean() if len(newer) > 1 else 0.0
    return float(apart / (speed + MIN_SPEED))


def response(before: Array, after: Array, executed: Array, reference: Reference) -> float:
    """How far an observation changed otherwise than the actions should have changed it: root mean square over its
    elements, in standard deviations of successful episodes.

    Args:
        before, after: observations ``[S]``.
        executed: the actions played from the one to the other, ``[n, A]``.
    """
    scaled = before / reference.scale
    features = np.concatenate([scaled, executed.sum(0), executed[-1], np.ones(1, np.float32)])
    surprise = after / reference.scale - scaled - reference.response @ features
    deviations = np.minimum(np.abs(surprise) / reference.response_deviation, MAX_DEVIATIONS)
    return float(np.sqrt((deviations**2).mean()))
