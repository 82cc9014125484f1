"""The figures of a comparison: a method has the same colour, marker and dash in all of them.

Each function draws one figure and returns None when there is nothing to draw. Curves are means
over seeds against FLOPs; a band is their 95 % interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from prefixrl_jax.flops import si_unit
from prefixrl_jax.report.comparison_statistics import Curve
from prefixrl_jax.report.plotting import DPI, PERCENT, SET_NAMES, WIDTH, Theme, axis_of_k

# Okabe and Ito's colours, each with a marker and a dash of its own.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#0072b2", "marker": "o", "linestyle": "-"},
    {"color": "#d55e00", "marker": "s", "linestyle": "--"},
    {"color": "#009e73", "marker": "^", "linestyle": "-."},
    {"color": "#cc79a7", "marker": "D", "linestyle": ":"},
    {"color": "#e69f00", "marker": "v", "linestyle": "-"},
    {"color": "#56b4e9", "marker": "P", "linestyle": "--"},
    {"color": "#6b6b6b", "marker": "X", "linestyle": "-."},
    {"color": "#9a6324", "marker": "*", "linestyle": ":"},
)
LEGEND_WIDTH = 105  # characters beside each other below a figure


class Panel(NamedTuple):
    """How a column of metrics.jsonl is labelled."""

    title: str
    y_label: str


GROUPS = {
    "groups/all_zero": Panel("all wrong", "share of groups"),
    "groups/mixed": Panel("mixed", "share of groups"),
    "groups/all_one": Panel("all right", "share of groups"),
}
DYNAMICS = {
    "grad_norm": Panel("gradient norm", "global L2 norm"),
    "entropy": Panel("entropy", "nats a token"),
    "completions/mean_length": Panel("completion length", "tokens"),
}
UNLOCKED = {
    "problems/unlocked": Panel("problems ever solved", "plain, in training"),
    "reward/plain": Panel("reward, plain", "mean"),
    "reward/prefixed": Panel("reward, prefixed", "mean"),
}
Curves = Mapping[str, Curve]  # by method


def accuracy(
    names: Sequence[str], sets: Mapping[str, Curves], corpus: float, theme: Theme
) -> Figure | None:
    """Draw plain accuracy against total FLOPs, a panel for each set.

    Args:
        names: All methods, in the order of their styles.
        sets: Curves by set.
        corpus: FLOPs that finding problems and traces has cost, which are shaded.
        theme: The colours.
    """
    shown = {name: curves for name, curves in sets.items() if curves}
    if not shown:
        return None
    figure, axes = _grid_of_axes(len(shown))
    for ax, (name, curves) in zip(axes, shown.items(), strict=True):
        scale = _flops_axis(ax, curves)
        ax.axvspan(0, corpus / scale, color=theme.muted, alpha=0.15, linewidth=0)
        _draw_curves(ax, names, curves, scale)
        top = max(curve.top() for curve in curves.values())
        ax.set_ylim(0, min(1.02, max(0.02, 1.12 * top)))
        ax.yaxis.set_major_formatter(PERCENT)
        ax.set_title(SET_NAMES[name].capitalize())
        ax.set_xlabel(f"total {ax.get_xlabel()}, paper accounting (shaded: the corpus)")
    axes[0].set_ylabel("plain accuracy (no prefix)")
    _legend_below(figure, names, shown.values())
    return figure


def pass_at_k(
    names: Sequence[str], sets: Mapping[str, Mapping[str, Mapping[float, float]]], theme: Theme
) -> Figure | None:
    """Draw pass@k after training against k, a panel for each set.

    Args:
        names: All methods, in the order of their styles.
        sets: {set: {method: {k: rate}}}.
        theme: The colours.
    """
    shown = {}
    for set_name, tables in sets.items():
        if kept := {method: table for method, table in tables.items() if table}:
            shown[set_name] = kept
    if not shown:
        return None
    figure, axes = _grid_of_axes(len(shown))
    for ax, (set_name, tables) in zip(axes, shown.items(), strict=True):
        for method, table in tables.items():
            ks = sorted(table)
            rates = [table[k] for k in ks]
            ax.plot(ks, rates, markersize=4, clip_on=False, **style(names, method))
        axis_of_k(ax, sorted({k for table in tables.values() for k in table}))
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(PERCENT)
        ax.set_title(SET_NAMES[set_name].capitalize())
    axes[0].set_ylabel("pass@k (no prefix)")
    _legend_below(figure, names, shown.values())
    return figure


def matrix(rows: Mapping[str, Mapping[float, float]], theme: Theme) -> Figure | None:
    """Draw success by the fraction of a trace that is given (columns), for each model (rows)."""
    shown = {name: table for name, table in rows.items() if table}
    if not shown:
        return None
    fractions = sorted({fraction for table in shown.values() for fraction in table})
    values = np.array([[table.get(f, np.nan) for f in fractions] for table in shown.values()])
    layout = ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.07)
    figure = Figure(figsize=(WIDTH, 0.9 + 0.38 * len(shown)), dpi=DPI, layout=layout)
    ax = figure.subplots()
    ax.grid(False)
    ax.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if value > 0.55 else "black"  # on dark blue, on light blue
            text = f"{100 * value:.3g} %"
            ax.text(column, row, text, ha="center", va="center", fontsize=8.5, color=color)
    ax.set_xticks(range(len(fractions)), [f"{100 * fraction:.3g} %" for fraction in fractions])
    ax.set_yticks(range(len(shown)), list(shown))
    ax.set_xlabel("share of the trace given at evaluation (0 %: the plain problem)")
    ax.set_title("Success by prefix length")
    return figure


def panels(
    names: Sequence[str],
    labels: Mapping[str, Panel],
    columns: Mapping[str, Curves],
    theme: Theme,
    levels: Mapping[str, float] | None = None,
) -> Figure | None:
    """Draw columns of metrics.jsonl against FLOPs, a panel for each that any method has.

    Args:
        names: All methods, in the order of their styles.
        labels: How each column is labelled.
        columns: Curves by column.
        theme: The colours.
        levels: The mean of a column over the corpus's traces, drawn as a grey line.
    """
    shown = {key: columns[key] for key in labels if columns[key]}
    if not shown:
        return None
    figure, axes = _grid_of_axes(len(shown))
    for ax, (key, curves) in zip(axes, shown.items(), strict=True):
        _draw_curves(ax, names, curves, _flops_axis(ax, curves))
        if (level := (levels or {}).get(key)) is not None:
            ax.axhline(level, color=theme.muted, linewidth=1.2)
            place: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "ha": "right"}
            ax.text(0.98, level, "traces", va="bottom", fontsize=8, **place)
        ax.set_ylim(bottom=0)
        ax.set_title(labels[key].title.capitalize())
        ax.set_ylabel(labels[key].y_label)
    _legend_below(figure, names, shown.values())
    return figure


def style(names: Sequence[str], name: str) -> dict[str, Any]:
    """Return how a method is drawn; the ninth looks like the first."""
    return dict(STYLES[list(names).index(name) % len(STYLES)])


def _grid_of_axes(count: int) -> tuple[Figure, list[Axes]]:
    columns = 2 if count in (2, 4) else min(count, 3)
    rows = -(-count // columns)
    row_height = 3.3 if columns < 3 else 2.7
    layout = ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.07, wspace=0.04)
    figure = Figure(figsize=(WIDTH, row_height * rows), dpi=DPI, layout=layout)
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]


def _flops_axis(ax: Axes, curves: Curves) -> float:
    """Scale and label the x axis; return the scale to divide FLOPs by."""
    right = max((float(curve.x[-1]) for curve in curves.values()), default=1.0)
    scale, prefix = si_unit(right)
    ax.set_xlim(0, 1.02 * right / scale)
    ax.set_xlabel(f"{prefix}FLOP")
    return scale


def _draw_curves(ax: Axes, names: Sequence[str], curves: Curves, scale: float) -> None:
    for name, curve in curves.items():
        look = style(names, name)
        x = curve.x / scale
        ax.plot(x, curve.y, markevery=0.12, markersize=4, linewidth=1.5, **look)
        if curve.low is not None and curve.high is not None:
            color = look["color"]
            ax.fill_between(x, curve.low, curve.high, color=color, alpha=0.16, linewidth=0)


def _legend_below(
    figure: Figure, names: Sequence[str], panels: Iterable[Mapping[str, Any]]
) -> None:
    """Put one legend below the figure, of the methods that its panels draw."""
    drawn = {name for panel in panels for name in panel}
    shown = [name for name in names if name in drawn]
    lines = [
        figure.axes[0].plot([], [], label=name, markersize=4, **style(names, name))[0]
        for name in shown
    ]
    # A name takes eight characters more, for its line and the gap to the next.
    fit = LEGEND_WIDTH // (max(map(len, shown)) + 8)
    columns = min(max(fit, 1), len(shown), 5)
    figure.legend(
        handles=lines, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.0
    )
