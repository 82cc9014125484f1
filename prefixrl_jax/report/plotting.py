"""What every figure shares: columns of metrics, estimates, colours, axes, and PNG files.

A figure is drawn by a function that takes a `Theme` and returns a matplotlib figure, or None where
there is nothing to draw, so that a page can say so instead of showing empty axes. Values that are
None or not finite are left out, never drawn as zero.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

Row = Mapping[str, Any]  # a line of metrics.jsonl: values by column
Points = tuple[list[float], list[float]]  # x and y
SET_NAMES = {"train": "training problems", "heldout": "held-out problems"}
WIDTH = 7.6  # inches
HEIGHT = 3.5  # inches
DPI = 160  # dots an inch
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.3g} %")


class Estimate(NamedTuple):
    """A fraction `y` measured at `x`, and the bounds of its interval where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Theme:
    """The colours of a figure; `first`, `second` and the fainter `soft` tell series apart."""

    face: str
    ink: str
    muted: str
    grid: str
    first: str
    second: str
    soft: str

    def rc(self) -> dict[str, Any]:
        """Return matplotlib settings: thin axes on two sides, a light grid, legends unframed."""
        return {
            "figure.facecolor": self.face,
            "axes.facecolor": self.face,
            "savefig.facecolor": self.face,
            "text.color": self.ink,
            "axes.labelcolor": self.ink,
            "axes.titlecolor": self.ink,
            "axes.edgecolor": self.muted,
            "xtick.color": self.muted,
            "ytick.color": self.muted,
            "xtick.labelcolor": self.ink,
            "ytick.labelcolor": self.ink,
            "axes.grid": True,
            "grid.color": self.grid,
            "grid.linewidth": 0.7,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.8,
            "axes.titlelocation": "left",
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlepad": 8,
            "font.size": 9,
            "axes.labelsize": 9,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "legend.fontsize": 8.5,
            "legend.frameon": False,
            "legend.handlelength": 1.8,
            "lines.linewidth": 1.6,
            "lines.markersize": 5,
        }


# The series have colours of Okabe and Ito's set, which people with colour blindness tell apart.
LIGHT = Theme(
    face="#ffffff",
    ink="#22262b",
    muted="#8a9099",
    grid="#e8eaed",
    first="#0072b2",
    second="#d55e00",
    soft="#9ecae9",
)
DARK = Theme(
    face="#16191d",
    ink="#e3e6ea",
    muted="#7d848d",
    grid="#2b3036",
    first="#56b4e9",
    second="#e69f00",
    soft="#2f5f80",
)


def finite(value: Any) -> TypeGuard[float]:
    """Return whether `value` is a finite real number, which a boolean is not."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # an int may be larger than any float


def series(rows: Sequence[Row], x: str, y: str) -> Points:
    """Return the columns `x` and `y` of the rows in which both are finite."""
    pairs = [(row[x], row[y]) for row in rows if finite(row.get(x)) and finite(row.get(y))]
    return [a for a, _ in pairs], [b for _, b in pairs]


def png(draw: Callable[[Theme], Figure | None], theme: Theme = LIGHT) -> bytes | None:
    """Return the PNG file of `draw(theme)`, or None if that has nothing to draw.

    The same data give the same bytes.
    """
    with matplotlib.rc_context(cast(Any, theme.rc())):
        figure = draw(theme)
        if figure is None:
            return None
        buffer = io.BytesIO()
        # matplotlib would write its version into the file.
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
        return buffer.getvalue()


def row_of_axes(
    panels: int = 1, height: float = HEIGHT, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, `panels` beside each other.

    Args:
        panels: How many axes.
        height: Inches.
        options: Passed to `Figure.subplots`.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09, wspace=0.04)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout)
    return figure, list(figure.subplots(1, panels, squeeze=False, **options)[0])


def axis_of_k(ax: Axes, ks: Sequence[float]) -> None:
    """Scale and label the x axis of pass@k: logarithmic, a tick at each of `ks`."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(ks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:g}"))
    ax.set_xlabel("samples a problem, k")


def percent_axis(ax: Axes, top: float, label: str) -> None:
    """Scale the y axis from 0 to somewhat more than `top`, a fraction, and write it in percent."""
    ax.set_ylim(0, min(1.03, max(0.05, 1.15 * top)))
    ax.yaxis.set_major_formatter(PERCENT)
    ax.set_ylabel(label)


def step_axis(ax: Axes, steps: Sequence[float]) -> None:
    """Scale and label the x axis from the first to the last training step."""
    first, last = (min(steps), max(steps)) if steps else (1, 1)
    if first == last:  # an axis needs a width
        ax.set_xlim(first - 0.5, first + 0.5)
        ax.xaxis.set_major_locator(FixedLocator([first]))
    else:
        ax.set_xlim(first, last)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ax.set_xlabel("training step")


def line(ax: Axes, points: Points, color: str, **style: Any) -> None:
    """Draw a line, with markers if its points are few: a line through one of them is invisible."""
    marker = "o" if len(points[0]) <= 12 else ""
    ax.plot(*points, color=color, **{"marker": marker, "clip_on": False, **style})


def legend_above(ax: Axes, columns: int) -> None:
    """Put the legend above the axes, at the right end of the title's line."""
    ax.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=columns,
        borderaxespad=0.2,
        columnspacing=1.4,
    )
