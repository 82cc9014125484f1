"""Figures of a comparison: one line for each method, the same colour, marker and dash in every
figure.

Curves are given by method as `comparison.Curve`s over FLOPs; a band is the 95 % interval over
seeds. Each function returns None when there is nothing to draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from prefixrl_jax.report.run_figures import DPI, PERCENT, SET_NAMES, WIDTH, Theme, si_unit

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
GROUPS = {
    "groups/all_zero": ("all wrong", "share of groups"),
    "groups/mixed": ("mixed", "share of groups"),
    "groups/all_one": ("all right", "share of groups"),
}
DYNAMICS = {
    "grad_norm": ("gradient norm", "global L2 norm"),
    "entropy": ("entropy", "nats a token"),
    "completions/mean_length": ("completion length", "tokens"),
}
UNLOCKED = {
    "problems/unlocked": ("problems ever solved", "plain, in training"),
    "reward/plain": ("reward, plain", "mean"),
    "reward/prefixed": ("reward, prefixed", "mean"),
}
Curves = Mapping[str, Any]  # comparison.Curve by method


def style(names: Sequence[str], name: str) -> dict[str, Any]:
    """How a method is drawn; the ninth looks like the first."""
    return dict(STYLES[list(names).index(name) % len(STYLES)])


def _figure(count: int, height: float = 3.3) -> tuple[Figure, list[Axes]]:
    columns = 2 if count in (2, 4) else min(count, 3)
    rows = -(-count // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.07, wspace=0.04)
    figure = Figure(
        figsize=(WIDTH, height * rows if columns < 3 else 2.7 * rows), dpi=DPI, layout=layout
    )
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]


def _legend(figure: Figure, names: Sequence[str], drawn: set[str]) -> None:
    """One for the whole figure, below it."""
    kept = [n for n in names if n in drawn]
    lines = [figure.axes[0].plot([], [], label=n, markersize=4, **style(names, n))[0] for n in kept]
    columns = LEGEND_WIDTH // (max(map(len, kept)) + 8)  # with the line and the gap beside a name
    columns = min(max(columns, 1), len(kept), 5)
    figure.legend(
        handles=lines, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.0
    )


def _draw(ax: Axes, names: Sequence[str], curves: Curves, scale: float) -> None:
    for name, curve in curves.items():
        look = style(names, name)
        ax.plot(curve.x / scale, curve.y, markevery=0.12, markersize=4, linewidth=1.5, **look)
        if curve.low is not None:
            ax.fill_between(
                curve.x / scale, curve.low, curve.high, color=look["color"], alpha=0.16, linewidth=0
            )


def _flops_axis(ax: Axes, curves: Curves) -> float:
    """Labels the axis; returns the scale to divide FLOPs by."""
    right = max((float(c.x[-1]) for c in curves.values()), default=1.0)
    scale, prefix = si_unit(right)
    ax.set_xlim(0, 1.02 * right / scale)
    ax.set_xlabel(f"{prefix}FLOP")
    return scale


def accuracy(
    names: Sequence[str], sets: Mapping[str, Curves], corpus: float, theme: Theme
) -> Figure | None:
    """Plain accuracy of each set against total FLOPs; what finding problems and traces has cost is
    shaded.
    """
    shown = {s: curves for s, curves in sets.items() if curves}
    if not shown:
        return None
    figure, axes = _figure(len(shown))
    for ax, (name, curves) in zip(axes, shown.items(), strict=True):
        scale = _flops_axis(ax, curves)
        ax.axvspan(0, corpus / scale, color=theme.muted, alpha=0.15, linewidth=0)
        _draw(ax, names, curves, scale)
        top = max(float((c.y if c.high is None else c.high).max()) for c in curves.values())
        ax.set_ylim(0, min(1.02, max(0.02, 1.12 * top)))
        ax.yaxis.set_major_formatter(PERCENT)
        ax.set_title(SET_NAMES[name].capitalize())
        ax.set_xlabel(f"total {ax.get_xlabel()}, paper accounting (shaded: the corpus)")
    axes[0].set_ylabel("plain accuracy (no prefix)")
    _legend(figure, names, {n for curves in shown.values() for n in curves})
    return figure


def pass_at_k(
    names: Sequence[str], sets: Mapping[str, Mapping[str, Mapping[float, float]]], theme: Theme
) -> Figure | None:
    """pass@k after training against k, a panel for each set."""
    shown = {
        s: {n: t for n, t in tables.items() if t}
        for s, tables in sets.items()
        if any(tables.values())
    }
    if not shown:
        return None
    figure, axes = _figure(len(shown))
    for ax, (name, tables) in zip(axes, shown.items(), strict=True):
        ks = sorted({k for table in tables.values() for k in table})
        for method, table in tables.items():
            ax.plot(
                sorted(table),
                [table[k] for k in sorted(table)],
                markersize=4,
                clip_on=False,
                **style(names, method),
            )
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator(ks))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:g}"))
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(PERCENT)
        ax.set_xlabel("samples a problem, k")
        ax.set_title(SET_NAMES[name].capitalize())
    axes[0].set_ylabel("pass@k (no prefix)")
    _legend(figure, names, {n for tables in shown.values() for n in tables})
    return figure


def matrix(rows: Mapping[str, Mapping[float, float]], theme: Theme) -> Figure | None:
    """Success by the share of a trace given at evaluation (columns), for each model (rows)."""
    kept = {name: table for name, table in rows.items() if table}
    columns = sorted({f for table in kept.values() for f in table})
    if not kept or not columns:
        return None
    values = np.array([[table.get(f, np.nan) for f in columns] for table in kept.values()])
    layout = ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.07)
    figure = Figure(figsize=(WIDTH, 0.9 + 0.38 * len(kept)), dpi=DPI, layout=layout)
    ax = figure.subplots()
    ax.grid(False)
    ax.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            ax.text(
                j,
                i,
                f"{100 * value:.3g} %",
                ha="center",
                va="center",
                fontsize=8.5,
                color="white" if value > 0.55 else "black",
            )
    ax.set_xticks(range(len(columns)), [f"{100 * f:.3g} %" for f in columns])
    ax.set_yticks(range(len(kept)), list(kept))
    ax.set_xlabel("share of the trace given at evaluation (0 %: the plain problem)")
    ax.set_title("Success by prefix length")
    return figure


def panels(
    names: Sequence[str],
    keys: Mapping[str, tuple[str, str]],
    metric: Callable[[str], Curves],
    theme: Theme,
    levels: Mapping[str, float] | None = None,
) -> Figure | None:
    """One panel for each column of metrics.jsonl that any method has; keys: (title, label of the
    axis) by column; levels: what the column is in the corpus's traces, a grey line.
    """
    shown = {key: curves for key in keys if (curves := metric(key))}
    if not shown:
        return None
    figure, axes = _figure(len(shown))
    for ax, (key, curves) in zip(axes, shown.items(), strict=True):
        _draw(ax, names, curves, _flops_axis(ax, curves))
        if (level := (levels or {}).get(key)) is not None:
            ax.axhline(level, color=theme.muted, linewidth=1.2)
            ax.text(
                0.98,
                level,
                "traces",
                transform=ax.get_yaxis_transform(),
                ha="right",
                va="bottom",
                fontsize=8,
            )
        ax.set_ylim(bottom=0)
        ax.set_title(keys[key][0].capitalize())
        ax.set_ylabel(keys[key][1])
    _legend(figure, names, {n for curves in shown.values() for n in curves})
    return figure
