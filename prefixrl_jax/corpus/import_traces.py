"""Traces from elsewhere: a JSONL file of (problem, trace), or another run's corpus.

They are graded here; what fails is listed.

A line is {"problem": id or question, "trace": text}, and may have "flops": what the trace has cost,
in paper accounting. A trace in the run's own tokens has "token_ids", and in "tokenizer" the
fingerprint of the tokenizer they are of. Any other is tokenised here, once, and marked foreign: it
is cut by the new ids, which need not be those that the model would write.

The corpus of a run is its folder corpus/dataset; the model may have been another one, the tokenizer
must be the same. Each of its traces costs an equal share of all that run's collecting, the problems
that stayed without one included.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefixrl_jax.corpus.collect import Attempts, replay, take_records
from prefixrl_jax.corpus.shared_log import SharedLog
from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.model import tokenizer as tokenizers
from prefixrl_jax.runtime.files import write_text
from prefixrl_jax.runtime.processes import local_slice, on_primary
from prefixrl_jax.tasks.rows import read_rows
from prefixrl_jax.tasks.task import Problem, Task, Verdict, begin_grading

FIELD = "collect.traces_path"


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the file: its number from 1, the problem it names, the trace's token ids with
    their end, and what it cost.
    """

    number: int
    problem: str
    token_ids: list[int]
    source: str  # "imported" if the ids came with the line, else "foreign"
    flops: float


def read_traces(path: str, task: Task) -> list[Line]:
    """The lines of the file, or of the dataset; raises ValueError naming line and field of a
    malformed one.
    """
    own, lines = tokenizers.fingerprint(task.tokenizer), []
    common = _of_corpus(Path(path), own)
    for number, (where, row) in enumerate(read_rows(path, "train", FIELD), start=1):
        try:
            if not isinstance(row, dict):
                raise (
                    row if isinstance(row, ValueError) else ValueError("a JSON object is expected")
                )
            row = {"problem": row.get("problem_id")} | row | common if common else row
            flops = row.get("flops", 0.0)
            if (
                isinstance(flops, bool)
                or not isinstance(flops, int | float)
                or not 0 <= flops < float("inf")
            ):
                raise ValueError(f"field 'flops' is {flops!r}; a number, at least 0, is expected")
            lines.append(
                Line(number, _text(row, "problem").strip(), *_ids(row, task, own), float(flops))
            )
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if not lines:
        raise ValueError(f"{FIELD}={path!r}: no trace in it")
    return lines


def _of_corpus(path: Path, own: str) -> dict[str, Any]:
    """What all traces of a run's dataset have in common; nothing for any other file."""
    if not (path / "metadata.json").is_file():
        return {}
    metadata = json.loads((path / "metadata.json").read_text())
    tokenizer, totals = metadata.get("tokenizer"), metadata.get("statistics", {})
    if tokenizer != own:
        raise ValueError(
            f"{FIELD}={str(path)!r}: its token ids are of tokenizer {tokenizer}, and those of this"
            f" run of {own}; lines of {{'problem': id or question, 'trace': text}} are accepted"
            " from any model"
        )
    cost = (
        {"flops": totals["collect_flops"] / totals["solved"]} if "collect_flops" in totals else {}
    )
    return {"tokenizer": tokenizer, **cost}


def fingerprint(lines: list[Line]) -> str:
    """16 hex digits that identify the lines."""
    return hashlib.sha256(
        json.dumps([dataclasses.astuple(line) for line in lines]).encode()
    ).hexdigest()[:16]


def import_traces(
    lines: list[Line],
    problems: list[Problem],
    task: Task,
    longest: int,
    log: SharedLog,
    rejected: Path,
) -> tuple[dict[str, Attempts], float]:
    """Attempts at the problems by id, one for each line that may be a trace of theirs, and the
    FLOPs that those lines declare.

    longest: tokens that a trace may have. rejected: the JSONL file in which the lines that did not
    become traces are listed, with the reason. What the log knows is not graded again.
    """
    by_name = {str(p.data["question"]).strip(): p for p in problems if "question" in p.data} | {
        p.id: p for p in problems
    }
    named = {line.number: by_name.get(line.problem) for line in lines}
    reasons = {
        line.number: reason
        for line in lines
        if (reason := _unfit(line, named[line.number], longest))
    }
    fit = [(line, p) for line in lines if line.number not in reasons and (p := named[line.number])]
    found = replay(log.records, "collect", problems, task)
    open_lines = local_slice(
        [(line, p) for line, p in fit if line.number not in found[p.id].verdicts]
    )
    grading = [(line, p, begin_grading(task, p, line.token_ids)) for line, p in open_lines]
    for line, p, verdict in grading:
        log.append(_record(line, p, task, verdict()))
    take_records(found, log.share(wait=True), "collect")
    reasons |= {line.number: reason for line, p in fit if (reason := _unused(line, found[p.id]))}
    listed = [{"line": number, "reason": reasons[number]} for number in sorted(reasons)]
    on_primary(write_text, rejected, "".join(json.dumps(entry) + "\n" for entry in listed))
    return found, sum(line.flops for line in lines if named[line.number])


def _unfit(line: Line, problem: Problem | None, longest: int) -> str:
    """Why a line cannot be a trace of this run, whatever a grader says; "" if it may be one."""
    if problem is None:
        return f"no problem of the hard set has the id or question {line.problem!r}"
    too_long = len(line.token_ids) > longest
    return (
        f"{len(line.token_ids)} tokens; sampling.context_buckets leave room for {longest}"
        if too_long
        else ""
    )


def _unused(line: Line, attempts: Attempts) -> str:
    """Why a graded line is no trace of the corpus; "" if it is one."""
    if (verdict := attempts.verdicts[line.number]) is not Verdict.CORRECT:
        return f"graded {verdict.value}"
    first = min(attempts.correct)
    return "" if line.number == first else f"line {first} is a correct trace of the same problem"


def _record(line: Line, problem: Problem, task: Task, verdict: Verdict) -> dict[str, Any]:
    """A record of the log, as of a sample whose id is the line's number."""
    record = {
        "stage": "collect",
        "problem": problem.id,
        "sample": line.number,
        "verdict": verdict.value,
        "tokens": len(line.token_ids),
    }
    if verdict is not Verdict.CORRECT:
        return record
    context = task.render(problem)
    trace = Trace(
        problem.id, line.number, context, line.token_ids, [], "stop", 0, line.flops, line.source
    )
    return record | {"trace": trace.to_record()}


def _ids(row: Mapping[str, Any], task: Task, own: str) -> tuple[list[int], str]:
    """The trace's token ids, its end included, and their source."""
    if "token_ids" in row and row.get("tokenizer") == own:
        ids, source = row["token_ids"], "imported"
        if (
            not isinstance(ids, list)
            or not ids
            or not all(isinstance(i, int) and 0 <= i < len(task.tokenizer) for i in ids)
        ):
            raise ValueError(
                f"field 'token_ids': ids from 0 to {len(task.tokenizer) - 1} are expected, at"
                " least one"
            )
    else:
        ids, source = (
            task.tokenizer.encode(_text(row, "trace"), add_special_tokens=False),
            "foreign",
        )
    return (ids if ids and ids[-1] in task.stop_ids else [*ids, task.stop_ids[0]]), source


def _text(row: Mapping[str, Any], field: str) -> str:
    if not isinstance(value := row.get(field), str) or not value.strip():
        raise ValueError(
            f"field {field!r} is missing, empty or no text; a line is {{'problem': id or question,"
            " 'trace': text}"
        )
    return value
