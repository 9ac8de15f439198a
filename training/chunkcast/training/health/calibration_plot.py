"""The plot of a calibration: expected against measured success, and the metric behind it. Imported late, as plots."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MultipleLocator

from chunkcast.training.health.drawing import (
    INK,
    PALETTE,
    FloatArray,
    Plot,
    draw_panel,
    legend_below,
    log_axis,
    numbers,
    shown_name,
)

RUN_MARKERS = ("o", "s", "D", "v", "P", "h")
"""Beside colour; runs beyond the sixth repeat both."""
RUNS_NAMED = 9
"""Runs in the legend; a longer one would push the plot off its panel."""
MARGIN = 0.04
"""Ratio of success drawn beyond 0 and 1, so that marks there are whole."""
FULL = 1.0 + MARGIN


def calibration_plot(calibration: dict[str, Any]) -> Plot | None:
    """Checkpoints that were played: expected success when their run was held out, and the chosen metric.

    Args:
        calibration: what ``chunkcast-health calibrate`` wrote. With few runs it has no ``held_out`` and no ``metric``.

    Returns:
        None if it has neither.
    """
    checkpoints, metric, held_out = calibration["checkpoints"], calibration.get("metric"), calibration.get("held_out")
    panels, caption = [], "Each mark is a checkpoint that was played; bars are intervals."
    if checkpoints and held_out:
        seed = held_out["seed_table"]
        caption = (
            "Look for marks near the diagonal: each was expected by a map that had not seen its run. It was "
            f"{_agreement(held_out)}; {_said(held_out['interval_coverage'], '.0%')} of the intervals hold what was "
            f"measured. The seed's table was {_agreement(seed)}. Bars are intervals."
        )

        def expected(axes: Axes) -> None:
            _against_expected(axes, checkpoints)

        panels.append(draw_panel("calibration", "Every checkpoint, its run held out", expected, 4.2))
    if checkpoints and metric is not None:

        def chosen(axes: Axes) -> None:
            _against_metric(axes, checkpoints, str(metric))

        panels.append(draw_panel("calibration-metric", "By the metric that was chosen", chosen, 4.2))
    return Plot("Expected against measured success", caption, tuple(panels)) if panels else None


def _against_expected(axes: Axes, checkpoints: list[Any]) -> None:
    axes.plot([0.0, 1.0], [0.0, 1.0], color=INK, linewidth=1.0, linestyle=(0, (4, 2)), label="as expected")
    axes.plot(
        numbers(point["seed_table"] for point in checkpoints),
        numbers(point["measured"] for point in checkpoints),
        "o",
        markerfacecolor="none",
        markeredgecolor=INK,
        markersize=5,
        label="the seed's table",
    )
    for place, (run, points) in enumerate(_by_run(checkpoints)):
        held_out = [point["held_out"] for point in points]
        x = numbers(each["expected"] for each in held_out)
        _draw_run(axes, place, run, x, points, xerr=_reach(held_out, "expected", "low", "high"))
    axes.set(xlim=(-MARGIN, FULL), xlabel="expected success")
    _percent(axes.xaxis)
    _measured_axis(axes)


def _against_metric(axes: Axes, checkpoints: list[Any], metric: str) -> None:
    if not log_axis(axes, "x", numbers((point["metrics"].get(metric) for point in checkpoints), positive=True)):
        return
    for place, (run, points) in enumerate(_by_run(checkpoints)):
        x = numbers((point["metrics"].get(metric) for point in points), positive=True)
        _draw_run(axes, place, run, x, points)
    axes.set_xlabel(f"{shown_name(metric)}, mean over tasks")
    _measured_axis(axes)


def _by_run(checkpoints: list[Any]) -> list[tuple[str, list[Any]]]:
    runs = list(dict.fromkeys(str(point["run"]) for point in checkpoints))
    return [(run, [point for point in checkpoints if str(point["run"]) == run]) for run in runs]


def _measured_axis(axes: Axes) -> None:
    axes.set(ylim=(-MARGIN, FULL), ylabel="measured success")
    _percent(axes.yaxis)
    legend_below(axes)


def _agreement(errors: dict[str, Any]) -> str:
    off = errors["mean_absolute_error"]
    points = "unknown" if off is None else f"{100 * off:.1f} points"
    return f"off by {points} on average, rank correlation {_said(errors['spearman'], '.2f')}"


def _said(value: float | None, form: str) -> str:
    return "unknown" if value is None else format(value, form)


def _draw_run(
    axes: Axes, place: int, run: str, x: FloatArray, points: list[Any], xerr: FloatArray | None = None
) -> None:
    """One run's checkpoints at ``x`` and their measured success, with the interval of it."""
    axes.errorbar(
        x,
        numbers(point["measured"] for point in points),
        yerr=_reach(points, "measured", "measured_low", "measured_high"),
        xerr=xerr,
        fmt=RUN_MARKERS[place % len(RUN_MARKERS)],
        color=PALETTE[place % len(PALETTE)],
        ecolor=(PALETTE[place % len(PALETTE)], 0.45),
        markersize=5,
        elinewidth=1.0,
        label=shown_name(run) if place < RUNS_NAMED else None,
        zorder=3,
    )


def _reach(points: list[Any], middle: str, low: str, high: str) -> FloatArray:
    """How far bars reach below and above, ``[2, N]``, never negative."""
    centre = numbers(point[middle] for point in points)
    below, above = centre - numbers(point[low] for point in points), numbers(point[high] for point in points) - centre
    return np.nan_to_num(np.maximum(np.stack([below, above]), 0.0))


def _percent(axis: Any) -> None:
    axis.set_major_locator(MultipleLocator(0.2))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
