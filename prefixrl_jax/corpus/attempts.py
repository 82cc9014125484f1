"""Attempts: what is known of each problem's samples, and what follows from it.

Which problems are hard, the first correct trace of each, and the totals of the corpus.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prefixrl_jax.corpus.outcomes import LARGEST, Outcomes, PackedTrace
from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.flops import Costs
from prefixrl_jax.tasks.task import Problem, Task, Verdict


@dataclasses.dataclass(slots=True)
class Attempts:
    """The samples of one problem in one stage.

    Of a million samples there is little that later stages need; the rest stays on the disk.

    Attributes:
        problem: the problem.
        context: tokens of its prompt.
        outcomes: verdict and length of every sample.
        successes: how many samples were correct.
        first_correct: lowest id of a correct sample; None without one.
    """

    problem: Problem
    context: int
    outcomes: Outcomes = dataclasses.field(default_factory=Outcomes)
    successes: int = 0
    first_correct: int | None = None
    _trace: PackedTrace | None = None  # of sample `first_correct`, as far as it is kept
    _wrong: array = dataclasses.field(default_factory=lambda: array("q"))

    @property
    def verdicts(self) -> Mapping[int, Verdict]:
        """Verdicts by sample id."""
        return self.outcomes.verdicts

    @property
    def lengths(self) -> Mapping[int, int]:
        """Lengths in tokens, by sample id."""
        return self.outcomes.lengths

    @property
    def correct(self) -> dict[int, Trace]:
        """The first correct sample by its id, if its trace was kept (collect keeps it)."""
        if self._trace is None or self.first_correct is None:
            return {}
        return {self.first_correct: self._trace.unpack()}

    @property
    def is_solved(self) -> bool:
        """Whether there is a trace of a correct sample."""
        return self._trace is not None

    @property
    def wrong(self) -> list[int]:
        """Token ids of sample 0 if it was not correct, as far as they were kept."""
        return self._wrong.tolist()

    def add(self, sample_id: int, verdict: Verdict, tokens: int, trace: Trace | None) -> None:
        """Take in one finished sample; a second one of the same id is passed over.

        The trace is kept if it is the first correct one so far.
        """
        packed = PackedTrace.of(trace) if trace is not None else None
        if not self.outcomes.add(sample_id, verdict, tokens) or verdict is not Verdict.CORRECT:
            return
        self.successes += 1
        if self.first_correct is None or sample_id < self.first_correct:
            self.first_correct = sample_id
            self._trace = packed

    def add_record(self, record: Mapping[str, Any]) -> None:
        """Take in a sample as the log has it.

        Raises:
            ValueError: the trace or the wrong response in the record is none.
        """
        try:
            trace = Trace.from_record(record["trace"]) if "trace" in record else None
            wrong = array("q", record.get("wrong", ()))
            self.add(record["sample"], Verdict(record["verdict"]), record["tokens"], trace)
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"not the record of a sample: {error}") from error
        self._wrong = wrong or self._wrong

    def of(self, problem: Problem, context: int) -> Attempts:
        """Return an independent copy under another problem."""
        return dataclasses.replace(
            self, problem=problem, context=context, outcomes=self.outcomes.copy()
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def _is_verdict(value: Any) -> bool:
    return any(value == verdict.value for verdict in Verdict)


# What a record of the log must have: field, what is expected, and whether a value is that.
_SAMPLE_FIELDS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("stage", "a text", _is_text),
    ("problem", "a text", _is_text),
    ("sample", f"a whole number from 0 to {LARGEST}", _is_count),
    ("verdict", f"one of {', '.join(v.value for v in Verdict)}", _is_verdict),
    ("tokens", f"a whole number from 0 to {LARGEST}", _is_count),
)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class LoggedSamples:
    """What a log has of every stage and problem, taken in record by record."""

    def __init__(self) -> None:
        """Begin without samples."""
        self._attempts: dict[tuple[str, str], Attempts] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in a record of the log.

        Raises:
            ValueError: it is not that of a sample; the message names the field.
        """
        for field, expectation, is_right in _SAMPLE_FIELDS:
            if not is_right(record.get(field)):
                raise ValueError(
                    f"not the record of a sample: field {field!r} is"
                    f" {_shortened(record.get(field))}; {expectation} is expected"
                )
        is_correct = record["verdict"] == Verdict.CORRECT.value
        if record["stage"] == "collect" and is_correct and "trace" not in record:
            raise ValueError("not the record of a sample: field 'trace' is missing")
        key = (record["stage"], record["problem"])
        attempts = self._attempts.get(key) or _known_by_id(record["problem"])
        attempts.add_record(record)
        self._attempts[key] = attempts

    def get(self, stage: str, problem: Problem, context: int) -> Attempts:
        """Return the attempts at a problem in a stage, of which the caller may change its copy."""
        attempts = self._attempts.get((stage, problem.id))
        return attempts.of(problem, context) if attempts else Attempts(problem, context)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a JSON object for each stage and problem, for `add_row` of another process."""
        for (stage, problem), attempts in self._attempts.items():
            traces = [trace.to_record() for trace in attempts.correct.values()]
            yield {
                "stage": stage,
                "problem": problem,
                "samples": [
                    (i, verdict.value, attempts.lengths[i])
                    for i, verdict in attempts.verdicts.items()
                ],
                "first_correct": attempts.first_correct,
                "first_trace": traces[0] if traces else None,
                "wrong": attempts.wrong,
            }

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Take in what another process has of a stage and problem."""
        attempts = _known_by_id(row["problem"])
        for sample_id, verdict, tokens in row["samples"]:
            record = {"sample": sample_id, "verdict": verdict, "tokens": tokens}
            if row["first_trace"] and row["first_correct"] == sample_id:
                record["trace"] = row["first_trace"]
            if sample_id == 0:
                record["wrong"] = row["wrong"]
            attempts.add_record(record)
        self._attempts[row["stage"], row["problem"]] = attempts


def _known_by_id(problem: str) -> Attempts:
    """Attempts at a problem of which the log says neither what it is nor how long its prompt is."""
    return Attempts(Problem(problem, {}), 0)


def attempts_in_log(
    records: LoggedSamples | Iterable[Mapping[str, Any]],
    stage: str,
    problems: Sequence[Problem],
    task: Task,
) -> dict[str, Attempts]:
    """Return what the log has of a stage, by problem id, in the problems' order.

    Raises:
        ValueError: one of the records is not that of a sample.
    """
    if not isinstance(records, LoggedSamples):
        logged = LoggedSamples()
        for record in records:
            logged.add(record)
        records = logged
    return {p.id: records.get(stage, p, len(task.render(p))) for p in problems}


def add_records(
    attempts: Mapping[str, Attempts], records: Iterable[Mapping[str, Any]], stage: str
) -> None:
    """Add new records of a stage to the attempts at their problems."""
    for record in records:
        if record["stage"] == stage and record["problem"] in attempts:
            attempts[record["problem"]].add_record(record)


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
        trace = next(iter(a.correct.values()), None)
        if trace is None:
            continue
        if trace.source == "sampled" and not trace.samples:
            flops = flops_spent(a, cost)
            trace = dataclasses.replace(trace, samples=len(a.verdicts), flops=flops)
        traces.append(trace)
    return traces


def wrong_responses(attempts: Mapping[str, Attempts]) -> dict[str, list[int]]:
    """Return the token ids of collect's first response by problem id, where it was not correct."""
    wrong = {problem: a.wrong for problem, a in attempts.items()}
    return {problem: token_ids for problem, token_ids in wrong.items() if token_ids}


def statistics(attempts: Mapping[str, Attempts]) -> dict[str, dict[str, Any]]:
    """Return samples, their tokens and the first correct sample id (None at the cap) by problem."""
    return {
        a.problem.id: {
            "samples": len(a.verdicts),
            "tokens": sum(a.lengths.values()),
            "first_correct": a.first_correct,
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
    solved = sum(a.is_solved for a in attempts.values())
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
