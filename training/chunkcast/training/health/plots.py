"""The plots of one run: losses, sampled actions, optimisation, and breakdowns. Imported late: matplotlib is slow.

What a history does not hold is not drawn; NaN and infinity are gaps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from chunkcast.training.health.breakdown_plots import task_plot, timestep_plot
from chunkcast.training.health.drawing import (
    BLUE,
    DASHES,
    GREEN,
    INK,
    NO_NOISE,
    NO_NOISE_DASH,
    VERMILION,
    Plot,
    draw_line,
    draw_panel,
    epoch_axis,
    legend_below,
    log_axis,
    numbers,
)
from chunkcast.training.health.findings import Finding, Severity
from chunkcast.training.health.judge import OBSERVATION_UNUSED
from chunkcast.training.health.loss_curve import LossCurve
from chunkcast.training.health.seed_table import BANDS
from chunkcast.training.history import EpochRecord

Losses = Sequence[float | None]
"""By epoch; None where it was not measured."""
BAND_SHADES = (0.0, 0.04, 0.09, 0.15, 0.22)
"""Opacity of each of the seed's bands: the darker, the worse."""
LEAST_BAND_HEIGHT = 0.06
"""Share of the axis that a band must fill to be named."""
SEVERITY_MARKS = {"error": ("X", "#c8372d"), "warning": ("^", "#b87800")}


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
    train_noise_mse, validation_noise_mse, train, validation = (
        [getattr(epoch, field) for epoch in curve]
        for field in ("train_noise_mse", "validation_noise_mse", "train_loss", "validation_loss")
    )
    has_noise_mse = any(epoch.noise_mse is not None for epoch in curve)
    # NaN differs from itself, but not as text.
    objective_differs = repr((train, validation)) != repr((train_noise_mse, validation_noise_mse))
    epochs = [epoch.epoch for epoch in curve]

    def noise_panel(axes: Axes) -> None:
        _two_losses(axes, epochs, train_noise_mse, validation_noise_mse)
        # The line at 1.0 and the band above it are always in sight: they are what the losses are compared with.
        log_axis(axes, "y", numbers([*train_noise_mse, *validation_noise_mse, NO_NOISE, BANDS[-1].low], positive=True))
        axes.axhline(NO_NOISE, color=INK, linewidth=1.2, linestyle=NO_NOISE_DASH, label="predicting no noise")
        _shade_bands(axes)
        _mark_findings(axes, epochs, findings)
        legend_below(axes)

    def objective_panel(axes: Axes) -> None:
        _two_losses(axes, epochs, train, validation)
        log_axis(axes, "y", numbers([*train, *validation], positive=True))
        _mark_findings(axes, epochs, findings)
        legend_below(axes)

    panels = []
    caption = "Look for two lines that fall together: validation rising while training falls is overfitting."
    if has_noise_mse:
        panels.append(draw_panel("noise-mse", "Noise-prediction MSE, with the seed's bands", noise_panel, 3.4))
        caption += " The bands are the seed's words for a loss, not success rates."
    if objective_differs:
        panels.append(draw_panel("objective", "Objective: what was minimised", objective_panel, 3.4))
    if any(finding.severity in SEVERITY_MARKS and finding.epoch is not None for finding in findings):
        caption += " Marks at the top are errors and warnings, by their numbers in the table."
    return Plot("Losses", caption, tuple(panels))


def _two_losses(axes: Axes, epochs: Sequence[int], train: Losses, validation: Losses) -> None:
    styles: tuple[tuple[str, Losses, dict[str, Any]], ...] = (
        ("training", train, {"colour": VERMILION, "linestyle": DASHES[1], "linewidth": 1.3}),
        ("validation", validation, {"colour": BLUE, "linewidth": 1.9}),
    )
    for label, values, style in styles:
        # An epoch that was not validated is no gap, one whose loss is NaN is.
        measured = {epoch: value for epoch, value in zip(epochs, values, strict=True) if value is not None}
        if measured:
            draw_line(axes, list(measured), numbers(measured.values(), positive=True), label=label, **style)
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
    if marks:
        axes.set_title(axes.get_title("left"), pad=19.0)
    at_top = axes.get_xaxis_transform()
    for epoch, together, severity in marks:
        symbol, colour = SEVERITY_MARKS[severity]
        axes.axvline(epoch, color=colour, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        axes.plot([epoch], [1.0], symbol, color=colour, markersize=6, transform=at_top, clip_on=False, zorder=5)
        text = ",".join(map(str, sorted(together)))
        axes.annotate(text, (epoch, 1.0), (0, 4.5), at_top, "offset points", ha="center", va="bottom", fontsize=8)


def action_plot(curve: LossCurve) -> Plot:
    """Error of sampled actions against what each task's mean action scores."""
    epochs = [epoch.epoch for epoch in curve]
    error = numbers((epoch.action_mse for epoch in curve), positive=True)
    variance = numbers((epoch.action_variance for epoch in curve), positive=True)

    explained = 1.0 - error / variance

    def errors(axes: Axes) -> None:
        draw_line(axes, epochs, error, BLUE, "sampled actions", linewidth=1.9)
        draw_line(axes, epochs, variance, INK, "each task's mean action", linestyle=DASHES[1], linewidth=1.2)
        log_axis(axes, "y", np.concatenate([error, variance]))
        epoch_axis(axes, epochs)
        legend_below(axes)

    def shares(axes: Axes) -> None:
        draw_line(axes, epochs, np.maximum(explained, 0.0), BLUE, "sampled actions", linewidth=1.9)
        axes.axhline(
            OBSERVATION_UNUSED, color=INK, linewidth=1.2, linestyle=DASHES[1], label="an error if the run ends below"
        )
        axes.set_ylim(0.0, 1.0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        epoch_axis(axes, epochs)
        legend_below(axes)

    panels = [draw_panel("actions", "Action MSE on held-out episodes, normalised units", errors)]
    if np.isfinite(explained).any():
        panels.append(draw_panel("explained", "Share of the variance within tasks that is explained", shares))
    return Plot(
        "Sampled actions",
        "Look for a line that ends far below the dashed one: near it, the policy does no better than each task's mean "
        "action, whatever its noise MSE says.",
        tuple(panels),
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
