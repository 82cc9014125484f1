"""The figure of Proposition 3.4: samples against the horizon.

It has two panels, one whose axes make an exponential straight and one that does so to a polynomial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from prefixrl_jax.report.plotting import HEIGHT, Theme, row_of_axes
from prefixrl_jax.theory.hidden_string import BOTH, FIT_FROM, PLAIN, PREFIX, Fit

Row = Mapping[str, Any]  # as `hidden_string.measure` yields them
Fits = Mapping[str, Mapping[str, Fit] | None]  # by series, None where there are too few points
NAMES = {
    PREFIX: "PrefixRL-NPG, trace given",
    PLAIN: "plain NPG",
    BOTH: "PrefixRL-NPG and the $2^H$ samples that find the trace",
}


def growth(rows: Sequence[Row], fits: Fits, cap: int, theme: Theme) -> Figure:
    """Draw medians, ranges over seeds, and the growth that is fitted to the medians.

    A fitted line is dashed where it is extrapolated. A range that has a run stopped at `cap`
    samples ends there, in an arrow.
    """
    figure, panels = row_of_axes(2, HEIGHT + 0.4, sharey=True)
    horizons = [row["horizon"] for row in rows]
    for ax, scale in zip(panels, ("linear", "log"), strict=True):
        ax.set_xscale(scale)
        for name, color, marker in ((PLAIN, theme.second, "s"), (PREFIX, theme.first, "o")):
            measured = [row for row in rows if row[name]]
            label = NAMES[name]
            if series_fits := fits[name]:
                last = _medians(measured, name)[0][-1]
                label += _draw_fit(ax, name, series_fits, last, horizons[-1], color)
            ax.plot(*_medians(measured, name), marker, color=color, markersize=4, label=label)
            _draw_ranges(ax, measured, name, cap, color)
        dots = (0, (1, 1.5))
        ax.plot(
            *_medians(rows, BOTH),
            color=theme.muted,
            linewidth=1.2,
            linestyle=dots,
            label=NAMES[BOTH],
        )
        _horizon_axis(ax, horizons, scale)
    panels[0].set_yscale("log")
    tops = [row[name]["highest"] or cap for row in rows for name in (PREFIX, PLAIN) if row[name]]
    panels[0].set_ylim(None, 10 * max(tops))
    panels[0].set_ylabel("samples until solved: median, range")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, columnspacing=2.5)
    return figure


def _medians(rows: Sequence[Row], name: str) -> tuple[list[int], list[int]]:
    """The horizons that have a median, and the medians."""
    solved = [row for row in rows if row[name]["median"] is not None]
    return [row["horizon"] for row in solved], [row[name]["median"] for row in solved]


def _draw_ranges(ax: Axes, rows: Sequence[Row], name: str, cap: int, color: str) -> None:
    ends = [
        (row["horizon"], row[name]["lowest"] or cap, row[name]["highest"] or cap) for row in rows
    ]
    ax.vlines(*zip(*ends, strict=True), color=color, linewidth=1.0)
    stopped = [row["horizon"] for row in rows if row[name]["censored"]]
    if stopped:
        label = f"some runs stopped unsolved at {cap / 1e6:.1f} M samples"
        ax.plot(stopped, [cap] * len(stopped), "^", color=color, fillstyle="none", label=label)


def _draw_fit(
    ax: Axes, name: str, fits: Mapping[str, Fit], last: int, furthest: int, color: str
) -> str:
    """Draw the growth that the theory says a series has, and return it as a formula.

    Args:
        ax: The axes.
        name: PREFIX, whose growth is polynomial, or PLAIN, whose growth is exponential.
        fits: Both fits of the series.
        last: The last horizon with a median.
        furthest: The horizon to which the line is extrapolated.
        color: Of the line.
    """
    polynomial = name == PREFIX
    fit = fits["polynomial" if polynomial else "exponential"]
    for start, end, dashes in ((FIT_FROM, last, "-"), (last, furthest, "--")):
        h = np.geomspace(start, end, 100)
        x = np.log2(h) if polynomial else h
        samples = 2 ** (fit.intercept + fit.slope * x)
        ax.plot(h, samples, dashes, color=color, linewidth=1.2)
    if polynomial:
        return f", ~ $H^{{{fit.slope:.2f}}}$"
    return f", ~ $2^{{{fit.slope:.2f}\\,H}}$"


def _horizon_axis(ax: Axes, horizons: Sequence[int], scale: str) -> None:
    ticks: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    if scale == "linear" and horizons[-1] > 24:
        ticks = (2, 8, 16, 24, 32, 48, 64)  # 4 would stand on 2
    ax.xaxis.set_major_locator(FixedLocator([h for h in horizons if h in ticks]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda h, _: f"{h:g}"))
    ax.set_xlabel(f"horizon H, {scale} scale")
    ax.set_title("A polynomial is straight" if scale == "log" else "An exponential is straight")
