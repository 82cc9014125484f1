"""The report of a comparison: reads the arms' work directories, writes comparison.json, CSV files,
figures and report.html.

Every figure is a mean over seeds; its interval is a 95 % bootstrap over seeds, absent with one
seed. Of fewer than six seeds that is their range, and covers less than 95 %. An arm's accuracy
between two evaluations is taken on the straight line between them.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from prefixrl_jax.report import comparison_figures as pictures
from prefixrl_jax.report.format import amount, interval, number, percent
from prefixrl_jax.report.run_figures import LIGHT, SET_NAMES, finite, png, series
from prefixrl_jax.report.run_report import Run, corpus_flops, estimates, read_run
from prefixrl_jax.runtime.files import read_json, write_json, write_text

DRAWS, POINTS = 2000, 120  # of the bootstrap; along a curve
# columns of metrics.jsonl, by accounting
AXES = {"paper": "flops/total", "actual": "flops/actual_total"}
CURVES = (
    "reward/plain",
    "reward/prefixed",
    "groups/all_zero",
    "groups/mixed",
    "groups/all_one",
    "grad_norm",
    "entropy",
    "completions/mean_length",
    "problems/unlocked",
)
TEMPLATE = "comparison_report.html.jinja"


@dataclasses.dataclass(frozen=True)
class Curve:
    """y over x (FLOPs): the mean over seeds, and its interval where there are several."""

    x: np.ndarray  # float64 [n]
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def resamples(count: int, seed: int = 0) -> np.ndarray:
    """int [DRAWS, count]: which seeds make up each bootstrap draw."""
    return np.random.default_rng(seed).integers(0, count, (DRAWS, count))


def bounds(draws: np.ndarray) -> tuple[float, float] | None:
    """2.5 and 97.5 % quantiles of float64 [n]; None if fewer than all draws are finite."""
    if not len(draws) or not np.isfinite(draws).all():
        return None
    return float(np.quantile(draws, 0.025)), float(np.quantile(draws, 0.975))


def mean_curve(curves: Sequence[tuple[Any, Any]]) -> Curve | None:
    """The mean of curves (x, y), floats [n] each, where all of them are known; None where there is
    no such x.
    """
    known = [(np.asarray(x, float), np.asarray(y, float)) for x, y in curves if len(x)]
    if not known or len(known) < len(curves):
        return None
    start, end = max(x[0] for x, _ in known), min(x[-1] for x, _ in known)
    if end < start:
        return None
    grid = np.linspace(start, end, POINTS if end > start else 1)
    rows = np.stack([np.interp(grid, x, y) for x, y in known])
    if len(rows) == 1:
        return Curve(grid, rows[0])
    draws = rows[resamples(len(rows))].mean(axis=1)
    return Curve(
        grid,
        rows.mean(axis=0),
        np.quantile(draws, 0.025, axis=0),
        np.quantile(draws, 0.975, axis=0),
    )


def smoothed(values: Sequence[float], width: int) -> np.ndarray:
    """float64 [n]: the mean of each value and its neighbours, `width` in all where there are as
    many on both sides.
    """
    half, total = width // 2, np.concatenate([[0.0], np.cumsum(np.asarray(values, float))])
    at = np.arange(len(values))
    # symmetric, so that a straight line stays what it is
    reach = np.minimum(half, np.minimum(at, len(values) - 1 - at))
    return (total[at + reach + 1] - total[at - reach]) / (2 * reach + 1)


def reached(x: np.ndarray, y: np.ndarray, level: float) -> float:
    """The first x at which the piecewise straight y is at least `level`; infinity if it never
    is.
    """
    at = np.flatnonzero(y >= level)
    if not len(at):
        return float("inf")
    i = int(at[0])
    if not i:
        return float(x[0])
    return float(x[i - 1] + (level - y[i - 1]) * (x[i] - x[i - 1]) / (y[i] - y[i - 1]))


@dataclasses.dataclass(frozen=True)
class Method:
    """The arms of one method, by seed."""

    name: str
    runs: dict[int, Run]

    def accuracy(
        self, set_name: str, seeds: Sequence[int] | None = None, accounting: str = "paper"
    ) -> Curve | None:
        """Plain accuracy over FLOPs, of the given seeds (repeated ones count again) or of all."""
        chosen = [self.runs[s] for s in seeds or self.runs]
        found = [
            estimates(run, set_name, corpus_flops(run, accounting), AXES[accounting])
            for run in chosen
        ]
        return mean_curve([([e.x for e in points], [e.y for e in points]) for points in found])

    def metric(self, key: str) -> Curve | None:
        """A column of metrics.jsonl over FLOPs, each value the mean of the twentieth of the steps
        around it.
        """
        columns = [series(run.rows, "flops/total", key) for run in self.runs.values()]
        return mean_curve([(x, smoothed(y, len(y) // 20)) for x, y in columns])

    def values(self, *path: str) -> list[float]:
        """A number of summary.json, by seed; empty unless every seed has it."""
        found = [run.find(*path) for run in self.runs.values()]
        return [float(x) for x in found] if found and all(map(finite, found)) else []

    def mean(self, *path: str) -> dict[str, Any] | None:
        """Mean over seeds and its interval."""
        if not (values := self.values(*path)):
            return None
        draws = np.array(values)[resamples(len(values))].mean(axis=1)
        return {
            "mean": float(np.mean(values)),
            "interval": bounds(draws) if len(values) > 1 else None,
        }


def efficiency(
    method: Method, reference: Method, set_name: str, level: float = 0.0
) -> dict[str, Any]:
    """How a method stands to the reference on a set: FLOPs of the reference to a plain accuracy
    over the method's FLOPs to the same, in both accountings (0 if the method never has it, None if
    that cannot be said), and the ratio of final accuracies.

    level: that accuracy; 0: the reference's final one. Final, not best: the evaluations on the way
    have few samples, and the largest of them is the luckiest. A reference that never has `level`
    counts with all its FLOPs, and `at_least` is true.
    """

    def wanted(theirs: Curve | None) -> float:
        return level or (float(theirs.y[-1]) if theirs is not None else 0.0)

    def ratio(mine: Curve | None, theirs: Curve | None) -> float:
        if mine is None or theirs is None or wanted(theirs) <= 0:
            return float("nan")
        spent = min(reached(theirs.x, theirs.y, wanted(theirs)), float(theirs.x[-1]))
        return spent / reached(mine.x, mine.y, wanted(theirs))

    def final_ratio(a: np.ndarray, b: np.ndarray) -> float:
        return (
            float(np.mean(a) / np.mean(b)) if len(a) and len(b) and np.mean(b) > 0 else float("nan")
        )

    def curves(of: Method, rows: np.ndarray, accounting: str) -> list[Curve | None]:
        names = list(of.runs)
        known = functools.cache(
            lambda row: of.accuracy(set_name, [names[i] for i in row], accounting)
        )
        return [known(tuple(row)) for row in np.sort(rows)]

    path = ("plain_pass_at_1", set_name, "after")
    a, b = np.array(method.values(*path)), np.array(reference.values(*path))
    mine, theirs = resamples(len(method.runs), 1), resamples(len(reference.runs), 2)
    several = len(method.runs) > 1 and len(reference.runs) > 1
    whole = reference.accuracy(set_name)
    at_least = whole is not None and bool((whole.y < wanted(whole)).all())
    out: dict[str, Any] = {
        "at_least": at_least,
        "accuracy_ratio": final_ratio(a, b),
        "accuracy_interval": None,
    }
    if several and len(a) and len(b):
        out["accuracy_interval"] = bounds(
            np.array([final_ratio(a[i], b[j]) for i, j in zip(mine, theirs, strict=True)])
        )
    for accounting in AXES:
        out[f"{accounting}_ratio"] = ratio(
            method.accuracy(set_name, None, accounting),
            reference.accuracy(set_name, None, accounting),
        )
        pairs = (
            zip(
                curves(method, mine, accounting), curves(reference, theirs, accounting), strict=True
            )
            if several
            else []
        )
        out[f"{accounting}_interval"] = bounds(np.array([ratio(*pair) for pair in pairs]))
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in out.items()}


def read_methods(arms: Mapping[tuple[str, int], Path]) -> list[Method]:
    """Methods in the order they were named."""
    names = dict.fromkeys(method for method, _ in arms)
    return [
        Method(
            name, {seed: read_run(path) for (method, seed), path in arms.items() if method == name}
        )
        for name in names
    ]


def tables(methods: Sequence[Method], reference: str, level: float = 0.0) -> list[dict[str, Any]]:
    """A row for each method: final plain accuracy of both sets, FLOPs, and how it stands to the
    reference (`efficiency`).
    """
    against = next((m for m in methods if m.name == reference), None)
    rows = []
    for method in methods:
        row: dict[str, Any] = {"method": method.name, "seeds": list(method.runs)}
        for name in SET_NAMES:
            row[name] = {
                when: method.mean("plain_pass_at_1", name, when) for when in ("before", "after")
            }
            row[name]["against"] = (
                efficiency(method, against, name, level)
                if against and against is not method
                else None
            )
        row["flops"] = method.mean("flops", "paper", "total")
        row["actual"] = method.mean("flops", "actual", "total")
        norms = [
            y for run in method.runs.values() for y in series(run.rows, "step", "grad_norm")[1]
        ]
        row["grad_norm_std"] = float(np.std(norms)) if norms else None
        rows.append(row)
    return rows


def write_comparison(
    workdir: Path,
    arms: Mapping[tuple[str, int], Path],
    shared: Path,
    reference: str,
    tuned: Sequence[Mapping[str, Any]] = (),
    level: float = 0.0,
) -> str:
    """Writes everything below `workdir`; returns what to say of it: a table and where the report
    is. tuned: as `tuning.choose` records it. level: as for `efficiency`.
    """
    methods = read_methods(arms)
    rows = tables(methods, reference, level)
    corpus = read_json(shared / "corpus" / "summary.json")
    write_json(
        workdir / "comparison.json",
        {
            "reference": reference,
            "level": level or None,
            "methods": rows,
            "corpus": corpus,
            "tuned": tuned,
        },
    )
    _write_csv(workdir / "metrics.csv", methods)
    figures = _draw(methods, corpus.get("strategies", {}), workdir / "figures")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (amount, percent, interval, number):
        environment.filters[function.__name__] = function
    page = environment.get_template(TEMPLATE).render(
        rows=rows,
        reference=reference,
        level=level,
        tuned=tuned,
        figures=figures,
        corpus=corpus,
        sets=SET_NAMES,
        notes=[
            f"{m.name}, seed {seed}: {note}"
            for m in methods
            for seed, run in m.runs.items()
            for note in run.notes
        ],
    )
    write_text(workdir / "report.html", page)
    return f"{_text_table(rows)}\n{workdir / 'report.html'}"


def _write_csv(path: Path, methods: Sequence[Method]) -> None:
    """Every row of every arm's metrics.jsonl, and a last one of what was measured after
    training.
    """
    rows: list[dict[str, Any]] = []
    for method in methods:
        for seed, run in method.runs.items():
            named = {"method": method.name, "seed": seed}
            rows += [{**named, **row} for row in run.rows]
            after = {f"after/{s}/avg@1": run.find("plain_pass_at_1", s, "after") for s in SET_NAMES}
            after |= {
                f"after/{s}/pass@{k}": v
                for s in SET_NAMES
                for k, v in (run.find("pass_at_k", s, "after") or {}).items()
            }
            fractions = run.find("success_by_prefix_fraction", "after") or {}
            after |= {f"after/fraction/{f}": v for f, v in fractions.items()}
            rows.append(
                {
                    **named,
                    "step": "after",
                    "flops/total": run.find("flops", "paper", "total"),
                    **after,
                }
            )
    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _draw(
    methods: Sequence[Method], in_traces: Mapping[str, float], directory: Path
) -> list[dict[str, str]]:
    """The figures as PNG files, and as data URIs for the page; those without data are left out.

    in_traces: the strategies of the corpus's traces.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = [m.name for m in methods]
    metric = lambda key: {m.name: curve for m in methods if (curve := m.metric(key)) is not None}  # noqa: E731
    offset = max(
        (x for m in methods for run in m.runs.values() if (x := corpus_flops(run)) is not None),
        default=0.0,
    )
    accuracy = {
        s: {m.name: c for m in methods if (c := m.accuracy(s)) is not None} for s in SET_NAMES
    }
    at_k = {
        s: {m.name: _mean_table(m, "pass_at_k", s, "after") for m in methods} for s in SET_NAMES
    }
    fractions = {"base model": _mean_table(methods[0], "success_by_prefix_fraction", "before")}
    fractions |= {m.name: _mean_table(m, "success_by_prefix_fraction", "after") for m in methods}
    strategies = sorted(
        {
            k
            for m in methods
            for run in m.runs.values()
            for row in run.rows
            for k in row
            if k.startswith("strategy/")
        }
    )
    makers: dict[str, Callable[[Any], Any]] = {
        "accuracy": lambda theme: pictures.accuracy(names, accuracy, offset, theme),
        "pass_at_k": lambda theme: pictures.pass_at_k(names, at_k, theme),
        "back_generalization": lambda theme: pictures.matrix(fractions, theme),
        "groups": lambda theme: pictures.panels(names, pictures.GROUPS, metric, theme),
        "dynamics": lambda theme: pictures.panels(names, pictures.DYNAMICS, metric, theme),
        "unlocked": lambda theme: pictures.panels(names, pictures.UNLOCKED, metric, theme),
        "strategies": lambda theme: pictures.panels(
            names,
            {k: (k.removeprefix("strategy/"), "mean over plain samples") for k in strategies},
            metric,
            theme,
            {f"strategy/{name}": value for name, value in in_traces.items()},
        ),
    }
    out = []
    for name, maker in makers.items():
        image, path = png(maker, LIGHT), directory / f"{name}.png"
        if image is None:
            path.unlink(missing_ok=True)
            continue
        path.write_bytes(image)
        out.append(
            {
                "name": name,
                "uri": "data:image/png;base64," + base64.b64encode(image).decode("ascii"),
            }
        )
    return out


def _mean_table(method: Method, *path: str) -> dict[float, float]:
    """{k or fraction: mean over seeds} of a table in summary.json, where every seed has a
    number.
    """
    found = [run.find(*path) or {} for run in method.runs.values()]
    keys = [k for k in found[0] if all(finite(table.get(k)) for table in found)]
    return {float(k): float(np.mean([table[k] for table in found])) for k in keys}


def _text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the command prints at its end."""
    width = max(len(name) for name in ("method", *(row["method"] for row in rows)))
    lines = [f"{'method':<{width}}{'FLOPs':>14}{'plain accuracy: training':>28}{'held out':>24}"]
    for row in rows:
        cells = []
        for name in SET_NAMES:
            before, after = (row[name][when] for when in ("before", "after"))
            cells.append(
                f"{percent(before['mean'])} -> {percent(after['mean'])}"
                if before and after
                else "–"
            )
        flops = amount(row["flops"]["mean"], "FLOP") if row["flops"] else "–"
        lines.append(f"{row['method']:<{width}}{flops:>14}{cells[0]:>28}{cells[1]:>24}")
    return "\n".join(lines).replace("\u00a0", " ")
