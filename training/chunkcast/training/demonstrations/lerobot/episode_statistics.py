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


class ColourCounts:
    """How often each of 256 values came in each colour: all that statistics of pictures need, however many they are."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)
        self._pictures = 0

    def add(self, pictures: npt.NDArray[np.uint8]) -> None:
        """Count ``pictures [N, H, W, 3]``."""
        for colour in range(3):
            self._counts[colour] += np.bincount(pictures[..., colour].reshape(-1), minlength=256)
        self._pictures += len(pictures)

    def merge(self, other: ColourCounts) -> None:
        """Count what ``other`` has counted."""
        self._counts += other._counts
        self._pictures += other._pictures

    def statistics(self) -> Statistics:
        """Of each colour, scaled to [0, 1], shaped ``[3, 1, 1]``; ``count`` is the number of pictures."""
        values = np.arange(256) / 255.0
        found: dict[str, list[float]] = {name: [] for name in ("min", "max", "mean", "std", *QUANTILES)}
        for counts in self._counts:
            share = counts / max(1, counts.sum())
            present, cumulated = np.flatnonzero(counts), share.cumsum()
            mean = float((share * values).sum())
            found["min"].append(float(values[present[0]]))
            found["max"].append(float(values[present[-1]]))
            found["mean"].append(mean)
            found["std"].append(float(np.sqrt((share * (values - mean) ** 2).sum())))
            for name, level in QUANTILES.items():
                found[name].append(float(values[min(255, int(np.searchsorted(cumulated, level)))]))
        shaped: Statistics = {name: [[[value]] for value in listed] for name, listed in found.items()}
        return {**shaped, "count": [self._pictures]}
