"""Validation losses broken down: by timestep and by task. Imported late, as ``plots``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from chunkcast.training.health.drawing import (
    DASHES,
    INK,
    NO_NOISE,
    NO_NOISE_DASH,
    PALETTE,
    Plot,
    draw_line,
    draw_panel,
    epoch_axis,
    legend_below,
    log_axis,
    numbers,
    shown_name,
)
from chunkcast.training.history import EpochRecord

TASKS_SHOWN = 50
TASK_LINES = len(PALETTE)
"""Tasks with a line of their own: the worst. More cannot be told apart."""


def timestep_plot(records: Sequence[EpochRecord]) -> Plot:
    """Validation noise MSE by band of timesteps: the last epoch, and all."""
    shown = _last_with_values(records, "validation_noise_mse_by_timestep")
    bands = list(shown.validation_noise_mse_by_timestep)
    last = numbers(shown.validation_noise_mse_by_timestep.values(), positive=True)
    colours = _ramp(len(bands))
    epochs = [record.epoch for record in records]

    def bars(axes: Axes) -> None:
        axes.grid(visible=False, axis="x")
        axes.set_xticks(range(len(bands)), [shown_name(band) for band in bands], rotation=45 if len(bands) > 5 else 0)
        axes.set_xlabel("timesteps, from the least noise to the most")
        if not log_axis(axes, "y", np.append(last, NO_NOISE)):
            return
        axes.bar(range(len(bands)), np.nan_to_num(last), color=colours, width=0.72)
        for place in np.flatnonzero(np.isnan(last)):
            axes.text(float(place), axes.get_ylim()[0], "NaN", ha="center", va="bottom", fontsize=8)
        axes.axhline(NO_NOISE, color=INK, linewidth=1.2, linestyle=NO_NOISE_DASH, label="predicting no noise")
        legend_below(axes)

    def over_epochs(axes: Axes) -> None:
        lines = [
            numbers((record.validation_noise_mse_by_timestep.get(band) for record in records), positive=True)
            for band in bands
        ]
        log_axis(axes, "y", np.concatenate([*lines, [NO_NOISE]]))
        for place, (band, values, colour) in enumerate(zip(bands, lines, colours, strict=True)):
            # The ends of the ramp are named, the rest lies between.
            named = place in (0, len(bands) - 1)
            draw_line(axes, epochs, values, colour, f"timesteps {shown_name(band)}" if named else None, linewidth=1.3)
        axes.axhline(NO_NOISE, color=INK, linewidth=1.2, linestyle=NO_NOISE_DASH)
        epoch_axis(axes, epochs)
        legend_below(axes)

    return Plot(
        "Noise MSE by timestep",
        "Look at the first timesteps: they make up most of the mean, and they are where the observation counts; with "
        "much noise even a blind policy predicts it well. A band at 1.0 or above has learned nothing.",
        (
            draw_panel("timesteps-last", f"Validation, epoch {shown.epoch}", bars),
            draw_panel("timesteps", "Validation over epochs, in the same colours", over_epochs),
        ),
    )


def task_plot(records: Sequence[EpochRecord]) -> Plot:
    """Validation noise MSE and action MSE of each task, the worst first: the last epoch, and all."""
    shown = _last_with_values(records, "validation_action_mse_by_task")
    tasks = sorted(
        shown.validation_action_mse_by_task,
        key=lambda task: (-_with_nan_highest(shown.validation_action_mse_by_task[task]), task),
    )[:TASKS_SHOWN]
    colours = [*PALETTE, *[INK] * len(tasks)][: len(tasks)]
    epochs = [record.epoch for record in records]

    def bars(name: str, title: str, field: str) -> str:
        by_task = getattr(shown, field)
        values = numbers(by_task.get(task) for task in tasks)

        def paint(axes: Axes) -> None:
            axes.grid(visible=False, axis="y")
            axes.barh(range(len(tasks)), np.nan_to_num(values), color=colours, height=0.68)
            axes.set_yticks(range(len(tasks)), [shown_name(task) for task in tasks])
            axes.invert_yaxis()
            axes.set_xlim(0.0, 1.18 * max(np.nan_to_num(values).max(), 1e-6))
            axes.locator_params(axis="x", nbins=4)
            for place, value in enumerate(values):
                text = "NaN" if math.isnan(value) else f"{value:.3g}"
                end = (float(np.nan_to_num(value)), place)
                axes.annotate(text, end, (4, 0), "data", "offset points", va="center", fontsize=8)

        return draw_panel(name, title, paint, 0.75 + 0.27 * len(tasks))

    def over_epochs(name: str, title: str, field: str) -> str:
        lines = {
            task: numbers((getattr(record, field).get(task) for record in records), positive=True)
            for task in tasks[:TASK_LINES]
        }

        def paint(axes: Axes) -> None:
            for (task, values), colour, dashes in zip(lines.items(), PALETTE, DASHES, strict=False):
                draw_line(axes, epochs, values, colour, shown_name(task), linestyle=dashes, linewidth=1.3)
            log_axis(axes, "y", np.concatenate(list(lines.values())))
            epoch_axis(axes, epochs)
            legend_below(axes)

        return draw_panel(name, title, paint, 3.5)

    worst = f", the worst {TASK_LINES} tasks" if len(tasks) > TASK_LINES else ""
    panels = [
        bars("task-actions-last", f"Action MSE, epoch {shown.epoch}", "validation_action_mse_by_task"),
        bars("task-noise-last", f"Noise MSE, epoch {shown.epoch}", "validation_noise_mse_by_task"),
    ]
    if len(records) > 1:
        panels += [
            over_epochs("task-actions", f"Action MSE over epochs{worst}", "validation_action_mse_by_task"),
            over_epochs("task-noise", f"Noise MSE over epochs{worst}", "validation_noise_mse_by_task"),
        ]
    return Plot(
        "By task, on held-out episodes",
        "Look for a task that stays behind the others, and play that one first. The worst action MSE is on top; a task "
        "that is hard to imitate need not be the one that fails.",
        tuple(panels),
    )


def _last_with_values(records: Sequence[EpochRecord], field: str) -> EpochRecord:
    """The last record with a finite value in ``field``, or else the last that has the field filled."""
    filled = [record for record in records if getattr(record, field)]
    finite = [record for record in filled if np.isfinite(numbers(getattr(record, field).values())).any()]
    return (finite or filled)[-1]


def _with_nan_highest(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value


def _ramp(count: int) -> list[str]:
    """``count`` colours in an order that can be seen: plasma, without the ends that fade on dark or white."""
    return [to_hex(colour) for colour in colormaps["plasma"](np.linspace(0.3, 0.8, count))]
