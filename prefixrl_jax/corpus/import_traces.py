"""Grade traces from elsewhere, and enter those that count into the log.

Lines that do not become traces are listed with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefixrl_jax.corpus.attempts import Attempts, add_records, attempts_in_log
from prefixrl_jax.corpus.shared_log import SharedLog
from prefixrl_jax.corpus.trace_file import ImportedLine
from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.runtime.files import write_text
from prefixrl_jax.runtime.processes import local_slice, on_primary
from prefixrl_jax.tasks.rows import excerpt
from prefixrl_jax.tasks.task import Problem, Task, Verdict, begin_grading


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
                f"no problem of the hard set has the id or question {excerpt(line.problem, 200)}"
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
