"""The plots of one run: losses, timesteps, tasks, sampled actions, optimisation. Imported late: matplotlib is slow.

What a history does not hold is not drawn; NaN and infinity are gaps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from chunkcast.training.health.drawing import (
    BLUE,
    DASHES,
    GREEN,
    INK,
    PALETTE,
    VERMILION,
    FloatArray,
    Plot,
    draw_line,
    draw_panel,
    epoch_axis,
    legend_below,
    log_axis,
    numbers,
    shown_name,
)
from chunkcast.training.health.findings import Finding, Severity
from chunkcast.training.health.loss_curve import LossCurve
from chunkcast.training.health.seed_table import BANDS
from chunkcast.training.history import EpochRecord

NO_NOISE = 1.0
"""Noise MSE of predicting no noise: the noise's variance."""
BAND_SHADES = (0.0, 0.04, 0.09, 0.15, 0.22)
"""Opacity of each of the seed's bands: the darker, the worse."""
LEAST_BAND_HEIGHT = 0.06
"""Share of the axis that a band must fill to be named."""
SEVERITY_MARKS = {"error": ("X", "#c8372d"), "warning": ("^", "#b87800")}
TASKS_SHOWN = 50
TASK_LINES = len(PALETTE)
"""Tasks with a line of their own: the worst. More cannot be told apart."""


def run_plots(curve: LossCurve, records: Sequence[EpochRecord] | None, findings: Sequence[Finding]) -> list[Plot]:
    """All plots that a history has the numbers for.

    Args:
        curve: at least one epoch.
        records: the same epochs as chunkcast-train wrote them; None for another trainer's history.
        findings: numbered from 1 in this order, the numbers that mark them on the loss curves.
    """
    plots = [loss_plot(curve, findings)]
    if records and any(record.validation_noise_mse_by_timestep for record in records):
        plots.append(timestep_plot(records))
    if records and any(record.validation_action_mse_by_task for record in records):
        plots.append(task_plot(records))
    if any(epoch.action_mse is not None for epoch in curve):
        plots.append(action_plot(curve))
    if any(epoch.gradient_norm is not None for epoch in curve):
        plots.append(optimisation_plot(curve, records))
    return plots


def loss_plot(curve: LossCurve, findings: Sequence[Finding]) -> Plot:
    """Noise MSE among the seed's bands, and the objective where it is another number."""
    train_noise_mse = numbers((epoch.train_noise_mse for epoch in curve), positive=True)
    validation_noise_mse = numbers((epoch.validation_noise_mse for epoch in curve), positive=True)
    train = numbers((epoch.train_loss for epoch in curve), positive=True)
    validation = numbers((epoch.validation_loss for epoch in curve), positive=True)
    has_noise_mse = any(epoch.noise_mse is not None for epoch in curve)
    objective_differs = not (
        np.array_equal(train, train_noise_mse, equal_nan=True)
        and np.array_equal(validation, validation_noise_mse, equal_nan=True)
    )
    epochs = [epoch.epoch for epoch in curve]

    def noise_panel(axes: Axes) -> None:
        _two_losses(axes, epochs, train_noise_mse, validation_noise_mse)
        # The line at 1.0 and the band above it are always in sight: they are what the losses are compared with.
        log_axis(axes, "y", np.concatenate([train_noise_mse, validation_noise_mse, [NO_NOISE, BANDS[-1].low]]))
        axes.axhline(NO_NOISE, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), label="predicting no noise")
        _shade_bands(axes)
        _mark_findings(axes, epochs, findings)
        legend_below(axes)

    def objective_panel(axes: Axes) -> None:
        _two_losses(axes, epochs, train, validation)
        log_axis(axes, "y", np.concatenate([train, validation]))
        _mark_findings(axes, epochs, findings)
        legend_below(axes)

    panels, caption = (
        [],
        "Look for two lines that fall together: validation rising while training falls is overfitting.",
    )
    if has_noise_mse:
        panels.append(draw_panel("noise-mse", "Noise-prediction MSE, with the seed's bands", noise_panel, 3.4))
        caption += " The bands are the seed's words for a loss, not success rates."
    if objective_differs:
        panels.append(draw_panel("objective", "Objective: what was minimised", objective_panel, 3.4))
    if any(finding.severity in SEVERITY_MARKS and finding.epoch is not None for finding in findings):
        caption += " Marks at the top are errors and warnings, by their numbers in the table."
    return Plot("Losses", caption, tuple(panels))


def _two_losses(axes: Axes, epochs: Sequence[int], train: FloatArray, validation: FloatArray) -> None:
    draw_line(axes, epochs, train, VERMILION, "training", linestyle=DASHES[1], linewidth=1.3)
    if np.isfinite(validation).any():
        draw_line(axes, epochs, validation, BLUE, "validation", linewidth=1.9)
    epoch_axis(axes, epochs)


def _shade_bands(axes: Axes) -> None:
    bottom, top = axes.get_ylim()
    for band, shade in zip(BANDS, BAND_SHADES, strict=True):
        low, high = max(band.low, bottom), min(band.high, top)
        if low >= high:
            continue
        axes.axhspan(low, high, color=INK, alpha=shade, linewidth=0)
        if math.log(high / low) > LEAST_BAND_HEIGHT * math.log(top / bottom):
            # Beside the axes, where no line runs.
            name = band.name.replace(" the ", " the\n")
            middle = math.sqrt(low) * math.sqrt(high)
            axes.text(1.015, middle, name, transform=axes.get_yaxis_transform(), va="center", fontsize=8)


def _mark_findings(axes: Axes, epochs: Sequence[int], findings: Sequence[Finding]) -> None:
    """At the top of the axes, the findings' numbers in the report's table; neighbours share a mark, the gravest's."""
    near = 0.04 * (epochs[-1] - epochs[0])
    marks: list[tuple[int, list[int], Severity]] = []
    known = [
        (finding.epoch, number, finding.severity)
        for number, finding in enumerate(findings, start=1)
        if finding.severity in SEVERITY_MARKS and finding.epoch is not None
    ]
    for epoch, number, severity in sorted(known):
        if marks and epoch - marks[-1][0] <= near:
            first, together, gravest = marks[-1]
            marks[-1] = (first, [*together, number], "error" if "error" in (gravest, severity) else "warning")
        else:
            marks.append((epoch, [number], severity))
    at_top = axes.get_xaxis_transform()
    for epoch, together, severity in marks:
        symbol, colour = SEVERITY_MARKS[severity]
        axes.axvline(epoch, color=colour, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axes.plot([epoch], [1.0], symbol, color=colour, markersize=6, transform=at_top, clip_on=False, zorder=5)
        text = ",".join(map(str, sorted(together)))
        axes.annotate(text, (epoch, 1.0), (0, 4.5), at_top, "offset points", ha="center", va="bottom", fontsize=8)


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
        axes.axhline(NO_NOISE, color=INK, linewidth=1.2, linestyle=(0, (4, 2)), label="predicting no noise")
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
        axes.axhline(NO_NOISE, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
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
                text = " NaN" if math.isnan(value) else f" {value:.3g}"
                axes.text(float(np.nan_to_num(value)), place, text, va="center", fontsize=8)

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


def action_plot(curve: LossCurve) -> Plot:
    """Error of sampled actions against what each task's mean action scores."""
    epochs = [epoch.epoch for epoch in curve]
    error = numbers((epoch.action_mse for epoch in curve), positive=True)
    variance = numbers((epoch.action_variance for epoch in curve), positive=True)

    def paint(axes: Axes) -> None:
        draw_line(axes, epochs, error, BLUE, "sampled actions", linewidth=1.9)
        draw_line(axes, epochs, variance, INK, "each task's mean action", linestyle=DASHES[1], linewidth=1.2)
        log_axis(axes, "y", np.concatenate([error, variance]))
        epoch_axis(axes, epochs)
        legend_below(axes)

    return Plot(
        "Sampled actions",
        "Look for a line that ends far below the dashed one: near it, the policy does no better than each task's mean "
        "action, whatever its noise MSE says.",
        (draw_panel("actions", "Action MSE on held-out episodes, normalised units", paint),),
    )


def optimisation_plot(curve: LossCurve, records: Sequence[EpochRecord] | None) -> Plot:
    """Gradient norm, and the learning rate where it is known."""
    epochs = [epoch.epoch for epoch in curve]
    norm = numbers((epoch.gradient_norm for epoch in curve), positive=True)

    def norms(axes: Axes) -> None:
        draw_line(axes, epochs, norm, GREEN)
        log_axis(axes, "y", norm)
        epoch_axis(axes, epochs)

    def rates(axes: Axes) -> None:
        draw_line(axes, epochs, rate, GREEN)
        if np.isfinite(rate).any():
            axes.set_ylim(0.0, 1.08 * max(float(np.nanmax(rate)), 1e-12))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        epoch_axis(axes, epochs)

    panels = [draw_panel("gradient", "Gradient norm before clipping, mean of the epoch", norms)]
    if records:
        rate = numbers(record.learning_rate for record in records)
        panels.append(draw_panel("rate", "Learning rate after the epoch", rates))
    return Plot(
        "Optimisation",
        "Look for a norm that jumps or grows without end, and for a rate that has come down by the last epoch: a run "
        "that was cut short ends on weights that still move.",
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
    from matplotlib import colormaps

    return [to_hex(colour) for colour in colormaps["plasma"](np.linspace(0.3, 0.8, count))]
