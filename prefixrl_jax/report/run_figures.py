"""The figures of a run's report: numbers in, matplotlib figures out.

Each function draws one figure from the data that it names, and returns None when there is nothing
to draw. Lines that share axes differ in marker, dash or width as well as in colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from prefixrl_jax.flops import si_unit
from prefixrl_jax.report.plotting import (
    PERCENT,
    SET_NAMES,
    Estimate,
    Points,
    Row,
    Theme,
    axis_of_k,
    finite,
    legend_above,
    line,
    percent_axis,
    row_of_axes,
    series,
    step_axis,
)

Rates = Mapping[str, float | None]  # rates by k or by fraction, whose keys are text as in JSON
BEFORE_AND_AFTER = ("before", "after")  # training


def accuracy(
    batch: Points,
    evaluations: Mapping[str, Sequence[Estimate]],
    corpus: float | None,
    theme: Theme,
) -> Figure | None:
    """Draw plain accuracy against the FLOPs spent so far.

    The axis starts at 0, since FLOPs include the corpus, and what that cost is shaded.

    Args:
        batch: FLOPs, and mean plain reward of the training batch.
        evaluations: Estimates by set ("train", "heldout"), x in FLOPs.
        corpus: FLOPs spent before the first step; None if unknown.
        theme: The colours.
    """
    flops = [*batch[0], *(point.x for points in evaluations.values() for point in points)]
    if not flops:
        return None
    furthest = max(*flops, corpus or 0.0, 1.0)
    scale, prefix = si_unit(furthest)
    right = 1.03 * furthest / scale
    figure, (ax,) = row_of_axes()
    if batch[0]:
        label = "training batch, no prefix"
        scaled = ([x / scale for x in batch[0]], batch[1])
        line(ax, scaled, theme.soft, linewidth=1.0, markersize=3, label=label)
    for name, color, marker in zip(SET_NAMES, (theme.first, theme.second), "os", strict=True):
        if points := evaluations.get(name):
            _error_bars(ax, points, scale, color=color, marker=marker, label=SET_NAMES[name])
    ax.set_xlim(0, right)
    tops = [p.high if finite(p.high) else p.y for points in evaluations.values() for p in points]
    percent_axis(ax, max([*batch[1], *tops]), "plain accuracy (no prefix)")
    if corpus:
        text = f"corpus\n{corpus / scale:.3g} {prefix}FLOP"
        _shade_corpus(ax, corpus / scale, text, right, theme)
    ax.set_xlabel(f"FLOPs spent, corpus included ({prefix}FLOP, paper accounting)")
    ax.set_title("Plain accuracy")
    legend_above(ax, 3)
    return figure


def _error_bars(ax: Axes, points: Sequence[Estimate], scale: float, **style: Any) -> None:
    below = [max(0.0, point.y - point.low) if finite(point.low) else 0.0 for point in points]
    above = [max(0.0, point.high - point.y) if finite(point.high) else 0.0 for point in points]
    bars = ax.errorbar(
        [point.x / scale for point in points],
        [point.y for point in points],
        yerr=[below, above],
        capsize=2.5,
        elinewidth=1.0,
        linewidth=1.2,
        **style,
    )
    # A point at 0 % or 100 % sits on the edge of the axes and would be cut in half.
    for artist in (bars[0], *bars[1], *bars[2]):
        artist.set_clip_on(False)


def _shade_corpus(ax: Axes, width: float, text: str, right: float, theme: Theme) -> None:
    ax.axvspan(0, width, color=theme.muted, alpha=0.18, linewidth=0)
    ax.axvline(width, color=theme.muted, linewidth=0.8, linestyle=(0, (3, 3)))
    # The text stands in the shaded part if that is wide enough, else to the right of it.
    fits = width / right > 0.16
    ax.text(
        width / 2 if fits else width + 0.01 * right,
        0.96,
        text,
        transform=ax.get_xaxis_transform(),
        ha="center" if fits else "left",
        va="top",
        fontsize=8.5,
        alpha=0.85,
    )


def groups(rows: Sequence[Row], theme: Theme) -> Figure | None:
    """Draw the shares of groups that are all wrong, mixed and all right (sum 1) over steps."""
    keys = ("groups/all_zero", "groups/mixed", "groups/all_one")
    complete = [row for row in rows if all(finite(row.get(key)) for key in ("step", *keys))]
    if not complete:
        return None
    steps = [row["step"] for row in complete]
    shares = [[row[key] for row in complete] for key in keys]
    x = steps
    if len(steps) == 1:  # an area needs a width
        x = [steps[0] - 0.5, steps[0] + 0.5]
        shares = [share * 2 for share in shares]
    figure, (ax,) = row_of_axes()
    ax.stackplot(
        x,
        shares,
        colors=(theme.grid, theme.first, theme.soft),
        labels=("all wrong", "mixed", "all right"),
        edgecolor=theme.face,
        linewidth=0.4,
    )
    step_axis(ax, steps)
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PERCENT)
    ax.set_ylabel("share of groups")
    ax.set_title("Groups by outcome")
    legend_above(ax, 3)
    return figure


def prefix_fraction(success: Mapping[str, Rates], theme: Theme) -> Figure | None:
    """Draw success against the fraction of the trace that is given as prefix.

    Args:
        success: {"before"|"after": {fraction: rate}}.
        theme: The colours.
    """
    curves = {when: _curve(success.get(when)) for when in BEFORE_AND_AFTER}
    if not any(fractions for fractions, _ in curves.values()):
        return None
    figure, (ax,) = row_of_axes()
    _draw_before_and_after(ax, curves, theme.first, theme)
    percent_axis(ax, max(rate for _, rates in curves.values() for rate in rates), "success rate")
    ax.xaxis.set_major_formatter(PERCENT)
    ax.xaxis.set_major_locator(FixedLocator(sorted({x for xs, _ in curves.values() for x in xs})))
    ax.set_xlabel("share of the trace given as prefix (0 % = no prefix)")
    ax.set_title("Success by prefix length")
    legend_above(ax, 2)
    return figure


def pass_at_k(sets: Mapping[str, Mapping[str, Rates]], theme: Theme) -> Figure | None:
    """Draw pass@k against k before and after training, a panel for each set.

    Args:
        sets: {set: {"before"|"after": {k: rate}}}.
        theme: The colours.
    """
    colors = dict(zip(SET_NAMES, (theme.first, theme.second), strict=True))
    curves_by_set = {}
    for name in SET_NAMES:
        curves = {when: _curve((sets.get(name) or {}).get(when)) for when in BEFORE_AND_AFTER}
        if any(ks for ks, _ in curves.values()):
            curves_by_set[name] = curves
    if not curves_by_set:
        return None
    figure, panels = row_of_axes(len(curves_by_set), sharey=True)
    best = 0.0
    for ax, (name, curves) in zip(panels, curves_by_set.items(), strict=True):
        _draw_before_and_after(ax, curves, colors[name], theme)
        ks = sorted({k for xs, _ in curves.values() for k in xs})
        best = max(best, *(rate for _, rates in curves.values() for rate in rates))
        axis_of_k(ax, ks)
        ax.set_xlim(ks[0] / 1.15, ks[-1] * 1.15)
        ax.set_title(SET_NAMES[name].capitalize())
        legend_above(ax, 2)
    percent_axis(panels[0], best, "pass@k (no prefix)")
    return figure


def _curve(rates: Rates | None) -> Points:
    pairs = sorted((float(x), rate) for x, rate in (rates or {}).items() if finite(rate))
    return [x for x, _ in pairs], [rate for _, rate in pairs]


def _draw_before_and_after(
    ax: Axes, curves: Mapping[str, Points], color: str, theme: Theme
) -> None:
    styles = {
        "before": {"color": theme.muted, "linestyle": "--", "marker": "s"},
        "after": {"color": color, "marker": "o"},
    }
    for when, points in curves.items():
        if points[0]:
            line(ax, points, label=when, **styles[when])


def lengths(rows: Sequence[Row], theme: Theme) -> Figure | None:
    """Draw completion lengths and the share of completions cut at the length limit, over steps.

    Lengths are in tokens: the mean, and a band from the shortest to the longest.
    """
    mean, clipped = "completions/mean_length", "completions/clipped_ratio"
    if not any(series(rows, "step", key)[0] for key in (mean, clipped)):
        return None
    figure, (left, right) = row_of_axes(2)
    _steps_panel(left, rows, mean, "Completion length", "tokens", theme.first)
    _band_of_lengths(left, rows, theme.first)
    label = "share of completions"
    _steps_panel(right, rows, clipped, "Cut at the length limit", label, theme.second)
    if shares := series(rows, "step", clipped)[1]:
        percent_axis(right, max(shares), label)
    return figure


def _band_of_lengths(ax: Axes, rows: Sequence[Row], color: str) -> None:
    keys = ("step", "completions/min_length", "completions/max_length")
    complete = [row for row in rows if all(finite(row.get(key)) for key in keys)]
    if not complete:
        return
    steps, shortest, longest = ([row[key] for row in complete] for key in keys)
    if len(steps) == 1:  # a band needs a width
        steps = [steps[0] - 0.1, steps[0] + 0.1]
        shortest, longest = shortest * 2, longest * 2
    ax.fill_between(steps, shortest, longest, color=color, alpha=0.16, linewidth=0)
    ax.set_ylim(0, 1.08 * max(*longest, 1))
    ax.set_title("Completion length: mean, min to max")


def dynamics(rows: Sequence[Row], theme: Theme) -> Figure | None:
    """Draw the entropy of the sampled tokens (nats a token) and the gradient's norm, over steps."""
    if not any(series(rows, "step", key)[0] for key in ("entropy", "grad_norm")):
        return None
    figure, (left, right) = row_of_axes(2)
    _steps_panel(left, rows, "entropy", "Entropy", "nats a token", theme.first)
    _steps_panel(right, rows, "grad_norm", "Gradient norm", "global L2 norm", theme.second)
    return figure


def _steps_panel(
    ax: Axes, rows: Sequence[Row], key: str, title: str, label: str, color: str
) -> None:
    """Draw a column of metrics.jsonl over steps, or the words "not recorded"."""
    points = series(rows, "step", key)
    ax.set_title(title)
    ax.set_ylabel(label)
    step_axis(ax, points[0])
    if points[0]:
        line(ax, points, color)
        ax.set_ylim(0, 1.12 * max(points[1]) or 1.0)
    else:
        ax.set_yticks([])
        place: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "va": "center"}
        ax.text(0.5, 0.5, "not recorded", alpha=0.7, **place)


def logprob_gap(rows: Sequence[Row], theme: Theme) -> Figure | None:
    """Draw the largest and the mean |sampler - trainer| log-prob of a sampled token, over steps.

    The axis is logarithmic. Steps whose gap is exactly 0 have no place on it: they are counted in
    the title. If all gaps are 0, it is linear.
    """
    curves = {
        name: series(rows, "step", f"sampler_trainer/logp_diff_{name}") for name in ("max", "mean")
    }
    gaps = [gap for _, gaps in curves.values() for gap in gaps]
    if not gaps:
        return None
    figure, (ax,) = row_of_axes()
    logarithmic = any(gap > 0 for gap in gaps)
    styles = {"max": (theme.second, 1.0), "mean": (theme.first, 1.9)}
    for name, (color, width) in styles.items():
        pairs = zip(*curves[name], strict=True)
        shown = [(step, gap) for step, gap in pairs if gap > 0 or not logarithmic]
        if shown:
            points = ([step for step, _ in shown], [gap for _, gap in shown])
            line(ax, points, color, linewidth=width, label=f"{name} over tokens")
    largest = curves["max"][1]
    zeros = sum(gap == 0 for gap in largest)
    without_gap = f" (no gap at all at {zeros} of {len(largest)} steps)" if zeros else ""
    ax.set_title(f"Sampler against trainer{without_gap}")
    ax.set_yscale("log" if logarithmic else "linear")
    ax.set_ylabel("|difference of log-probabilities| (nats)")
    step_axis(ax, [*curves["max"][0], *curves["mean"][0]])
    legend_above(ax, 2)
    return figure
