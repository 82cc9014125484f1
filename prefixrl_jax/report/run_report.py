"""The report of a run: reads a work directory, writes report.html and figures/*.png.

The page opens offline: style and pictures are inside it, there are no scripts and no links. What a
run did not record is named in the report, never filled in; a value that is not finite counts as not
recorded, and is counted.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import json
import pathlib
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jinja2

from prefixrl_jax import flops
from prefixrl_jax.report import run_figures as figures
from prefixrl_jax.report.format import (
    ABSENT,
    amount,
    count,
    interval,
    number,
    percent,
    seconds,
    visible,
)
from prefixrl_jax.report.run_figures import DARK, LIGHT, Estimate, Row, Theme, finite, series

TEMPLATE = "run_report.html.jinja"
SETS = figures.SET_NAMES


@dataclasses.dataclass
class Run:
    """What a work directory says.

    `notes` are sentences about what is missing, unreadable or contradictory.
    """

    config: dict[str, Any]
    rows: list[Row]
    summary: dict[str, Any]
    samples: list[dict[str, Any]]
    notes: list[str]
    fine_tuning: list[Row] = dataclasses.field(default_factory=list)  # steps before `rows`

    def find(self, *path: str) -> Any:
        """The entry of summary.json under `path`, or None if any part of it is missing."""
        return dig(self.summary, *path)


def dig(tree: Any, *path: str) -> Any:
    """tree[path[0]][path[1]]..., or None where a key is missing or its parent is not a mapping."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def write_report(workdir: pathlib.Path) -> pathlib.Path:
    """Writes report.html and figures/*.png of the run in `workdir`; returns the path of the page.

    Raises FileNotFoundError if the directory holds none of config.json, metrics.jsonl and
    summary.json, and ValueError, with file and line, if config.json or summary.json is not a JSON
    object.
    """
    workdir = pathlib.Path(workdir)
    run = read_run(workdir)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (amount, percent, interval, seconds, count, number, visible):
        environment.filters[function.__name__] = function
    speeds = series(run.rows, "step", "perf/tokens_per_second")[1]
    page = environment.get_template(TEMPLATE).render(
        run=run,
        s=run.summary,
        headline=headline(run),
        results=results(run),
        pictures=draw(run, workdir / "figures"),
        ledger=ledger(run),
        step_times=step_times(run.rows),
        settings=list(flatten(run.config)),
        speed=statistics.median(speeds) if speeds else None,
    )
    path = workdir / "report.html"
    # Sampled text may hold half of a surrogate pair, which JSON can carry and UTF-8 cannot.
    path.write_text(page, encoding="utf-8", errors="replace")
    return path


# Reading


def read_run(workdir: pathlib.Path) -> Run:
    """Reads what there is of a run; see `write_report` for the errors."""
    names = ("config.json", "metrics.jsonl", "summary.json")
    missing = [name for name in names if not (workdir / name).is_file()]
    if len(missing) == len(names):
        raise FileNotFoundError(
            f"{workdir}: nothing to report, expected at least one of {', '.join(names)}"
        )
    notes = [f"{name} is missing." for name in missing]
    rows = read_metrics(workdir / "metrics.jsonl", notes) if "metrics.jsonl" not in missing else []
    tuned = workdir / "sft" / "metrics.jsonl"
    fine_tuning = read_metrics(tuned, notes) if tuned.is_file() else []
    samples = pick_samples(sorted((workdir / "samples").glob("*.jsonl")), notes)
    run = Run(
        _read_object(workdir / "config.json"),
        rows,
        _read_object(workdir / "summary.json"),
        samples,
        notes,
        fine_tuning,
    )
    notes.extend(contradictions(run))
    return run


def _read_object(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _lines(path: pathlib.Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line.

    A line that is none (a write cut short) is noted and passed over.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for number_, line in enumerate(file, start=1):
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if isinstance(value, dict):
                yield value
            elif line.strip():
                notes.append(f"{path.name}, line {number_} is not a JSON object and was left out.")


def read_metrics(path: pathlib.Path, notes: list[str]) -> list[Row]:
    """Rows of metrics.jsonl by step; of several rows for one step the last counts.

    Adds to `notes` what is odd.
    """
    by_step: dict[float, Row] = {}
    odd: collections.Counter[str] = collections.Counter()
    lines = list(_lines(path, notes))
    for row in lines:
        if finite(row.get("step")):
            by_step[row["step"]] = row
    if without := sum(not finite(row.get("step")) for row in lines):
        notes.append(f"{path.name}: lines without a step, left out: {without}.")
    if again := len(lines) - without - len(by_step):
        notes.append(f"{path.name}: lines replaced by a later one of the same step: {again}.")
    for read in by_step.values():
        odd.update(
            key
            for key, value in read.items()
            if value is None or (isinstance(value, float) and not finite(value))
        )
    notes.extend(
        f"{path.name}: {key} is not a finite number at {times} of {len(by_step)} steps."
        for key, times in odd.items()
    )
    if not by_step:
        notes.append(f"{path.name} holds no training step.")
    return [by_step[step] for step in sorted(by_step)]


def pick_samples(paths: list[pathlib.Path], notes: list[str]) -> list[dict[str, Any]]:
    """The earliest and the latest sample of each sort (plain or prefixed, correct or not), plain
    first, then by time.

    Only those are kept in memory: files may be larger than it. before.jsonl lies before every step,
    after.jsonl after.
    """
    edges: dict[tuple[str, bool], list[tuple[float, dict[str, Any]]]] = {}
    for path in paths:
        label = {"before": "before training", "after": "after training"}.get(path.stem)
        for row in _lines(path, notes):
            step = row["step"] if finite(row.get("step")) else 0
            at = {"before": float("-inf"), "after": float("inf")}.get(path.stem, step)
            found = (at, {**row, "when": label or f"step {step}"})
            sort = (row.get("kind", "plain"), row.get("verdict") == "correct")
            first, last = edges.get(sort, (found, found))
            edges[sort] = [found if at < first[0] else first, found if at >= last[0] else last]
    for kind in ("plain", "prefixed"):
        absent = [
            word
            for word, right in (("correct", True), ("wrong", False))
            if (kind, right) not in edges
        ]
        notes.extend(f"samples: there is no {word} {kind} sample." for word in absent if edges)
    if not edges:
        notes.append("samples: there are none.")
    unique = {
        id(row): (kind != "plain", at, row) for (kind, _), pair in edges.items() for at, row in pair
    }
    return [row for _, _, row in sorted(unique.values(), key=lambda item: item[:2])]


def contradictions(run: Run) -> Iterator[str]:
    """Sentences about numbers that ought to agree and do not."""
    for accounting, phases in (run.find("flops") or {}).items():
        parts = sum(value for name in flops.PHASES if finite(value := dig(phases, name)))
        total = dig(phases, "total")
        if finite(total) and abs(total - parts) > 1e-6 * max(total, parts):
            shown, added = amount(total, "FLOP"), amount(parts, "FLOP")
            yield (
                f"summary.json: the {accounting} total is {shown} but its parts add up to {added}."
            )
    spent, total = series(run.rows, "step", "flops/total")[1], run.find("flops", "paper", "total")
    if spent and finite(total) and abs(spent[-1] - total) > 1e-6 * max(spent[-1], total):
        shown, other = amount(spent[-1], "FLOP"), amount(total, "FLOP")
        yield (
            f"The last step of metrics.jsonl has {shown} spent, summary.json has a total of"
            f" {other}."
        )


# Sections


def headline(run: Run) -> str:
    """One sentence or two: what training did to plain accuracy on each set, and what it cost."""
    parts = [change for name in SETS if (change := _change(run, name))]
    if not parts:
        return (
            "This run has no plain accuracy before and after training, so nothing can be said about"
            " what training did."
        )
    steps = (
        f"{len(run.rows):,} step{'s' * (len(run.rows) != 1)}"
        if run.rows
        else "an unrecorded number of steps"
    )
    total = run.find("flops", "paper", "total")
    cost = (
        f"{amount(total, 'FLOP')} (paper accounting, corpus included)"
        if finite(total)
        else "an unrecorded number of FLOPs"
    )
    changes = "; ".join(f"{where} {'it ' * (i > 0)}{what}" for i, (where, what) in enumerate(parts))
    return f"In {steps} and {cost}, plain accuracy {changes}."


def _change(run: Run, name: str) -> tuple[str, str] | None:
    """("on the problems of a set", what accuracy did there), or None if it was not measured before
    and after.
    """
    before, after = (run.find("plain_pass_at_1", name, when) for when in ("before", "after"))
    if not (finite(before) and finite(after)):
        return None
    problems = run.find("hard_set", name)
    where = f"on the {count(problems) + ' ' if finite(problems) else ''}{SETS[name]}"
    values = f"from {percent(before)} to {percent(after)}"
    bounds = [run.find("plain_pass_at_1_interval", name, when) for when in ("before", "after")]
    if ABSENT in map(interval, bounds):
        return where, f"went {values} (intervals not recorded)"
    (low0, high0), (low1, high1) = bounds
    if low1 > high0 or high1 < low0:
        return where, f"{'rose' if after > before else 'fell'} {values}"
    return where, f"went {values} (the intervals overlap: the difference may be chance)"


def results(run: Run) -> list[dict[str, Any]]:
    """Rows of the table of results: plain pass@1 with intervals for each set, and pass@k for its
    largest k.
    """
    table = []
    for name, words in SETS.items():
        pair = {when: run.find("plain_pass_at_1", name, when) for when in ("before", "after")}
        bounds = {when: run.find("plain_pass_at_1_interval", name, when) for when in pair}
        table.append({"set": words, "measure": "pass@1", **pair, "intervals": bounds})
        curves = {when: run.find("pass_at_k", name, when) or {} for when in pair}
        if k := max((k for curve in curves.values() for k in curve), key=float, default=None):
            rates = {when: curve.get(k) for when, curve in curves.items()}
            table.append({"set": words, "measure": f"pass@{k}", **rates, "intervals": {}})
    return table


def ledger(run: Run) -> dict[str, Any]:
    """The FLOPs table: accountings, and rows (phase, FLOPs by accounting, share of the paper total,
    whether it counts).
    """
    recorded = run.find("flops") or {}
    names = [name for name in flops.ACCOUNTINGS if isinstance(recorded.get(name), Mapping)]
    total = run.find("flops", "paper", "total")
    rows = []
    for phase in (*flops.PHASES, "total", *flops.OUTSIDE):
        paper = run.find("flops", "paper", phase)
        share = (
            paper / total
            if finite(paper) and finite(total) and total > 0 and phase not in flops.OUTSIDE
            else None
        )
        values = [recorded[name].get(phase) for name in names]
        rows.append(
            {"phase": phase, "values": values, "share": share, "outside": phase in flops.OUTSIDE}
        )
    return {"names": names, "rows": rows}


def step_times(rows: list[Row]) -> list[dict[str, Any]]:
    """Median and sum over steps of each recorded part of a step, in seconds.

    The median leaves compilation aside.
    """
    columns = {
        part: series(rows, "step", f"time/{part}")[1] for part in ("sample", "grade", "train")
    }
    return [
        {"part": part, "median": statistics.median(v), "sum": sum(v)}
        for part, v in columns.items()
        if v
    ]


def flatten(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value as JSON) of every leaf of a nested configuration, in its own order."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", json.dumps(value, ensure_ascii=False)


# Pictures


def estimates(
    run: Run, name: str, corpus: float | None, axis: str = "flops/total"
) -> list[Estimate]:
    """Plain accuracy of a set against FLOPs: before training (at the corpus's cost), each
    evaluation of the run, and after. axis: the column of FLOPs, in paper accounting or as really
    computed ("flops/actual_total").
    """
    key, steps = f"eval/{name}/avg@1", [*run.fine_tuning, *run.rows]
    end = series(steps, "step", axis)[1]

    def final(when: str, flops: float | None) -> list[Estimate]:
        value = run.find("plain_pass_at_1", name, when)
        if not finite(value) or flops is None:
            return []
        low, high = run.find("plain_pass_at_1_interval", name, when) or (None, None)
        return [Estimate(flops, value, low, high)]

    # drawn with more samples than the run's own at the last step
    last = final("after", end[-1] if end else None)
    kept = [row for row in steps if finite(row.get(key)) and finite(row.get(axis))]
    during = [
        Estimate(row[axis], row[key], row.get(f"{key}_low"), row.get(f"{key}_high")) for row in kept
    ]
    return final("before", corpus) + [e for e in during if not last or e.x < last[0].x] + last


def corpus_flops(run: Run, accounting: str = "paper") -> float | None:
    """FLOPs of select and collect in the ledger, in "paper" or "actual" accounting; None if it has
    not both.
    """
    parts = [run.find("flops", accounting, phase) for phase in ("select", "collect")]
    return sum(parts) if all(map(finite, parts)) else None


def draw(run: Run, directory: pathlib.Path) -> list[dict[str, Any]]:
    """Draws every figure: light as a PNG in `directory`, light and dark as data URIs; with text
    where there is no data.
    """
    corpus = corpus_flops(run)
    evals = {name: points for name in SETS if (points := estimates(run, name, corpus))}
    batch = series(run.rows, "flops/total", "reward/plain")
    makers: dict[str, Callable[[Theme], Any]] = {
        "accuracy": lambda theme: figures.accuracy(batch, evals, corpus, theme),
        "groups": lambda theme: figures.groups(run.rows, theme),
        "prefix_fraction": lambda theme: figures.prefix_fraction(
            run.find("success_by_prefix_fraction") or {}, theme
        ),
        "pass_at_k": lambda theme: figures.pass_at_k(run.find("pass_at_k") or {}, theme),
        "lengths": lambda theme: figures.lengths(run.rows, theme),
        "dynamics": lambda theme: figures.dynamics(run.rows, theme),
        "logprob_gap": lambda theme: figures.logprob_gap(run.rows, theme),
    }
    directory.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name, maker in makers.items():
        light, dark = figures.png(maker, LIGHT), figures.png(maker, DARK)
        path = directory / f"{name}.png"
        if light is None:
            # of an earlier report: it would pass for a figure of this run
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(light)
        pictures.append({"name": name, "light": _data_uri(light), "dark": _data_uri(dark)})
    return pictures


def _data_uri(image: bytes | None) -> str | None:
    return (
        None
        if image is None
        else "data:image/png;base64," + base64.b64encode(image).decode("ascii")
    )
