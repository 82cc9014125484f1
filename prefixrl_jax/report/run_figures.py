"""Figures of a run: plain numbers in, matplotlib figures out.

No files are read here, and nothing of JAX is imported.

Each function draws one figure from just the data it names and returns None when there is nothing to
draw, so that the report can say so instead of showing empty axes. None and non-finite values are
left out of lines, never drawn as zero. Colours are from the Okabe-Ito set; wherever two lines share
axes they differ in marker, dash or width as well as in colour.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

Row = Mapping[str, Any]
SET_NAMES = {"train": "training problems", "heldout": "held-out problems"}
WIDTH, HEIGHT, DPI = 7.6, 3.5, 160  # inches, inches, dots an inch
PERCENT = FuncFormatter(lambda value, _: f"{100 * value:.3g} %")


class Estimate(NamedTuple):
    """A fraction `y` measured at `x`, with its interval where one is known."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Theme:
    """The colours of a figure; `first` and `second` tell series apart, `soft` is a third, fainter
    one.
    """

    face: str
    ink: str
    muted: str
    grid: str
    first: str
    second: str
    soft: str

    def rc(self) -> dict[str, Any]:
        """matplotlib settings: thin axes on two sides, light grid, legends without a frame."""
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


LIGHT = Theme("#ffffff", "#22262b", "#8a9099", "#e8eaed", "#0072b2", "#d55e00", "#9ecae9")
DARK = Theme("#16191d", "#e3e6ea", "#7d848d", "#2b3036", "#56b4e9", "#e69f00", "#2f5f80")


def finite(value: Any) -> TypeGuard[float]:
    """True for a real, finite number; False for None, NaN, infinities, booleans and anything that
    is not a number.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def series(rows: Sequence[Row], x: str, y: str) -> tuple[list[float], list[float]]:
    """The columns `x` and `y` of the rows in which both are finite."""
    pairs = [(row[x], row[y]) for row in rows if finite(row.get(x)) and finite(row.get(y))]
    return [a for a, _ in pairs], [b for _, b in pairs]


def si_unit(largest: float) -> tuple[float, str]:
    """(scale, prefix) that writes `largest` with one to three digits before the point: 2e12 ->
    (1e12, "T").
    """
    prefixes = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
    # 6e-4 short of the next power, a number rounded to three digits would already read 1000.
    power = int((math.log10(largest) + 3e-4) // 3) if largest >= 1 else 0
    power = min(power, len(prefixes) - 1)
    return 10.0 ** (3 * power), prefixes[power]


def png(draw: Callable[[Theme], Figure | None], theme: Theme = LIGHT) -> bytes | None:
    """The PNG bytes of `draw(theme)`, or None if it had nothing to draw.

    The same data give the same bytes.
    """
    with matplotlib.rc_context(cast(Any, theme.rc())):
        figure = draw(theme)
        if figure is None:
            return None
        buffer = io.BytesIO()
        FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
        return buffer.getvalue()


def _figure(panels: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    layout = ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09, wspace=0.04)
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, layout=layout)
    return figure, list(figure.subplots(1, panels, squeeze=False, **options)[0])


def _legend_above(ax: Axes, columns: int) -> None:
    ax.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=columns,
        borderaxespad=0.2,
        columnspacing=1.4,
    )


def _percent_axis(ax: Axes, top: float, label: str) -> None:
    ax.set_ylim(0, min(1.03, max(0.05, 1.15 * top)))
    ax.yaxis.set_major_formatter(PERCENT)
    ax.set_ylabel(label)


def _step_axis(ax: Axes, steps: Sequence[float]) -> None:
    low, high = (min(steps), max(steps)) if steps else (1, 1)
    alone = low == high
    ax.set_xlim(*((low - 0.5, high + 0.5) if alone else (low, high)))
    ax.xaxis.set_major_locator(FixedLocator([low]) if alone else MaxNLocator(nbins=6, integer=True))
    ax.set_xlabel("training step")


def _line(ax: Axes, points: tuple[list[float], list[float]], color: str, **style: Any) -> None:
    # A line through one point is invisible, and few points should be seen to be few.
    ax.plot(
        *points,
        color=color,
        **{"marker": "o" if len(points[0]) <= 12 else "", "clip_on": False, **style},
    )


def _steps_panel(
    ax: Axes, rows: Sequence[Row], key: str, title: str, label: str, color: str
) -> None:
    points = series(rows, "step", key)
    ax.set_title(title)
    ax.set_ylabel(label)
    _step_axis(ax, points[0])
    if points[0]:
        _line(ax, points, color)
        ax.set_ylim(0, 1.12 * max(points[1]) or 1.0)
    else:
        ax.set_yticks([])
        ax.text(
            0.5, 0.5, "not recorded", transform=ax.transAxes, ha="center", va="center", alpha=0.7
        )


def accuracy(
    batch: tuple[list[float], list[float]],
    evals: Mapping[str, Sequence[Estimate]],
    corpus: float | None,
    theme: Theme,
) -> Figure | None:
    """Plain accuracy against cumulative FLOPs, which include the corpus: the axis starts at 0 with
    its cost shaded.

    batch: (FLOPs, mean plain reward of the training batch); evals: estimates by set ("train",
    "heldout"), x in FLOPs;
    corpus: FLOPs spent before the first step, None if unknown.
    """
    xs = [*batch[0], *(e.x for points in evals.values() for e in points)]
    if not xs:
        return None
    furthest = max(*xs, corpus or 0.0, 1.0)
    scale, prefix = si_unit(furthest)
    figure, (ax,) = _figure()
    if batch[0]:
        scaled = [x / scale for x in batch[0]]
        _line(
            ax,
            (scaled, batch[1]),
            theme.soft,
            linewidth=1.0,
            markersize=3,
            label="training batch, no prefix",
        )
    for name, color, marker in zip(SET_NAMES, (theme.first, theme.second), "os", strict=True):
        if points := evals.get(name):
            _error_bars(ax, points, scale, color=color, marker=marker, label=SET_NAMES[name])
    right = 1.03 * furthest / scale
    ax.set_xlim(0, right)
    tops = [e.high if finite(e.high) else e.y for points in evals.values() for e in points]
    _percent_axis(ax, max([*batch[1], *tops]), "plain accuracy (no prefix)")
    if corpus:
        _shade_corpus(
            ax, corpus / scale, f"corpus\n{corpus / scale:.3g} {prefix}FLOP", right, theme
        )
    ax.set_xlabel(f"FLOPs spent, corpus included ({prefix}FLOP, paper accounting)")
    ax.set_title("Plain accuracy")
    _legend_above(ax, 3)
    return figure


def _error_bars(ax: Axes, points: Sequence[Estimate], scale: float, **style: Any) -> None:
    down = [max(0.0, e.y - e.low) if finite(e.low) else 0.0 for e in points]
    up = [max(0.0, e.high - e.y) if finite(e.high) else 0.0 for e in points]
    bars = ax.errorbar(
        [e.x / scale for e in points],
        [e.y for e in points],
        yerr=[down, up],
        capsize=2.5,
        elinewidth=1.0,
        linewidth=1.2,
        **style,
    )
    # a point at 0 % or 100 % sits on the edge of the axes
    for part in (bars[0], *bars[1], *bars[2]):
        part.set_clip_on(False)


def _shade_corpus(ax: Axes, width: float, text: str, right: float, theme: Theme) -> None:
    ax.axvspan(0, width, color=theme.muted, alpha=0.18, linewidth=0)
    ax.axvline(width, color=theme.muted, linewidth=0.8, linestyle=(0, (3, 3)))
    wide = width / right > 0.16
    x, align = (width / 2, "center") if wide else (width + 0.01 * right, "left")
    ax.text(
        x,
        0.96,
        text,
        transform=ax.get_xaxis_transform(),
        ha=align,
        va="top",
        fontsize=8.5,
        alpha=0.85,
    )


def groups(rows: Sequence[Row], theme: Theme) -> Figure | None:
    """Shares of groups with all continuations wrong, some right and all right, over steps
    (fractions that add up to 1).
    """
    keys = ("groups/all_zero", "groups/mixed", "groups/all_one")
    full = [row for row in rows if all(finite(row.get(k)) for k in ("step", *keys))]
    if not full:
        return None
    steps = [row["step"] for row in full]
    shares = [[row[k] for row in full] for k in keys]
    if len(steps) == 1:  # an area needs a width
        steps, shares = [steps[0] - 0.5, steps[0] + 0.5], [s * 2 for s in shares]
    figure, (ax,) = _figure()
    ax.stackplot(
        steps,
        shares,
        colors=(theme.grid, theme.first, theme.soft),
        labels=("all wrong", "mixed", "all right"),
        edgecolor=theme.face,
        linewidth=0.4,
    )
    _step_axis(ax, [row["step"] for row in full])
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PERCENT)
    ax.set_ylabel("share of groups")
    ax.set_title("Groups by outcome")
    _legend_above(ax, 3)
    return figure


def prefix_fraction(
    success: Mapping[str, Mapping[str, float | None]], theme: Theme
) -> Figure | None:
    """Success against the fraction of the trace given as prefix.

    success: {"before"|"after": {fraction as text: rate}}.
    """
    curves = {when: _curve(success.get(when)) for when in ("before", "after")}
    if not any(xs for xs, _ in curves.values()):
        return None
    figure, (ax,) = _figure()
    _before_and_after(ax, curves, theme.first, theme)
    _percent_axis(ax, max(y for _, ys in curves.values() for y in ys), "success rate")
    ax.xaxis.set_major_formatter(PERCENT)
    ax.xaxis.set_major_locator(FixedLocator(sorted({x for xs, _ in curves.values() for x in xs})))
    ax.set_xlabel("share of the trace given as prefix (0 % = no prefix)")
    ax.set_title("Success by prefix length")
    _legend_above(ax, 2)
    return figure


def pass_at_k(
    sets: Mapping[str, Mapping[str, Mapping[str, float | None]]], theme: Theme
) -> Figure | None:
    """pass@k against k, before and after, a panel for each set.

    sets: {set: {"before"|"after": {k as text: rate}}}.
    """
    colors = dict(zip(SET_NAMES, (theme.first, theme.second), strict=True))
    names = [
        n
        for n in SET_NAMES
        if any(_curve((sets.get(n) or {}).get(w))[0] for w in ("before", "after"))
    ]
    if not names:
        return None
    figure, panels = _figure(len(names), sharey=True)
    best = 0.0
    for ax, name in zip(panels, names, strict=True):
        curves = {when: _curve(sets[name].get(when)) for when in ("before", "after")}
        _before_and_after(ax, curves, colors[name], theme)
        ks = sorted({k for xs, _ in curves.values() for k in xs})
        best = max(best, *(y for _, ys in curves.values() for y in ys))
        ax.set_xscale("log", base=2)
        ax.set_xlim(ks[0] / 1.15, ks[-1] * 1.15)
        ax.xaxis.set_major_locator(FixedLocator(ks))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:g}"))
        ax.set_xlabel("samples a problem, k")
        ax.set_title(SET_NAMES[name].capitalize())
        _legend_above(ax, 2)
    _percent_axis(panels[0], best, "pass@k (no prefix)")
    return figure


def _curve(points: Mapping[str, float | None] | None) -> tuple[list[float], list[float]]:
    pairs = sorted((float(k), v) for k, v in (points or {}).items() if finite(v))
    return [x for x, _ in pairs], [y for _, y in pairs]


def _before_and_after(
    ax: Axes, curves: Mapping[str, tuple[list[float], list[float]]], color: str, theme: Theme
) -> None:
    styles = {
        "before": {"color": theme.muted, "linestyle": "--", "marker": "s"},
        "after": {"color": color, "marker": "o"},
    }
    for when, points in curves.items():
        if points[0]:
            _line(ax, points, label=when, **styles[when])


def lengths(rows: Sequence[Row], theme: Theme) -> Figure | None:
    """Completion lengths in tokens (mean, and the band from shortest to longest) and the share cut
    at the budget.
    """
    if not any(
        series(rows, "step", f"completions/{k}")[0] for k in ("mean_length", "clipped_ratio")
    ):
        return None
    figure, (left, right) = _figure(2)
    _steps_panel(left, rows, "completions/mean_length", "Completion length", "tokens", theme.first)
    keys = ("step", "completions/min_length", "completions/max_length")
    band = [[row[k] for k in keys] for row in rows if all(finite(row.get(k)) for k in keys)]
    if band:
        steps, low, high = zip(*band, strict=True)
        if len(steps) == 1:
            steps, low, high = (steps[0] - 0.1, steps[0] + 0.1), low * 2, high * 2
        left.fill_between(steps, low, high, color=theme.first, alpha=0.16, linewidth=0)
        left.set_ylim(0, 1.08 * max(*high, 1))
        left.set_title("Completion length: mean, min to max")
    _steps_panel(
        right,
        rows,
        "completions/clipped_ratio",
        "Cut at the length limit",
        "share of completions",
        theme.second,
    )
    if shares := series(rows, "step", "completions/clipped_ratio")[1]:
        _percent_axis(right, max(shares), "share of completions")
    return figure


def dynamics(rows: Sequence[Row], theme: Theme) -> Figure | None:
    """Entropy of the sampled tokens (nats a token) and the norm of the gradient, over steps."""
    if not any(series(rows, "step", key)[0] for key in ("entropy", "grad_norm")):
        return None
    figure, (left, right) = _figure(2)
    _steps_panel(left, rows, "entropy", "Entropy", "nats a token", theme.first)
    _steps_panel(right, rows, "grad_norm", "Gradient norm", "global L2 norm", theme.second)
    return figure


def logprob_gap(rows: Sequence[Row], theme: Theme) -> Figure | None:
    """Largest and mean |sampler - trainer| log-probability of a sampled token, over steps, on a log
    axis.

    Steps whose gap is exactly 0 have no place on a log axis: they are counted in the title. If all
    are 0 the axis is linear.
    """
    curves = {
        name: series(rows, "step", f"sampler_trainer/logp_diff_{name}") for name in ("max", "mean")
    }
    values = [y for _, ys in curves.values() for y in ys]
    if not values:
        return None
    figure, (ax,) = _figure()
    logarithmic = any(y > 0 for y in values)
    for (name, (xs, ys)), color, width in zip(
        curves.items(), (theme.second, theme.first), (1.0, 1.9), strict=True
    ):
        kept = [(x, y) for x, y in zip(xs, ys, strict=True) if y > 0 or not logarithmic]
        if kept:
            _line(
                ax,
                ([x for x, _ in kept], [y for _, y in kept]),
                color,
                linewidth=width,
                label=f"{name} over tokens",
            )
    zeros = sum(y == 0 for y in curves["max"][1])
    ax.set_title(
        "Sampler against trainer"
        + (f" (no gap at all at {zeros} of {len(curves['max'][1])} steps)" if zeros else "")
    )
    ax.set_yscale("log" if logarithmic else "linear")
    ax.set_ylabel("|difference of log-probabilities| (nats)")
    _step_axis(ax, [*curves["max"][0], *curves["mean"][0]])
    _legend_above(ax, 2)
    return figure
