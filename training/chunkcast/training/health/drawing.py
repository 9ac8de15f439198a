"""How the report draws: one panel as one inline SVG, the same bytes for the same numbers, on white and on dark pages.

Nothing here knows what is drawn. matplotlib's object API only: no pyplot, no window, no global state kept. Text stays
text, so that the page's style sheet sets its face and colour; ``INK`` is what it has without one.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

INK = "#8a8a8a"
"""Axes, labels, grid: 3.4 to 1 on white and 5 to 1 on a dark page."""
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""Okabe and Ito's colours, told apart with every common colour blindness."""
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1)), (0, (6, 1, 1, 1, 1, 1)))
"""Beside colour, for those who see none."""
NO_NOISE = 1.0
"""Noise MSE of predicting no noise: the noise's variance."""
NO_NOISE_DASH = (0, (4, 2))
WIDTH = 5.0
"""Inches, 72 units each: two panels side by side on a desk, one above the other on a phone, text legible on both."""
POINTS = 600
"""Of a line, at most about this many: a panel has no more columns of pixels to show."""
LARGEST, SMALLEST = 1e38, 1e-38
"""Beyond what float32 holds nothing can be learned from a line, and a scale overflows."""
NAME_LENGTH = 26
"""Characters of a name beside a bar or in a legend."""
LEGEND_WIDTH, LEGEND_KEY = 78, 7
"""Characters that fit beneath a panel, and those that an entry's stroke and margin take."""

FloatArray = npt.NDArray[np.float64]

RC: dict[Any, Any] = {
    # The font that matplotlib brings along: the layout is the same on every machine.
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.labelsize": 9.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
    "legend.handlelength": 2.2,
    # Names come from files: a dollar sign in one is no formula.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "chunkcast-health",
}
# matplotlib would name itself, the date and a type by links; without any of them it writes no metadata at all.
NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Plot:
    """A plot of the report.

    Attributes:
        title: what is drawn.
        caption: one line on what to look for.
        panels: SVG elements, to be written into a page as they are.
    """

    title: str
    caption: str
    panels: tuple[str, ...]


def draw_panel(name: str, title: str, paint: Callable[[Axes], None], height: float = 3.1) -> str:
    """Paint one panel.

    Args:
        name: unique within a page: it begins every id within the SVG.
        title: above the axes, and what a screen reader says.
        paint: draws on the axes that it is given.
        height: inches; the width is ``WIDTH``.

    Returns:
        An ``<svg>`` element without a prolog.
    """
    with mpl.rc_context(), warnings.catch_warnings():
        # Whatever style the machine has set; rc_context puts it back.
        mpl.rcdefaults()
        mpl.rcParams.update(RC)
        # Text stays text: a glyph that this font lacks is drawn with one of the reader's.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title)
        paint(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=NO_METADATA)
    return _inline(text.getvalue(), name, title)


def _inline(svg: str, name: str, title: str) -> str:
    """``svg`` without prolog, comments and style sheet, its ids begun with ``name``."""
    element = svg[svg.index("<svg") :].rstrip()
    # A style sheet within a page is the whole page's; what it says is said on the element instead.
    element = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", element, flags=re.DOTALL)

    def own_ids(tag: re.Match[str]) -> str:
        # Only within tags: matplotlib escapes < and > in texts and attributes, so that no name is mistaken for one.
        return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", tag.group())

    element = re.sub(r"<!--.*?-->\s*", "", element, flags=re.DOTALL)
    element = re.sub(r"<[^>]*>", own_ids, element)
    attributes = f'role="img" aria-label="{html.escape(title)}" stroke-linejoin="round" stroke-linecap="butt"'
    return element.replace("<svg", f"<svg {attributes}", 1)


def shown_name(name: str) -> str:
    """A name from a file, fit for a label: one short line, nothing that does not print."""
    printable = "".join(character if character.isprintable() else "\ufffd" for character in name)
    short = printable if len(printable) <= NAME_LENGTH else printable[: NAME_LENGTH - 1] + "\u2026"
    # matplotlib leaves labels that begin with an underscore out of legends.
    return f" {short}" if short.startswith("_") else short or "(no name)"


def numbers(values: Iterable[float | None], positive: bool = False) -> FloatArray:
    """Values as they can be drawn: NaN, a gap, where there is none or none that an axis can hold.

    Args:
        values: None, NaN and infinity included.
        positive: for a logarithmic axis.
    """
    array = np.array([np.nan if value is None else value for value in values], np.float64)
    with np.errstate(invalid="ignore"):
        array[~(np.abs(array) <= LARGEST)] = np.nan
        if positive:
            array[~(array >= SMALLEST)] = np.nan
    return array


def thinned(values: FloatArray) -> npt.NDArray[np.intp]:
    """Indices of at most about ``POINTS`` of ``values`` that draw the same line: each stretch's lowest, highest and
    first gap, so that neither a spike nor a NaN is lost.
    """
    count = len(values)
    if count <= POINTS:
        return np.arange(count)
    kept = {0, count - 1}
    for stretch in np.array_split(np.arange(count), POINTS // 3):
        missing = np.isnan(values[stretch])
        if missing.any():
            kept.add(int(stretch[missing][0]))
        if not missing.all():
            kept |= {int(stretch[np.nanargmin(values[stretch])]), int(stretch[np.nanargmax(values[stretch])])}
    return np.array(sorted(kept))


def draw_line(
    axes: Axes, epochs: Sequence[int], values: FloatArray, colour: str, label: str | None = None, **style: Any
) -> None:
    """A line over epochs with gaps where ``values`` are NaN; a value between two gaps is a dot."""
    kept = thinned(values)
    y = values[kept]
    present = np.pad(~np.isnan(y), 1)
    alone = present[1:-1] & ~present[:-2] & ~present[2:]
    x = np.array(epochs, np.float64)[kept]
    axes.plot(x, y, color=colour, label=label, **{"linewidth": 1.6, **style})
    if alone.any():
        axes.plot(x[alone], y[alone], "o", color=colour, markersize=4.0)


def epoch_axis(axes: Axes, epochs: Sequence[int]) -> None:
    """Whole epochs from the first to the last."""
    margin = max(0.5, 0.015 * (epochs[-1] - epochs[0]))
    axes.set_xlim(epochs[0] - margin, epochs[-1] + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.set_xlabel("epoch")


def log_axis(axes: Axes, which: str, values: FloatArray) -> bool:
    """Make an axis logarithmic around ``values``; says so on the panel, and returns False, where there are none.

    Args:
        axes: what is drawn on.
        which: ``x`` or ``y``.
        values: positive or NaN, of any shape.
    """
    if not np.isfinite(values).any():
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", va="center")
        axes.set_yticks([])
        return False
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = max((high / low) ** 0.06, 1.25)
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low / margin, high * margin)})
    # Within two decades, powers of ten alone leave an axis with a single number.
    subdivisions = (1.0, 2.0, 5.0) if high / low < 100.0 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subdivisions, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    return True


def legend_below(axes: Axes) -> None:
    """A legend under the axes, where it covers nothing; none for a single unlabelled line."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    width = max(map(len, labels)) + LEGEND_KEY
    columns = min(max(LEGEND_WIDTH // width, 1), len(labels), 3)
    figure = axes.get_figure(root=True)
    if figure is not None:
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, columnspacing=1.2)
