"""Statistics of features as lerobot keeps them: of each episode, and of all frames together."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

Statistics = dict[str, list[Any]]


def vector_statistics(values: npt.NDArray[Any]) -> Statistics:
    """Of each entry over the rows of ``values [N, D]``; ``count`` is ``N``."""
    numbers = values.astype(np.float64)
    return {
        "min": numbers.min(0).tolist(),
        "max": numbers.max(0).tolist(),
        "mean": numbers.mean(0).tolist(),
        "std": numbers.std(0).tolist(),
        "count": [len(numbers)],
        **{name: np.quantile(numbers, level, axis=0).tolist() for name, level in QUANTILES.items()},
    }


def picture_statistics(pictures: npt.NDArray[np.uint8]) -> Statistics:
    """Of each colour over ``pictures [N, H, W, 3]``, scaled to [0, 1], shaped ``[3, 1, 1]``; ``count`` is ``N``."""
    colours = pictures.reshape(-1, 3).astype(np.float32) / 255.0
    statistics = vector_statistics(colours)
    shaped: Statistics = {name: [[[value]] for value in values] for name, values in statistics.items()}
    return {**shaped, "count": [len(pictures)]}
