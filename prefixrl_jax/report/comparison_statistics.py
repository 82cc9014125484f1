"""The statistics of a comparison: means over seeds, their intervals, and FLOPs to an accuracy.

Intervals are 95 % bootstraps over seeds, and absent with one seed. With fewer than six seeds such
an interval is their range and covers less than 95 %. Accuracy between two evaluations is taken on
the straight line between them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from prefixrl_jax.report.plotting import finite, series
from prefixrl_jax.report.records import Run, corpus_flops, estimates

DRAWS = 2000  # of the bootstrap
GRID_POINTS = 120  # of a mean curve
# The column of metrics.jsonl with the FLOPs so far, by accounting.
FLOPS_COLUMNS = {"paper": "flops/total", "actual": "flops/actual_total"}


@dataclasses.dataclass(frozen=True)
class Curve:
    """A mean over seeds against FLOPs, all float64 [n]; with several seeds its interval too."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def top(self) -> float:
        """Return the largest value, or the largest upper bound where there are intervals."""
        return float((self.y if self.high is None else self.high).max())


def resamples(count: int, seed: int = 0) -> np.ndarray:
    """Return which of `count` runs make up each bootstrap draw: int [DRAWS, count]."""
    return np.random.default_rng(seed).integers(0, count, (DRAWS, count))


def bounds(draws: np.ndarray) -> tuple[float, float] | None:
    """Return the 2.5 and 97.5 % quantiles of float [n]; None if it is empty or not all finite."""
    if not len(draws) or not np.isfinite(draws).all():
        return None
    return float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975))


def mean_curve(curves: Sequence[tuple[Any, Any]]) -> Curve | None:
    """Return the mean of curves, each (x, y) of floats [n], where x lies in the range of all.

    None if there is no such x, or if one of the curves is empty.
    """
    arrays = [(np.asarray(x, float), np.asarray(y, float)) for x, y in curves if len(x)]
    if not arrays or len(arrays) < len(curves):
        return None
    start = max(x[0] for x, _ in arrays)
    end = min(x[-1] for x, _ in arrays)
    if end < start:
        return None
    grid = np.linspace(start, end, GRID_POINTS if end > start else 1)
    values = np.stack([np.interp(grid, x, y) for x, y in arrays])
    if len(values) == 1:
        return Curve(grid, values[0])
    draws = values[resamples(len(values))].mean(axis=1)
    low, high = (np.quantile(draws, q, axis=0) for q in (0.025, 0.975))
    return Curve(grid, values.mean(axis=0), low, high)


def smoothed(values: Sequence[float], width: int) -> np.ndarray:
    """Return the mean of each value and those around it, `width` in all: float64 [n].

    Near the ends fewer are taken, as many on either side, so that a straight line stays as it is.
    """
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, float))])
    index = np.arange(len(values))
    reach = np.minimum(width // 2, np.minimum(index, len(values) - 1 - index))
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def reached(x: np.ndarray, y: np.ndarray, level: float) -> float:
    """Return the first x at which the piecewise linear y is at least `level`, else infinity."""
    above = np.flatnonzero(y >= level)
    if not len(above):
        return float("inf")
    i = int(above[0])
    if i == 0:
        return float(x[0])
    return float(x[i - 1] + (level - y[i - 1]) * (x[i] - x[i - 1]) / (y[i] - y[i - 1]))


@dataclasses.dataclass(frozen=True)
class Method:
    """The runs of one method, by seed."""

    name: str
    runs: dict[int, Run]

    def accuracy(
        self, set_name: str, seeds: Sequence[int] | None = None, accounting: str = "paper"
    ) -> Curve | None:
        """Return plain accuracy against FLOPs, of all seeds or of these, each as often as named."""
        column = FLOPS_COLUMNS[accounting]
        curves = []
        for seed in seeds or self.runs:
            run = self.runs[seed]
            points = estimates(run, set_name, corpus_flops(run, accounting), column)
            curves.append(([point.x for point in points], [point.y for point in points]))
        return mean_curve(curves)

    def metric(self, key: str) -> Curve | None:
        """Return a column of metrics.jsonl against FLOPs, smoothed over 1/20 of the steps."""
        columns = [series(run.rows, "flops/total", key) for run in self.runs.values()]
        return mean_curve([(x, smoothed(y, len(y) // 20)) for x, y in columns])

    def values(self, *path: str) -> list[float]:
        """Return a number of summary.json for every seed; nothing unless all of them have it."""
        numbers = [run.find(*path) for run in self.runs.values()]
        return [float(x) for x in numbers] if all(map(finite, numbers)) else []

    def mean(self, *path: str) -> dict[str, Any] | None:
        """Return {"mean", "interval"} over seeds of a number of summary.json; None without one."""
        if not (values := self.values(*path)):
            return None
        interval = None
        if len(values) > 1:
            interval = bounds(np.array(values)[resamples(len(values))].mean(axis=1))
        return {"mean": float(np.mean(values)), "interval": interval}

    def mean_table(self, *path: str) -> dict[float, float]:
        """Return the means over seeds of a table of summary.json, by its key (k or fraction).

        A key counts where every seed has a number.
        """
        tables = [run.find(*path) or {} for run in self.runs.values()]
        keys = [key for key in tables[0] if all(finite(table.get(key)) for table in tables)]
        return {float(key): float(np.mean([table[key] for table in tables])) for key in keys}


def efficiency(
    method: Method, reference: Method, set_name: str, level: float = 0.0
) -> dict[str, Any]:
    """Compare a method with the reference: FLOPs to a plain accuracy, and final accuracy.

    Args:
        method: The method.
        reference: What it is compared with.
        set_name: "train" or "heldout".
        level: The accuracy that counts as reached; 0: the reference's final one. It is the final
            and not the best one, because the evaluations on the way have few samples and the
            largest of them is the luckiest.

    Returns:
        "paper_ratio" and "actual_ratio", the reference's FLOPs to the accuracy over the method's,
        by accounting: 2 means half the compute, and 0 that the method never reaches it.
        "accuracy_ratio", the method's final accuracy over the reference's. For each of them an
        "..._interval". What cannot be said is None. "at_least" is true if the reference never
        reaches `level`; then all its FLOPs count, and the ratios of FLOPs are lower bounds.
    """
    method_draws = resamples(len(method.runs), seed=1)
    reference_draws = resamples(len(reference.runs), seed=2)
    has_interval = len(method.runs) > 1 and len(reference.runs) > 1

    curve = reference.accuracy(set_name)
    comparison: dict[str, Any] = {
        "at_least": curve is not None and bool((curve.y < _target(curve, level)).all())
    }
    final = np.array(method.values("plain_pass_at_1", set_name, "after"))
    reference_final = np.array(reference.values("plain_pass_at_1", set_name, "after"))
    comparison["accuracy_ratio"] = _ratio_of_means(final, reference_final)
    comparison["accuracy_interval"] = None
    if has_interval and len(final) and len(reference_final):
        pairs = zip(final[method_draws], reference_final[reference_draws], strict=True)
        ratios = [_ratio_of_means(*pair) for pair in pairs]
        comparison["accuracy_interval"] = bounds(np.array(ratios))
    for accounting in FLOPS_COLUMNS:
        comparison[f"{accounting}_ratio"] = _flops_ratio(
            method.accuracy(set_name, None, accounting),
            reference.accuracy(set_name, None, accounting),
            level,
        )
        comparison[f"{accounting}_interval"] = None
        if has_interval:
            curves = _resampled_curves(method, set_name, accounting, method_draws)
            references = _resampled_curves(reference, set_name, accounting, reference_draws)
            ratios = [_flops_ratio(*pair, level) for pair in zip(curves, references, strict=True)]
            comparison[f"{accounting}_interval"] = bounds(np.array(ratios))
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in comparison.items()
    }


def _target(reference: Curve, level: float) -> float:
    return level or float(reference.y[-1])


def _flops_ratio(curve: Curve | None, reference: Curve | None, level: float) -> float:
    if curve is None or reference is None:
        return math.nan
    target = _target(reference, level)
    if target <= 0:
        return math.nan
    spent = min(reached(reference.x, reference.y, target), float(reference.x[-1]))
    return spent / reached(curve.x, curve.y, target)


def _ratio_of_means(values: np.ndarray, reference: np.ndarray) -> float:
    if not len(values) or not len(reference) or np.mean(reference) <= 0:
        return math.nan
    return float(np.mean(values) / np.mean(reference))


def _resampled_curves(
    method: Method, set_name: str, accounting: str, draws: np.ndarray
) -> list[Curve | None]:
    """The accuracy of each draw, int [DRAWS, seeds]; a draw that comes again is not made again."""
    seeds = list(method.runs)
    curves: dict[tuple[int, ...], Curve | None] = {}
    result = []
    for draw in np.sort(draws):
        key = tuple(draw)
        if key not in curves:
            curves[key] = method.accuracy(set_name, [seeds[i] for i in draw], accounting)
        result.append(curves[key])
    return result
