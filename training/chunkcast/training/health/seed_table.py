"""The seed's tables: bands of the noise-prediction MSE, and the success it read off them. Kept as what they are.

The seed is the TinyVLA-style policy that this project grew from. It trained to a noise MSE of 0.16-0.43, read 80-90 %
off the table below, and succeeded in 0 of 7 episodes. The bands describe how well noise is predicted; nothing in them
knows whether a robot succeeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from chunkcast.training.health.findings import Severity


@dataclass(frozen=True)
class Band:
    """A band of the noise MSE: above ``low``, up to ``high``."""

    name: str
    low: float
    high: float
    severity: Severity


BANDS = (
    Band("below the seed's table", 0.0, 0.1, "info"),
    Band("excellent", 0.1, 0.5, "info"),
    Band("good", 0.5, 1.0, "info"),
    Band("acceptable", 1.0, 2.0, "warning"),
    Band("poor", 2.0, float("inf"), "error"),
)
"""As the seed named them. ``acceptable`` is worse than predicting no noise at all, which scores 1.0."""

SUCCESS = (
    (0.2, 0.90, 0.95),
    (0.4, 0.80, 0.90),
    (0.6, 0.60, 0.80),
    (1.0, 0.30, 0.60),
    (float("inf"), 0.0, 0.30),
)
"""Loss up to, success from, success to. The seed's table starts at a loss of 0.1; below it, its best row is taken."""


@dataclass(frozen=True)
class DataSizeAdvice:
    """What the seed advised for a number of training samples; pairs are inclusive ranges, None is open.

    Attributes:
        epochs: passes over the data.
        patience: epochs without improvement before stopping.
        target: the noise MSE to reach.
        batch: samples a step.
    """

    epochs: tuple[int, int | None]
    patience: tuple[int, int]
    target: tuple[float, float]
    batch: tuple[int, int]


def band_of(noise_mse: float) -> Band:
    """The band of a noise MSE at or above 0."""
    if noise_mse < BANDS[0].high:  # the table begins with 0.1 itself
        return BANDS[0]
    return next(band for band in BANDS[1:] if noise_mse <= band.high)


def success_of(noise_mse: float) -> tuple[float, float]:
    """The success that the seed read off a noise MSE, as a range of ratios; NaN is as bad as any."""
    return next((low, high) for most, low, high in SUCCESS if noise_mse <= most or math.isinf(most))


def advice_for(samples: int) -> DataSizeAdvice:
    """The seed's settings for a data set of ``samples`` training samples (what one epoch passes over)."""
    large = samples > 2000
    return DataSizeAdvice(
        epochs=(10, 20) if samples < 500 else (50, None) if large else (20, 50),
        patience=(8, 10) if samples < 1000 else (10, 15),
        target=(0.05, 0.3) if large else (0.1, 0.5),
        batch=(16, 32) if large else (4, 8),
    )
