"""Success against evaluations, a line a run with its 95 % intervals: what people would rather look at than read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from chunkcast.training.files import write_text
from chunkcast.training.health.drawing import DASHES, PALETTE, draw_panel, legend_below

SPREAD = 0.03
"""Runs stand this share of an octave beside each other, so that intervals do not hide one another."""


def plot_evaluations(rows: list[dict[str, Any]], title: str, file: Path) -> None:
    """Write an SVG of ``rows`` (see ``__main__``) into ``file``."""
    names = list(dict.fromkeys(row["run"] for row in rows))

    def paint(axes: Axes) -> None:
        for index, name in enumerate(names):
            own = sorted((row for row in rows if row["run"] == name), key=lambda row: row["evaluations"])
            evaluations = [row["evaluations"] * 2 ** (SPREAD * (index - len(names) / 2)) for row in own]
            success = [100 * row["success_rate"] for row in own]
            below = [100 * (row["success_rate"] - row["ci95"][0]) for row in own]
            above = [100 * (row["ci95"][1] - row["success_rate"]) for row in own]
            color = PALETTE[index % len(PALETTE)]
            axes.errorbar(
                evaluations,
                success,
                yerr=[below, above],
                color=color,
                linestyle=DASHES[index % len(DASHES)],
                marker="o",
                markersize=3.5,
                elinewidth=0.8,
                capsize=2,
                linewidth=1.2,
                label=name,
            )
        axes.set_xscale("log")
        ticks = sorted({row["evaluations"] for row in rows})
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(0, 102)
        axes.set_xlabel("evaluations of the network for a chunk")
        axes.set_ylabel("success, %")
        legend_below(axes)

    write_text(file, draw_panel("few-step", title, paint) + "\n")
