"""The figure of Proposition 3.4: samples against horizon, on axes that straighten an exponential
and a polynomial in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from prefixrl_jax.report.plotting import DPI, HEIGHT, WIDTH, Theme
from prefixrl_jax.theory.hidden_string import BOTH, FIT_FROM, PLAIN, PREFIX, Fit

Row = Mapping[str, Any]
Fits = Mapping[str, Mapping[str, Fit] | None]
NAMES = {
    PREFIX: "PrefixRL-NPG, trace given",
    PLAIN: "plain NPG",
    BOTH: "PrefixRL-NPG and the $2^H$ samples that find the trace",
}


def growth(rows: Sequence[Row], fits: Fits, cap: int, theme: Theme) -> Figure:
    """Medians, ranges over seeds and fitted growth, a panel for each scale of the horizon.

    rows: those of `hidden_string.measure`; fits: by series, None where there is none; cap: samples
    at which a run was stopped. A range with such a run ends in an arrow there. Fitted lines are
    dashed where they are extrapolated.
    """
    figure = Figure(
        figsize=(WIDTH, HEIGHT + 0.4),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09, wspace=0.04),
    )
    panels: list[Axes] = list(figure.subplots(1, 2, sharey=True))
    horizons = [row["horizon"] for row in rows]
    for ax, scale in zip(panels, ("linear", "log"), strict=True):
        ax.set_xscale(scale)
        for name, color, marker in ((PLAIN, theme.second, "s"), (PREFIX, theme.first, "o")):
            measured = [row for row in rows if row[name]]
            label = NAMES[name]
            if both := fits[name]:
                label += _fitted(
                    ax, name, both, _medians(measured, name)[0][-1], horizons[-1], color
                )
            ax.plot(*_medians(measured, name), marker, color=color, markersize=4, label=label)
            _ranges(ax, measured, name, cap, color)
        ax.plot(
            *_medians(rows, BOTH),
            color=theme.muted,
            linewidth=1.2,
            linestyle=(0, (1, 1.5)),
            label=NAMES[BOTH],
        )
        _axis(ax, horizons, scale)
    panels[0].set_yscale("log")
    panels[0].set_ylim(
        None, 10 * max(row[n]["highest"] or cap for row in rows for n in (PREFIX, PLAIN) if row[n])
    )
    panels[0].set_ylabel("samples until solved: median, range")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=2,
        columnspacing=2.5,
    )
    return figure


def _medians(rows: Sequence[Row], name: str) -> tuple[list[int], list[int]]:
    known = [
        (row["horizon"], row[name]["median"]) for row in rows if row[name]["median"] is not None
    ]
    return [h for h, _ in known], [m for _, m in known]


def _ranges(ax: Axes, rows: Sequence[Row], name: str, cap: int, color: str) -> None:
    ends = [
        (row["horizon"], row[name]["lowest"] or cap, row[name]["highest"] or cap) for row in rows
    ]
    ax.vlines(*zip(*ends, strict=True), color=color, linewidth=1.0)
    stopped = [row["horizon"] for row in rows if row[name]["censored"]]
    if stopped:
        label = f"some runs stopped unsolved at {cap / 1e6:.1f} M samples"
        ax.plot(stopped, [cap] * len(stopped), "^", color=color, fillstyle="none", label=label)


def _fitted(
    ax: Axes, name: str, fits: Mapping[str, Fit], last: int, furthest: int, color: str
) -> str:
    """Draws the growth that the theory says, and returns it in words."""
    fit, x_of = (
        (fits["polynomial"], np.log2) if name == PREFIX else (fits["exponential"], np.asarray)
    )
    for low, high, style in ((FIT_FROM, last, "-"), (last, furthest, "--")):
        h = np.geomspace(low, high, 100)
        ax.plot(h, 2 ** (fit.intercept + fit.slope * x_of(h)), style, color=color, linewidth=1.2)
    return f", ~ $H^{{{fit.slope:.2f}}}$" if name == PREFIX else f", ~ $2^{{{fit.slope:.2f}\\,H}}$"


def _axis(ax: Axes, horizons: Sequence[int], scale: str) -> None:
    shown = (
        (2, 8, 16, 24, 32, 48, 64)
        if scale == "linear" and horizons[-1] > 24
        else (2, 4, 8, 16, 32, 64)
    )
    ax.xaxis.set_major_locator(FixedLocator([h for h in horizons if h in shown]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda h, _: f"{h:g}"))
    ax.set_xlabel(f"horizon H, {scale} scale")
    ax.set_title("A polynomial is straight" if scale == "log" else "An exponential is straight")
