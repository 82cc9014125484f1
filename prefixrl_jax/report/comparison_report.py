"""The report of a comparison: report.html, figures, comparison.json and metrics.csv.

It is made from the work directories of the arms; an arm is a run of one method with one seed.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from prefixrl_jax.report import comparison_figures as figures
from prefixrl_jax.report.comparison_figures import DYNAMICS, GROUPS, UNLOCKED, Curves, Panel
from prefixrl_jax.report.comparison_statistics import Method, efficiency
from prefixrl_jax.report.format import ABSENT, amount, percent
from prefixrl_jax.report.page import data_uri, write_page, write_picture
from prefixrl_jax.report.plotting import LIGHT, SET_NAMES, Theme, png, series
from prefixrl_jax.report.records import Run, corpus_flops, read_run
from prefixrl_jax.runtime.files import read_json, write_json, write_text

TEMPLATE = "comparison_report.html.jinja"


def write_comparison(
    workdir: Path,
    arms: Mapping[tuple[str, int], Path],
    shared: Path,
    reference: str,
    tuned: Sequence[Mapping[str, Any]] = (),
    level: float = 0.0,
) -> str:
    """Write the report into `workdir`; return a table as text, and where the page is.

    Args:
        workdir: Where to write.
        arms: Work directories by method and seed.
        shared: Work directory of the stages that all arms share.
        reference: The method that the others are compared with.
        tuned: How fields were chosen, as `tuning.choose` records it.
        level: The accuracy to which FLOPs are compared; 0: the reference's final one.
    """
    methods = read_methods(arms)
    rows = table(methods, reference, level)
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
    write_page(
        workdir / "report.html",
        TEMPLATE,
        rows=rows,
        reference=reference,
        level=level,
        tuned=tuned,
        figures=_draw(methods, corpus.get("strategies", {}), workdir / "figures"),
        corpus=corpus,
        sets=SET_NAMES,
        notes=[
            f"{method.name}, seed {seed}: {note}"
            for method in methods
            for seed, run in method.runs.items()
            for note in run.notes
        ],
    )
    return f"{_text_table(rows)}\n{workdir / 'report.html'}"


def read_methods(arms: Mapping[tuple[str, int], Path]) -> list[Method]:
    """Read the runs of every method, in the order in which `arms` names the methods."""
    runs: dict[str, dict[int, Run]] = {}
    for (name, seed), workdir in arms.items():
        runs.setdefault(name, {})[seed] = read_run(workdir)
    return [Method(name, runs_by_seed) for name, runs_by_seed in runs.items()]


def table(methods: Sequence[Method], reference: str, level: float = 0.0) -> list[dict[str, Any]]:
    """Return a row for each method: plain accuracy on both sets, FLOPs, `efficiency`.

    A row has for each set its accuracy "before" and "after" training, and "against", which is None
    for the reference itself and without one.
    """
    against = next((method for method in methods if method.name == reference), None)
    rows = []
    for method in methods:
        row: dict[str, Any] = {"method": method.name, "seeds": list(method.runs)}
        for set_name in SET_NAMES:
            row[set_name] = {
                when: method.mean("plain_pass_at_1", set_name, when) for when in ("before", "after")
            }
            row[set_name]["against"] = None
            if against is not None and against is not method:
                row[set_name]["against"] = efficiency(method, against, set_name, level)
        row["flops"] = method.mean("flops", "paper", "total")
        row["actual"] = method.mean("flops", "actual", "total")
        norms = [
            norm
            for run in method.runs.values()
            for norm in series(run.rows, "step", "grad_norm")[1]
        ]
        row["grad_norm_std"] = float(np.std(norms)) if norms else None
        rows.append(row)
    return rows


def _write_csv(path: Path, methods: Sequence[Method]) -> None:
    """Write every row of every arm's metrics.jsonl, and for each arm one of `_after_training`."""
    rows: list[dict[str, Any]] = []
    for method in methods:
        for seed, run in method.runs.items():
            arm = {"method": method.name, "seed": seed}
            rows += [{**arm, **row} for row in run.rows]
            rows.append({**arm, **_after_training(run)})
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _after_training(run: Run) -> dict[str, Any]:
    """What was measured after training, as a row of metrics.csv."""
    row: dict[str, Any] = {"step": "after", "flops/total": run.find("flops", "paper", "total")}
    for set_name in SET_NAMES:
        row[f"after/{set_name}/avg@1"] = run.find("plain_pass_at_1", set_name, "after")
    for set_name in SET_NAMES:
        for k, rate in (run.find("pass_at_k", set_name, "after") or {}).items():
            row[f"after/{set_name}/pass@{k}"] = rate
    for fraction, rate in (run.find("success_by_prefix_fraction", "after") or {}).items():
        row[f"after/fraction/{fraction}"] = rate
    return row


def _draw(
    methods: Sequence[Method], trace_strategies: Mapping[str, float], directory: Path
) -> list[dict[str, Any]]:
    """Draw every figure that has data, and write it as a PNG file into `directory`.

    Args:
        methods: The methods.
        trace_strategies: Means of the task's strategies over the corpus's traces.
        directory: Where the files go.

    Returns:
        For each figure its "name" and its "uri", a data URI.
    """
    names = [method.name for method in methods]
    strategies = {
        key: Panel(key.removeprefix("strategy/"), "mean over plain samples")
        for key in sorted(set(_strategy_columns(methods)))
    }
    levels = {f"strategy/{name}": mean for name, mean in trace_strategies.items()}
    columns = {
        key: _curves({method.name: method.metric(key) for method in methods})
        for key in (*GROUPS, *DYNAMICS, *UNLOCKED, *strategies)
    }
    sets = {
        set_name: _curves({method.name: method.accuracy(set_name) for method in methods})
        for set_name in SET_NAMES
    }
    rates_at_k = {
        set_name: {
            method.name: method.mean_table("pass_at_k", set_name, "after") for method in methods
        }
        for set_name in SET_NAMES
    }
    success = {"base model": methods[0].mean_table("success_by_prefix_fraction", "before")}
    for method in methods:
        success[method.name] = method.mean_table("success_by_prefix_fraction", "after")
    corpus = _largest_corpus(methods)

    makers: dict[str, Callable[[Theme], Figure | None]] = {
        "accuracy": lambda theme: figures.accuracy(names, sets, corpus, theme),
        "pass_at_k": lambda theme: figures.pass_at_k(names, rates_at_k, theme),
        "back_generalization": lambda theme: figures.matrix(success, theme),
        "groups": lambda theme: figures.panels(names, GROUPS, columns, theme),
        "dynamics": lambda theme: figures.panels(names, DYNAMICS, columns, theme),
        "unlocked": lambda theme: figures.panels(names, UNLOCKED, columns, theme),
        "strategies": lambda theme: figures.panels(names, strategies, columns, theme, levels),
    }
    pictures = []
    for name, maker in makers.items():
        image = png(maker, LIGHT)
        write_picture(directory / f"{name}.png", image)
        if image is not None:
            pictures.append({"name": name, "uri": data_uri(image)})
    return pictures


def _curves(by_method: Mapping[str, Any]) -> Curves:
    return {name: curve for name, curve in by_method.items() if curve is not None}


def _strategy_columns(methods: Sequence[Method]) -> Iterator[str]:
    for method in methods:
        for run in method.runs.values():
            for row in run.rows:
                yield from (key for key in row if key.startswith("strategy/"))


def _largest_corpus(methods: Sequence[Method]) -> float:
    """The most FLOPs that any arm has for finding problems and traces."""
    costs = [corpus_flops(run) for method in methods for run in method.runs.values()]
    return max((cost for cost in costs if cost is not None), default=0.0)


def _text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table that the command prints at its end."""
    width = max(len(name) for name in ("method", *(row["method"] for row in rows)))
    lines = [f"{'method':<{width}}{'FLOPs':>14}{'plain accuracy: training':>28}{'held out':>24}"]
    for row in rows:
        training, held_out = (_text_change(row[set_name]) for set_name in SET_NAMES)
        flops = amount(row["flops"]["mean"], "FLOP") if row["flops"] else ABSENT
        lines.append(f"{row['method']:<{width}}{flops:>14}{training:>28}{held_out:>24}")
    return "\n".join(lines).replace("\u00a0", " ")


def _text_change(accuracy: Mapping[str, Any]) -> str:
    before, after = accuracy["before"], accuracy["after"]
    if not before or not after:
        return ABSENT
    return f"{percent(before['mean'])} -> {percent(after['mean'])}"
