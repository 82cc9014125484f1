"""Traces from elsewhere: a JSONL file of (problem, trace), or another run's corpus.

A line is {"problem": id or question, "trace": text}, and may have "flops": what the trace has cost,
in paper accounting. A trace in the run's own tokens has "token_ids", and in "tokenizer" the
fingerprint of the tokenizer they are of. Any other is tokenised here, once, and marked foreign: it
is cut by the new ids, which need not be those that the model would write.

The corpus of a run is its folder corpus/dataset; the model may have been another one, the tokenizer
must be the same. Each of its traces costs an equal share of all that run's collecting, the problems
that stayed without one included.

Every trace is graded here; lines that do not become traces are listed with the reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefixrl_jax.corpus.attempts import Attempts, add_records, attempts_in_log
from prefixrl_jax.corpus.shared_log import SharedLog
from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.model import tokenizer as tokenizers
from prefixrl_jax.runtime.files import write_text
from prefixrl_jax.runtime.processes import local_slice, on_primary
from prefixrl_jax.tasks.rows import read_rows
from prefixrl_jax.tasks.task import Problem, Task, Verdict, begin_grading

FIELD = "collect.traces_path"


@dataclasses.dataclass(frozen=True)
class ImportedLine:
    """One line of the file.

    Attributes:
        number: of the line, from 1; its sample id in the log.
        problem: id or question of the problem it names.
        token_ids: of the trace, its end included.
        source: "imported" if the ids came with the line, else "foreign".
        flops: what the trace has cost, paper accounting.
    """

    number: int
    problem: str
    token_ids: list[int]
    source: str
    flops: float


def read_lines(path: str, task: Task) -> list[ImportedLine]:
    """Read the lines of the file, or of the dataset.

    Raises ValueError naming line and field of a malformed one.
    """
    tokenizer = tokenizers.fingerprint(task.tokenizer)
    common = _common_to_corpus(Path(path), tokenizer)
    lines = []
    for number, (place, row) in enumerate(read_rows(path, "train", FIELD), start=1):
        try:
            if isinstance(row, ValueError):
                raise row
            if not isinstance(row, dict):
                raise ValueError("a JSON object is expected")
            if common:
                row = {"problem": row.get("problem_id")} | row | common
            problem = _text(row, "problem").strip()
            token_ids, source = _token_ids(row, task, tokenizer)
            lines.append(ImportedLine(number, problem, token_ids, source, _flops(row)))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    if not lines:
        raise ValueError(f"{FIELD}={path!r}: no trace in it")
    return lines


def _common_to_corpus(path: Path, tokenizer: str) -> dict[str, Any]:
    """Fields that all traces of a run's dataset share; none for any other file."""
    if not (path / "metadata.json").is_file():
        return {}
    metadata = json.loads((path / "metadata.json").read_text())
    if metadata.get("tokenizer") != tokenizer:
        raise ValueError(
            f"{FIELD}={str(path)!r}: its token ids are of tokenizer {metadata.get('tokenizer')},"
            f" and those of this run of {tokenizer}; lines of {{'problem': id or question, 'trace':"
            " text} are accepted from any model"
        )
    common: dict[str, Any] = {"tokenizer": tokenizer}
    totals = metadata.get("statistics", {})
    if "collect_flops" in totals:
        common["flops"] = totals["collect_flops"] / totals["solved"]
    return common


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"field {field!r} is missing, empty or no text; a line is {{'problem': id or question,"
            " 'trace': text}"
        )
    return value


def _flops(row: Mapping[str, Any]) -> float:
    flops = row.get("flops", 0.0)
    is_number = isinstance(flops, int | float) and not isinstance(flops, bool)
    if not is_number or not 0 <= flops < float("inf"):
        raise ValueError(f"field 'flops' is {flops!r}; a number, at least 0, is expected")
    return float(flops)


def _token_ids(row: Mapping[str, Any], task: Task, tokenizer: str) -> tuple[list[int], str]:
    """The trace's token ids, its end included, and their source."""
    if "token_ids" in row and row.get("tokenizer") == tokenizer:
        ids = row["token_ids"]
        source = "imported"
        size = len(task.tokenizer)
        is_list = isinstance(ids, list) and bool(ids)
        if not is_list or not all(isinstance(i, int) and 0 <= i < size for i in ids):
            raise ValueError(
                f"field 'token_ids': ids from 0 to {size - 1} are expected, at least one"
            )
    else:
        ids = task.tokenizer.encode(_text(row, "trace"), add_special_tokens=False)
        source = "foreign"
    ended = bool(ids) and ids[-1] in task.stop_ids
    return (ids if ended else [*ids, task.stop_ids[0]]), source


def lines_fingerprint(lines: Sequence[ImportedLine]) -> str:
    """Return 16 hex digits that identify the lines."""
    values = json.dumps([dataclasses.astuple(line) for line in lines])
    return hashlib.sha256(values.encode()).hexdigest()[:16]


def import_traces(
    lines: Sequence[ImportedLine],
    problems: Sequence[Problem],
    task: Task,
    longest: int,
    log: SharedLog,
    rejected: Path,
) -> tuple[dict[str, Attempts], float]:
    """Grade the lines and log them; what the log has already is not graded again.

    Args:
        lines: of the file.
        problems: the hard problems.
        task: grades.
        longest: tokens that a trace may have.
        log: of the corpus.
        rejected: JSONL file for the lines that did not become traces, with the reason.

    Returns:
        Attempts at the problems by id, one for each line that may be a trace of theirs, and the
        FLOPs that those lines declare.
    """
    by_question = {str(p.data["question"]).strip(): p for p in problems if "question" in p.data}
    by_name = by_question | {p.id: p for p in problems}
    problem_of = {line.number: by_name.get(line.problem) for line in lines}
    reasons: dict[int, str] = {}
    gradable: list[tuple[ImportedLine, Problem]] = []
    for line in lines:
        problem = problem_of[line.number]
        if problem is None:
            reasons[line.number] = (
                f"no problem of the hard set has the id or question {line.problem!r}"
            )
        elif len(line.token_ids) > longest:
            reasons[line.number] = (
                f"{len(line.token_ids)} tokens; sampling.context_buckets leave room for {longest}"
            )
        else:
            gradable.append((line, problem))
    attempts = attempts_in_log(log.records, "collect", problems, task)
    _grade(gradable, attempts, task, log)
    for line, problem in gradable:
        if reason := _why_unused(line, attempts[problem.id]):
            reasons[line.number] = reason
    listed = [{"line": number, "reason": reasons[number]} for number in sorted(reasons)]
    on_primary(write_text, rejected, "".join(json.dumps(entry) + "\n" for entry in listed))
    flops = sum(line.flops for line in lines if problem_of[line.number])
    return attempts, flops


def _grade(
    lines: list[tuple[ImportedLine, Problem]],
    attempts: dict[str, Attempts],
    task: Task,
    log: SharedLog,
) -> None:
    """Grade the lines that the log does not have, each process its part; `attempts` gets all."""
    ungraded = [(line, p) for line, p in lines if line.number not in attempts[p.id].verdicts]
    # All are handed to the grader before the first verdict is waited for.
    grading = [
        (line, problem, begin_grading(task, problem, line.token_ids))
        for line, problem in local_slice(ungraded)
    ]
    for line, problem, verdict in grading:
        log.append(_record(line, problem, task, verdict()))
    add_records(attempts, log.share(wait=True), "collect")


def _why_unused(line: ImportedLine, attempts: Attempts) -> str:
    """Why a graded line is no trace of the corpus; "" if it is one."""
    verdict = attempts.verdicts[line.number]
    if verdict is not Verdict.CORRECT:
        return f"graded {verdict.value}"
    first = min(attempts.correct)
    return "" if line.number == first else f"line {first} is a correct trace of the same problem"


def _record(line: ImportedLine, problem: Problem, task: Task, verdict: Verdict) -> dict[str, Any]:
    """A record of the log, as of a sample whose id is the line's number."""
    record = {
        "stage": "collect",
        "problem": problem.id,
        "sample": line.number,
        "verdict": verdict.value,
        "tokens": len(line.token_ids),
    }
    if verdict is Verdict.CORRECT:
        trace = Trace(
            problem_id=problem.id,
            sample_id=line.number,
            context_ids=task.render(problem),
            token_ids=line.token_ids,
            logprobs=[],
            finish_reason="stop",
            samples=0,
            flops=line.flops,
            source=line.source,
        )
        record["trace"] = trace.to_record()
    return record
