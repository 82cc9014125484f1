"""What a run left in its work directory: configuration, metrics, summary and samples.

What is missing, unreadable or contradictory is put into words (`Run.notes`), never filled in. A
value that is not finite counts as not recorded.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prefixrl_jax import flops
from prefixrl_jax.report.format import amount
from prefixrl_jax.report.plotting import Estimate, Row, finite, series
from prefixrl_jax.report.record_files import read_lines, read_record, read_summary

FILES = ("config.json", "metrics.jsonl", "summary.json")


@dataclasses.dataclass
class Run:
    """The records of one run.

    Attributes:
        config: config.json.
        rows: The lines of metrics.jsonl, by step.
        summary: summary.json.
        samples: What `pick_samples` picks from samples/*.jsonl.
        notes: Sentences about what is missing, unreadable or contradictory.
        fine_tuning: The lines of sft/metrics.jsonl, whose steps come before those of `rows`.
    """

    config: dict[str, Any]
    rows: list[Row]
    summary: dict[str, Any]
    samples: list[dict[str, Any]]
    notes: list[str]
    fine_tuning: list[Row] = dataclasses.field(default_factory=list)

    def find(self, *path: str) -> Any:
        """Return summary[path[0]][path[1]]..., or None where a part of it is missing."""
        return dig(self.summary, *path)


def dig(tree: Any, *path: str) -> Any:
    """Return tree[path[0]][path[1]]..., or None where a part of it is missing."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def read_run(workdir: Path) -> Run:
    """Read the records that a work directory has.

    Raises:
        FileNotFoundError: There is none of `FILES`.
        ValueError: config.json or summary.json is not a JSON object; names the file and the line.
    """
    missing = [name for name in FILES if not (workdir / name).is_file()]
    if len(missing) == len(FILES):
        raise FileNotFoundError(
            f"{workdir}: nothing to report, expected at least one of {', '.join(FILES)}"
        )
    notes = [f"{name} is missing." for name in missing]
    metrics = workdir / "metrics.jsonl"
    rows = read_metrics(metrics, notes) if metrics.is_file() else []
    sft_metrics = workdir / "sft" / "metrics.jsonl"
    fine_tuning = read_metrics(sft_metrics, notes) if sft_metrics.is_file() else []
    samples = pick_samples(sorted((workdir / "samples").glob("*.jsonl")), notes)
    run = Run(
        config=read_record(workdir / "config.json"),
        rows=rows,
        summary=read_summary(workdir / "summary.json", notes),
        samples=samples,
        notes=notes,
        fine_tuning=fine_tuning,
    )
    notes.extend(contradictions(run))
    return run


def read_metrics(path: Path, notes: list[str]) -> list[Row]:
    """Read metrics.jsonl, ordered by step; the last of several rows for one step counts.

    Adds to `notes` which rows were left out and which values are not finite.
    """
    rows = list(read_lines(path, notes))
    with_step = [row for row in rows if finite(row.get("step"))]
    by_step: dict[float, Row] = {row["step"]: row for row in with_step}
    if without_step := len(rows) - len(with_step):
        notes.append(f"{path.name}: lines without a step, left out: {without_step}.")
    if replaced := len(with_step) - len(by_step):
        notes.append(f"{path.name}: lines replaced by a later one of the same step: {replaced}.")
    not_finite = collections.Counter(
        key for row in by_step.values() for key, value in row.items() if _is_not_finite(value)
    )
    for key, times in not_finite.items():
        notes.append(
            f"{path.name}: {key} is not a finite number at {times} of {len(by_step)} steps."
        )
    if not by_step:
        notes.append(f"{path.name} holds no training step.")
    steps = sorted(by_step)
    if missing := _missing_steps(steps):
        notes.append(f"{path.name}: steps without a line, which are in no figure: {missing}.")
    return [by_step[step] for step in steps]


def _missing_steps(steps: Sequence[float]) -> str:
    """Return the ranges of whole steps from 1 on that ascending steps leave out, in words."""
    ranges = []
    for before, step in zip([0, *steps], steps):
        first = max(math.floor(before), 0) + 1
        last = math.ceil(step) - 1
        if first <= last:
            ranges.append(f"{first:,}" if first == last else f"{first:,} to {last:,}")
    more = f" and {len(ranges) - 5} more ranges" if len(ranges) > 5 else ""
    return ", ".join(ranges[:5]) + more


def _is_not_finite(value: Any) -> bool:
    # metrics.jsonl has null for a NaN.
    return value is None or (isinstance(value, float) and not finite(value))


class _Timed(NamedTuple):
    """A sample, and the step at which it was drawn: -inf before training, inf after it."""

    step: float
    sample: dict[str, Any]


def pick_samples(paths: Sequence[Path], notes: list[str]) -> list[dict[str, Any]]:
    """Return the earliest and the latest sample of each sort, plain ones first, then by step.

    A sort is plain or prefixed, and correct or not. The samples of before.jsonl lie before every
    step, those of after.jsonl after. Each sample has a new entry "when", in words. Adds to `notes`
    which sorts there are none of.
    """
    # No more is kept in memory, since the files may be larger than it.
    first: dict[tuple[str, bool], _Timed] = {}
    last: dict[tuple[str, bool], _Timed] = {}
    for timed in _read_samples(paths, notes):
        sort = (timed.sample.get("kind", "plain"), timed.sample.get("verdict") == "correct")
        if sort not in first or timed.step < first[sort].step:
            first[sort] = timed
        if sort not in last or timed.step >= last[sort].step:
            last[sort] = timed
    notes.extend(_missing_sorts(first))
    picked: list[_Timed] = []
    for sort in first:
        picked.append(first[sort])
        if last[sort] is not first[sort]:
            picked.append(last[sort])
    picked.sort(key=lambda timed: (timed.sample.get("kind", "plain") != "plain", timed.step))
    return [timed.sample for timed in picked]


def _missing_sorts(sorts: Collection[tuple[str, bool]]) -> Iterator[str]:
    if not sorts:
        yield "samples: there are none."
        return
    for kind in ("plain", "prefixed"):
        for word, correct in (("correct", True), ("wrong", False)):
            if (kind, correct) not in sorts:
                yield f"samples: there is no {word} {kind} sample."


def _read_samples(paths: Sequence[Path], notes: list[str]) -> Iterator[_Timed]:
    outside = {"before": (-math.inf, "before training"), "after": (math.inf, "after training")}
    for path in paths:
        for row in read_lines(path, notes):
            if not isinstance(row.get("kind", "plain"), str):
                notes.append(f"samples/{path.name}: a sample whose kind is no text was left out.")
                continue
            step = row["step"] if finite(row.get("step")) else 0
            at, when = outside.get(path.stem, (step, f"step {step}"))
            yield _Timed(at, {**row, "when": when})


def contradictions(run: Run) -> Iterator[str]:
    """Yield sentences about FLOPs and steps that ought to agree and do not."""
    for accounting, phases in (run.find("flops") or {}).items():
        parts = sum(value for name in flops.PHASES if finite(value := dig(phases, name)))
        total = dig(phases, "total")
        if finite(total) and _disagree(total, parts):
            yield (
                f"summary.json: the {accounting} total is {amount(total, 'FLOP')} but its parts"
                f" add up to {amount(parts, 'FLOP')}."
            )
    had = run.find("steps")
    written = run.rows[-1]["step"] if run.rows else 0
    if finite(had) and written < had:
        yield f"metrics.jsonl ends at step {written:g}, and the run has had {had:g} steps."
    spent = series(run.rows, "step", "flops/total")[1]
    total = run.find("flops", "paper", "total")
    if spent and finite(total) and _disagree(spent[-1], total):
        yield (
            f"The last step of metrics.jsonl has {amount(spent[-1], 'FLOP')} spent, summary.json"
            f" has a total of {amount(total, 'FLOP')}."
        )


def _disagree(a: float, b: float) -> bool:
    return abs(a - b) > 1e-6 * max(a, b)


def estimates(
    run: Run, set_name: str, corpus: float | None, axis: str = "flops/total"
) -> list[Estimate]:
    """Return the plain accuracy of a set against FLOPs: before, during and after training.

    Args:
        run: The run, whose steps of fine-tuning count too.
        set_name: "train" or "heldout".
        corpus: FLOPs of the corpus, the x of the accuracy before training; without it that is left
            out.
        axis: Column of FLOPs: "flops/total" in the paper's accounting, "flops/actual_total" as
            computed.
    """
    key = f"eval/{set_name}/avg@1"
    steps = [*run.fine_tuning, *run.rows]
    spent = series(steps, "step", axis)[1]
    before = _summary_estimate(run, set_name, "before", corpus)
    after = _summary_estimate(run, set_name, "after", spent[-1] if spent else None)
    during = [
        Estimate(row[axis], row[key], row.get(f"{key}_low"), row.get(f"{key}_high"))
        for row in steps
        if finite(row.get(key)) and finite(row.get(axis))
    ]
    if after:
        # It has more samples than the run's own evaluation at the last step, and replaces it.
        during = [estimate for estimate in during if estimate.x < after.x]
    return [estimate for estimate in (before, *during, after) if estimate]


def _summary_estimate(run: Run, set_name: str, when: str, x: float | None) -> Estimate | None:
    accuracy = run.find("plain_pass_at_1", set_name, when)
    if not finite(accuracy) or x is None:
        return None
    bounds = run.find("plain_pass_at_1_interval", set_name, when)
    is_pair = isinstance(bounds, list) and len(bounds) == 2
    low, high = bounds if is_pair else (None, None)
    return Estimate(x, accuracy, low, high)


def corpus_flops(run: Run, accounting: str = "paper") -> float | None:
    """Return the FLOPs of select and collect in an accounting; None unless both are recorded."""
    phases = [run.find("flops", accounting, phase) for phase in ("select", "collect")]
    return sum(phases) if all(map(finite, phases)) else None
