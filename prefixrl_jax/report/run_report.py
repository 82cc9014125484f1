"""The report of a run: report.html and figures/*.png, from the records in its work directory.

What a run did not record is named in the page, never filled in.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from prefixrl_jax import flops
from prefixrl_jax.config import flatten
from prefixrl_jax.report import run_figures
from prefixrl_jax.report.format import ABSENT, amount, count, interval, percent
from prefixrl_jax.report.page import data_uri, write_page, write_picture
from prefixrl_jax.report.plotting import DARK, LIGHT, SET_NAMES, Row, Theme, finite, png, series
from prefixrl_jax.report.records import Run, corpus_flops, estimates, read_run

TEMPLATE = "run_report.html.jinja"


def write_report(workdir: Path) -> Path:
    """Write report.html and figures/*.png of the run in `workdir`; return the path of the page.

    Raises:
        FileNotFoundError: The directory has none of config.json, metrics.jsonl and summary.json.
        ValueError: config.json or summary.json is not a JSON object; names the file and the line.
    """
    workdir = Path(workdir)
    run = read_run(workdir)
    speeds = series(run.rows, "step", "perf/tokens_per_second")[1]
    path = workdir / "report.html"
    write_page(
        path,
        TEMPLATE,
        run=run,
        summary=run.summary,
        headline=headline(run),
        results=results(run),
        pictures=draw(run, workdir / "figures"),
        ledger=ledger(run),
        step_times=step_times(run.rows),
        settings=list(settings(run.config).items()),
        speed=statistics.median(speeds) if speeds else None,
    )
    return path


class Change(NamedTuple):
    """Where accuracy was measured, "on the training problems", and what it did there."""

    where: str
    effect: str


def headline(run: Run) -> str:
    """Return a sentence: what training did to plain accuracy on each set, and what it cost."""
    changes = [change for name in SET_NAMES if (change := _change(run, name))]
    if not changes:
        return (
            "This run has no plain accuracy before and after training, so nothing can be said about"
            " what training did."
        )
    steps = "an unrecorded number of steps"
    if run.rows:
        steps = f"{len(run.rows):,} step{'' if len(run.rows) == 1 else 's'}"
    cost = "an unrecorded number of FLOPs"
    total = run.find("flops", "paper", "total")
    if finite(total):
        cost = f"{amount(total, 'FLOP')} (paper accounting, corpus included)"
    first, *others = changes
    clauses = [f"{first.where} {first.effect}"]
    clauses += [f"{change.where} it {change.effect}" for change in others]
    return f"In {steps} and {cost}, plain accuracy {'; '.join(clauses)}."


def _change(run: Run, set_name: str) -> Change | None:
    """What accuracy did on a set, or None if it was not measured both before and after."""
    before, after = (run.find("plain_pass_at_1", set_name, when) for when in ("before", "after"))
    if not (finite(before) and finite(after)):
        return None
    problems = run.find("hard_set", set_name)
    number = f"{count(problems)} " if finite(problems) else ""
    where = f"on the {number}{SET_NAMES[set_name]}"
    values = f"from {percent(before)} to {percent(after)}"
    intervals = [
        run.find("plain_pass_at_1_interval", set_name, when) for when in ("before", "after")
    ]
    if ABSENT in map(interval, intervals):
        return Change(where, f"went {values} (intervals not recorded)")
    (low_before, high_before), (low_after, high_after) = intervals
    if low_before <= high_after and low_after <= high_before:
        effect = f"went {values} (the intervals overlap: the difference may be chance)"
        return Change(where, effect)
    return Change(where, f"{'rose' if after > before else 'fell'} {values}")


def results(run: Run) -> list[dict[str, Any]]:
    """Return the rows of the table of results.

    For each set plain pass@1 with its intervals, and pass@k for the largest k that was measured.
    """
    table = []
    for name, words in SET_NAMES.items():
        rates = {when: run.find("plain_pass_at_1", name, when) for when in ("before", "after")}
        intervals = {when: run.find("plain_pass_at_1_interval", name, when) for when in rates}
        table.append({"set": words, "measure": "pass@1", **rates, "intervals": intervals})
        curves = {when: run.find("pass_at_k", name, when) or {} for when in rates}
        if k := max((k for curve in curves.values() for k in curve), key=float, default=None):
            rates = {when: curve.get(k) for when, curve in curves.items()}
            table.append({"set": words, "measure": f"pass@{k}", **rates, "intervals": {}})
    return table


def ledger(run: Run) -> dict[str, Any]:
    """Return the table of FLOPs: "names" of the accountings, and "rows" of phases.

    A row has its "phase", its "values" by accounting, its "share" of the paper's total, and
    whether it is "outside" the total.
    """
    recorded = run.find("flops") or {}
    names = [name for name in flops.ACCOUNTINGS if isinstance(recorded.get(name), Mapping)]
    total = run.find("flops", "paper", "total")
    rows = []
    for phase in (*flops.PHASES, "total", *flops.OUTSIDE):
        outside = phase in flops.OUTSIDE
        paper = run.find("flops", "paper", phase)
        share = None
        if finite(paper) and finite(total) and total > 0 and not outside:
            share = paper / total
        values = [recorded[name].get(phase) for name in names]
        rows.append({"phase": phase, "values": values, "share": share, "outside": outside})
    return {"names": names, "rows": rows}


def step_times(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the "median" and "sum" over steps of each recorded "part" of a step, in seconds.

    The sum has the compilation of the first steps in it, the median has not.
    """
    table = []
    for part in ("sample", "grade", "train"):
        if times := series(rows, "step", f"time/{part}")[1]:
            table.append({"part": part, "median": statistics.median(times), "sum": sum(times)})
    return table


def settings(config: dict[str, Any]) -> dict[str, str]:
    """Return the values of a configuration as JSON, by dotted name."""
    return {name: json.dumps(value, ensure_ascii=False) for name, value in flatten(config).items()}


def draw(run: Run, directory: Path) -> list[dict[str, Any]]:
    """Draw every figure, and write the light ones as PNG files into `directory`.

    Returns:
        For each figure its "name", and "light" and "dark" as data URIs; None if it has no data.
    """
    corpus = corpus_flops(run)
    evaluations = {name: points for name in SET_NAMES if (points := estimates(run, name, corpus))}
    batch = series(run.rows, "flops/total", "reward/plain")
    success = run.find("success_by_prefix_fraction") or {}
    rates_at_k = run.find("pass_at_k") or {}
    makers: dict[str, Callable[[Theme], Figure | None]] = {
        "accuracy": lambda theme: run_figures.accuracy(batch, evaluations, corpus, theme),
        "groups": lambda theme: run_figures.groups(run.rows, theme),
        "prefix_fraction": lambda theme: run_figures.prefix_fraction(success, theme),
        "pass_at_k": lambda theme: run_figures.pass_at_k(rates_at_k, theme),
        "lengths": lambda theme: run_figures.lengths(run.rows, theme),
        "dynamics": lambda theme: run_figures.dynamics(run.rows, theme),
        "logprob_gap": lambda theme: run_figures.logprob_gap(run.rows, theme),
    }
    pictures = []
    for name, maker in makers.items():
        light, dark = png(maker, LIGHT), png(maker, DARK)
        write_picture(directory / f"{name}.png", light)
        pictures.append({"name": name, "light": data_uri(light), "dark": data_uri(dark)})
    return pictures
