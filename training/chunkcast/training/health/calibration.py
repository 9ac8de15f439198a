"""Expected success from offline metrics: a monotone map for each task, fitted on checkpoints that were played.

A checkpoint is a point: its metrics on held-out demonstrations, and its success through the server. For each task an
isotonic regression (scikit-learn) takes the logarithm of a metric to the ratio of successes: the lower the error, the
higher or equal the success; nothing else is assumed. Over all tasks the expectation is the tasks' mean.

*Which* metric is chosen by leaving out one run after the other: checkpoints of one run are much alike, so a map that is
judged on a run which it has seen looks better than it is. The error that is reported for a run comes from a map and a
choice of metric that have both not seen that run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chunkcast.training.errors import TrainingError

MIN_RUNS = 3
"""To leave one out and choose a metric on the others."""
CONFIDENCE = 0.95
BOOTSTRAP_SAMPLES = 400
BOOTSTRAP_SEED = 20_242
NEIGHBOURS = 12
"""Held-out checkpoints whose expectation was nearest: their errors stand for that of a new one."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PlayedCheckpoint:
    """A checkpoint with what was measured offline and what was measured through the server.

    Attributes:
        run: names the run; checkpoints of one run are left out together.
        epoch: within the run.
        metrics: task to metric to value.
        successes, episodes: task to count.
    """

    run: str
    epoch: int
    metrics: dict[str, dict[str, float]]
    successes: dict[str, int]
    episodes: dict[str, int]

    def __post_init__(self) -> None:
        """Refuse counts that are no ratio."""
        for task, episodes in self.episodes.items():
            if not 0 <= self.successes[task] <= episodes or not episodes:
                raise TrainingError(
                    f"{self.run} epoch {self.epoch} has {self.successes[task]} successes in {episodes} episodes of "
                    f"{task}"
                )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that were played."""
        return tuple(self.episodes)

    def ratio(self, task: str = "") -> float:
        """Measured success in ``task``, or the tasks' mean."""
        if task:
            return self.successes[task] / self.episodes[task]
        return float(np.mean([self.ratio(each) for each in self.tasks]))


@dataclass(frozen=True)
class Estimate:
    """A ratio of successes with its interval of ``CONFIDENCE``."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Map:
    """A fitted isotonic regression: success over the logarithm of an error, linear in between.

    Attributes:
        log_errors: float64 ``[K]``, ascending.
        ratios: float64 ``[K]``, descending or equal.
    """

    log_errors: FloatArray
    ratios: FloatArray

    def __call__(self, error: float) -> float:
        """Expected success; beyond the checkpoints that were played, the nearest one's."""
        return float(np.interp(_log(error), self.log_errors, self.ratios))


@dataclass(frozen=True)
class HeldOut:
    """What was expected of a checkpoint by a map and a choice that had not seen its run."""

    checkpoint: PlayedCheckpoint
    metric: str
    expected: dict[str, Estimate]
    """By task; ``""`` is the mean."""


def common_metrics(checkpoints: Sequence[PlayedCheckpoint]) -> list[str]:
    """The metrics that every checkpoint has in every task."""
    first, *others = (set(metrics) for point in checkpoints for metrics in point.metrics.values())
    return sorted(first.intersection(*others))


def fit_maps(checkpoints: Sequence[PlayedCheckpoint], metric: str) -> dict[str, Map]:
    """Success over log(metric), by task."""
    tasks = checkpoints[0].tasks
    return _fit(checkpoints, metric, {task: [point.ratio(task) for point in checkpoints] for task in tasks})


def _fit(checkpoints: Sequence[PlayedCheckpoint], metric: str, ratios: dict[str, list[float]]) -> dict[str, Map]:
    from sklearn.isotonic import IsotonicRegression

    maps = {}
    for task, values in ratios.items():
        regression = IsotonicRegression(y_min=0.0, y_max=1.0, increasing=False)
        errors = [_log(point.metrics[task][metric]) for point in checkpoints]
        regression.fit(errors, values, sample_weight=[point.episodes[task] for point in checkpoints])
        maps[task] = Map(regression.X_thresholds_, regression.y_thresholds_)
    return maps


def apply_maps(maps: dict[str, Map], metrics: dict[str, dict[str, float]], metric: str) -> dict[str, float]:
    """Expected success of a checkpoint with ``metrics``, by task, and their mean under ``""``.

    Raises:
        TrainingError: the checkpoint's tasks are not the maps', or it lacks the metric.
    """
    if set(metrics) != set(maps):
        raise TrainingError(
            f"the calibration knows {', '.join(sorted(maps))}, the policy {', '.join(sorted(metrics))}; "
            "calibrate again on runs of these tasks"
        )
    if lacking := [task for task in maps if metric not in metrics[task]]:
        raise TrainingError(f"{metric}, which the calibration uses, was not measured of {lacking[0]}; calibrate again")
    expected = {task: fitted(metrics[task][metric]) for task, fitted in maps.items()}
    return {**expected, "": float(np.mean(list(expected.values())))}


def _log(error: float) -> float:
    # A diverged checkpoint's error is as bad as any; an error of 0 as good as any.
    return float(np.log(np.clip(np.nan_to_num(error, nan=1e30, posinf=1e30), 1e-30, 1e30)))


def leave_one_run_out(checkpoints: Sequence[PlayedCheckpoint], metric: str) -> list[dict[str, float]]:
    """For each checkpoint, what the maps fitted on the other runs expect of it, by task and ``""``.

    Raises:
        TrainingError: the checkpoints are all of one run.
    """
    runs = require_runs(checkpoints, 2)
    maps = {run: fit_maps([point for point in checkpoints if point.run != run], metric) for run in runs}
    return [apply_maps(maps[point.run], point.metrics, metric) for point in checkpoints]


def mean_absolute_error(checkpoints: Sequence[PlayedCheckpoint], expected: Sequence[float]) -> float:
    """Of the expected mean success against the measured, as a ratio (0.08 is 8 points)."""
    return float(np.mean([abs(point.ratio() - value) for point, value in zip(checkpoints, expected, strict=True)]))


def choose_metric(checkpoints: Sequence[PlayedCheckpoint]) -> str:
    """The metric with the lowest error on runs that were left out, one after the other."""

    def error(metric: str) -> float:
        return mean_absolute_error(checkpoints, [each[""] for each in leave_one_run_out(checkpoints, metric)])

    return min(common_metrics(checkpoints), key=error)


def hold_out(checkpoints: Sequence[PlayedCheckpoint]) -> list[HeldOut]:
    """What is expected of each checkpoint when its run is unknown: metric, maps and interval from the other runs alone.

    Raises:
        TrainingError: fewer than three runs: two must be left to choose the metric on.
    """
    runs = require_runs(checkpoints, MIN_RUNS)
    others = {run: Calibration([point for point in checkpoints if point.run != run]) for run in runs}
    return [HeldOut(point, others[point.run].metric, others[point.run].expect(point.metrics)) for point in checkpoints]


def require_runs(checkpoints: Sequence[PlayedCheckpoint], least: int) -> list[str]:
    """The runs' names, in order.

    Raises:
        TrainingError: there are fewer than ``least``.
    """
    runs = list(dict.fromkeys(point.run for point in checkpoints))
    if len(runs) < least:
        raise TrainingError(
            f"{len(runs)} runs ({', '.join(runs)}), expected at least {least}: a map is judged on a run it has not seen"
        )
    return runs


class Calibration:
    """A metric, chosen, and its maps, fitted, with intervals.

    Args:
        checkpoints: of at least two runs.

    Raises:
        TrainingError: of fewer, of different tasks, or without a metric that all of them have.
    """

    def __init__(self, checkpoints: Sequence[PlayedCheckpoint]) -> None:
        require_runs(checkpoints, 2)
        for point in checkpoints:
            if set(point.tasks) != set(checkpoints[0].tasks):
                raise TrainingError(
                    f"{point.run} epoch {point.epoch} was played on {', '.join(point.tasks)}, "
                    f"{checkpoints[0].run} on {', '.join(checkpoints[0].tasks)}; calibrate runs of the same tasks"
                )
        if not common_metrics(checkpoints):
            raise TrainingError("the checkpoints have no metric in common; calibrate again")
        self.checkpoints = list(checkpoints)
        self.metric = choose_metric(checkpoints)
        self.maps = fit_maps(checkpoints, self.metric)
        expected = leave_one_run_out(checkpoints, self.metric)
        self._residuals = {
            task: np.array(
                [
                    (each[task], point.ratio(task) - each[task])
                    for point, each in zip(checkpoints, expected, strict=True)
                ]
            )
            for task in expected[0]
        }
        self._bootstrapped = self._bootstrap()

    def expect(self, metrics: dict[str, dict[str, float]]) -> dict[str, Estimate]:
        """Expected success with its interval, by task and ``""``, of a checkpoint of another run.

        The interval holds what is unknown of the map (runs drawn anew with replacement, each checkpoint's ratio from
        what its episodes leave possible) and how far off the map was for held-out checkpoints of about this ratio.
        """
        expected = apply_maps(self.maps, metrics, self.metric)
        samples = [apply_maps(maps, metrics, self.metric) for maps in self._bootstrapped]
        return {task: self._estimate(task, ratio, samples) for task, ratio in expected.items()}

    def _estimate(self, task: str, ratio: float, samples: list[dict[str, float]]) -> Estimate:
        at, error = self._residuals[task].T
        near = error[np.argsort(np.abs(at - ratio), kind="stable")[:NEIGHBOURS]]
        spread = np.array([sample[task] for sample in samples])
        draws = np.clip(spread[:, None] + near[None, :], 0.0, 1.0)
        low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Estimate(ratio, float(min(low, ratio)), float(max(high, ratio)))

    def _bootstrap(self) -> list[dict[str, Map]]:
        generator = np.random.default_rng(BOOTSTRAP_SEED)
        runs = list(dict.fromkeys(point.run for point in self.checkpoints))
        of_run = {run: [point for point in self.checkpoints if point.run == run] for run in runs}
        samples = []
        for _ in range(BOOTSTRAP_SAMPLES):
            drawn = [point for run in generator.choice(runs, len(runs)) for point in of_run[run]]
            ratios = {task: [_possible_ratio(generator, point, task) for point in drawn] for task in drawn[0].tasks}
            samples.append(_fit(drawn, self.metric, ratios))
        return samples


def _possible_ratio(generator: np.random.Generator, point: PlayedCheckpoint, task: str) -> float:
    """A ratio that may lie behind a count, drawn from its posterior under Jeffreys' prior: 20 of 20 is not 100 %."""
    successes, episodes = point.successes[task], point.episodes[task]
    return float(generator.beta(successes + 0.5, episodes - successes + 0.5))
