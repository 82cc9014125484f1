"""Attempts: what is known of each problem's samples, and what follows from it.

Which problems are hard, the first correct trace of each, and the totals of the corpus.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.flops import Costs
from prefixrl_jax.tasks.task import Problem, Task, Verdict


@dataclasses.dataclass
class Attempts:
    """The samples of one problem in one stage.

    Attributes:
        problem: the problem.
        context: tokens of its prompt.
        verdicts: by sample id.
        lengths: in tokens, by sample id.
        correct: correct samples by sample id, as far as they were kept (collect keeps them).
        successes: how many samples were correct.
        wrong: token ids of sample 0 if it was not correct.
    """

    problem: Problem
    context: int
    verdicts: dict[int, Verdict] = dataclasses.field(default_factory=dict)
    lengths: dict[int, int] = dataclasses.field(default_factory=dict)
    correct: dict[int, Trace] = dataclasses.field(default_factory=dict)
    successes: int = 0
    wrong: list[int] = dataclasses.field(default_factory=list)

    def add(self, sample_id: int, verdict: Verdict, tokens: int, trace: Trace | None) -> None:
        """Take in one finished sample; the trace is kept if there is one."""
        self.verdicts[sample_id], self.lengths[sample_id] = verdict, tokens
        self.successes += verdict is Verdict.CORRECT
        if trace is not None:
            self.correct[sample_id] = trace


def attempts_in_log(
    records: Sequence[dict[str, Any]], stage: str, problems: Sequence[Problem], task: Task
) -> dict[str, Attempts]:
    """Return what the log has of a stage, by problem id, in the problems' order."""
    attempts = {p.id: Attempts(p, len(task.render(p))) for p in problems}
    add_records(attempts, records, stage)
    return attempts


def add_records(
    attempts: Mapping[str, Attempts], records: Sequence[dict[str, Any]], stage: str
) -> None:
    """Add the log's records of a stage to the attempts at their problems."""
    for record in records:
        if record["stage"] != stage or record["problem"] not in attempts:
            continue
        trace = Trace.from_record(record["trace"]) if "trace" in record else None
        of_problem = attempts[record["problem"]]
        of_problem.add(record["sample"], Verdict(record["verdict"]), record["tokens"], trace)
        of_problem.wrong = record.get("wrong", of_problem.wrong)


def hard_set(
    attempts: Mapping[str, Attempts], band: tuple[float, float], count: int
) -> list[Problem]:
    """Return the first `count` problems whose pass rate in select lies in `band`.

    Both ends are included; (0, 0) is "never solved". Any problem counts if select drew no sample.
    """
    low, high = band
    hard = [
        a.problem
        for a in attempts.values()
        if not a.verdicts or low <= a.successes / len(a.verdicts) <= high
    ]
    return hard[:count]


def flops_spent(attempts: Attempts, cost: Costs) -> float:
    """Return the paper FLOPs of a problem's samples: each pays its prompt and its tokens."""
    return sum(cost.tokens(attempts.context + tokens) for tokens in attempts.lengths.values())


def first_traces(attempts: Mapping[str, Attempts], cost: Costs) -> list[Trace]:
    """Return the success with the lowest sample id of every solved problem.

    A trace that was sampled in this round carries the samples begun and the FLOPs spent until it
    was certain.
    """
    traces = []
    for a in attempts.values():
        if not a.correct:
            continue
        trace = a.correct[min(a.correct)]
        if trace.source == "sampled" and not trace.samples:
            flops = flops_spent(a, cost)
            trace = dataclasses.replace(trace, samples=len(a.verdicts), flops=flops)
        traces.append(trace)
    return traces


def wrong_responses(attempts: Mapping[str, Attempts]) -> dict[str, list[int]]:
    """Return the token ids of collect's first response by problem id, where it was not correct."""
    return {problem: a.wrong for problem, a in attempts.items() if a.wrong}


def statistics(attempts: Mapping[str, Attempts]) -> dict[str, dict[str, Any]]:
    """Return samples, their tokens and the first correct sample id (None at the cap) by problem."""
    return {
        a.problem.id: {
            "samples": len(a.verdicts),
            "tokens": sum(a.lengths.values()),
            "first_correct": min(a.correct, default=None),
        }
        for a in attempts.values()
    }


def summarise(
    attempts: Mapping[str, Attempts], cap: int | None, inherited: int = 0
) -> dict[str, Any]:
    """Return the totals of collect, and what became of the problems without a trace.

    Args:
        attempts: of collect, by problem id.
        cap: samples a problem may have; None for traces that were imported.
        inherited: traces of an earlier round; each stands among the attempts as one sample that
            was not drawn in this round.
    """
    solved = sum(bool(a.correct) for a in attempts.values())
    samples = sum(len(a.verdicts) for a in attempts.values()) - inherited
    capped = len(attempts) - solved
    reason = f"reached the cap of {cap} samples without a correct trace"
    if cap is None:
        reason = "have no correct trace in the file"
    treatment = (
        f"{capped} problems {reason}. They have no prefixes, stay in the training set as plain"
        " problems, and are part of every figure on the hard set."
    )
    return {
        "problems": len(attempts),
        "solved": solved,
        "capped": capped,
        "samples": samples,
        "cap": cap,
        "inherited": inherited,
        "samples_per_solved": samples / max(solved - inherited, 1),
        "capped_treatment": treatment,
    }


def mean_strategies(
    traces: Sequence[Trace], problems: Mapping[str, Problem], task: Task
) -> dict[str, float]:
    """Return the mean over traces of each of the task's features; empty if it has none."""
    features = [task.strategies(problems[t.problem_id], t.token_ids) for t in traces]
    names = features[0] if features else ()
    return {name: sum(f[name] for f in features) / len(features) for name in names}
