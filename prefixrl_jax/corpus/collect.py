"""The corpus: which problems are hard (select), and one correct trace of each by rejection sampling
(collect).

select: k fresh samples of every candidate, fixed k, so that pass rates are unbiased. collect:
sampling a hard problem until its first correct trace or a cap. *First* is the lowest sample id, not
the first to finish: short samples finish early, and taking them would bias the traces short. Every
sample begun is charged, also those dropped when a lower id succeeds.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from prefixrl_jax.corpus.sample_log import Log
from prefixrl_jax.corpus.shared_log import SharedLog
from prefixrl_jax.corpus.traces import Damaged, Trace, read_dataset, write_dataset
from prefixrl_jax.flops import Costs, Ledger
from prefixrl_jax.model import tokenizer as tokenizers
from prefixrl_jax.model.weights import Params
from prefixrl_jax.runtime.files import write_json
from prefixrl_jax.runtime.interrupt import Interrupted
from prefixrl_jax.runtime.metrics import say
from prefixrl_jax.runtime.processes import local_slice, share_charges
from prefixrl_jax.sampling.refill import Engine, Job, Sample
from prefixrl_jax.sampling.sampler import Sampling
from prefixrl_jax.tasks.task import Problem, Task, Verdict, begin_grading

# fingerprints of what made the corpus: the log's header, and in summary.json
HEADER = ("model", "tokenizer")


@dataclasses.dataclass
class Attempts:
    """What is known of one problem in one stage: verdict and length (tokens) by sample id, and
    correct samples.
    """

    problem: Problem
    context: int  # tokens of the prompt
    verdicts: dict[int, Verdict] = dataclasses.field(default_factory=dict)
    lengths: dict[int, int] = dataclasses.field(default_factory=dict)
    correct: dict[int, Trace] = dataclasses.field(default_factory=dict)
    successes: int = 0
    # token ids of sample 0 if it was not correct
    wrong: list[int] = dataclasses.field(default_factory=list)

    def add(self, sample_id: int, verdict: Verdict, tokens: int, trace: Trace | None) -> None:
        """Takes one finished sample; the trace is kept when it is given."""
        self.verdicts[sample_id], self.lengths[sample_id] = verdict, tokens
        self.successes += verdict is Verdict.CORRECT
        if trace is not None:
            self.correct[sample_id] = trace


class _SamplingJob(Job):
    """A job over one problem that grades what arrives and writes it to the log, so that no finished
    sample is drawn again.

    A task that grades aside is given the time of one chunk: the verdict on a sample counts when the
    next chunk has been begun, never earlier, so that what is drawn does not depend on how long
    grading took.
    """

    def __init__(self, stage: str, logged: Attempts, task: Task, limit: int, log: SharedLog):
        self.name, self.context_ids = logged.problem.id, task.render(logged.problem)
        self.attempts = Attempts(logged.problem, logged.context)
        self._logged, self._task, self._log, self._stage = logged, task, log, stage
        self._limit, self._ids = limit, iter(range(limit))
        self._arrived: set[int] = set()
        # samples that arrived and whose verdicts do not count yet
        self._open: list[Callable[[], None]] = []

    def deliver(self, sample: Sample) -> None:
        """Has one sample graded."""
        ids = sample.token_ids.tolist()
        verdict = begin_grading(self._task, self.attempts.problem, ids)
        self._arrive(sample.sample_id, lambda: self._keep(sample, ids, verdict()))

    def redeliver(self, sample_id: int) -> None:
        """Takes a sample from the log."""
        known = self._logged
        verdict, length, trace = (
            known.verdicts[sample_id],
            known.lengths[sample_id],
            known.correct.get(sample_id),
        )
        self._arrive(sample_id, lambda: self.attempts.add(sample_id, verdict, length, trace))

    def _arrive(self, sample_id: int, settle: Callable[[], None]) -> None:
        self._arrived.add(sample_id)
        self._open.append(settle)
        if not self._task.grades_aside:
            self.settle()

    def settle(self) -> None:
        """Waits for the verdicts on all samples that have arrived; from then on they count."""
        for settle in self._open:
            settle()
        self._open.clear()

    def _keep(self, sample: Sample, ids: list[int], verdict: Verdict) -> None:
        """Logs and keeps one sample."""
        record = {
            "stage": self._stage,
            "problem": self.name,
            "sample": sample.sample_id,
            "verdict": verdict.value,
            "tokens": len(ids),
        }
        trace = None
        if verdict is Verdict.CORRECT and self._stage == "collect":
            logprobs = sample.logprobs.tolist()
            trace = Trace(
                self.name,
                sample.sample_id,
                self.context_ids,
                ids,
                logprobs,
                sample.finish_reason,
                0,
                0.0,
            )
            record["trace"] = trace.to_record()
        elif self._stage == "collect" and not sample.sample_id:
            record["wrong"] = ids
        self.attempts.add(sample.sample_id, verdict, len(ids), trace)
        self._log.append(record)

    def known_length(self, sample_id: int) -> int:
        """Tokens of a sample that is in the log."""
        return self._logged.lengths.get(sample_id, 0)

    def take_unused(self) -> list[int]:
        """Logged samples that this run did not ask for (another number of slots begins others);
        returns their lengths.
        """
        unused = sorted(self._logged.lengths.keys() - self.attempts.lengths.keys())
        for sample_id in unused:
            self.redeliver(sample_id)
        self.settle()
        return [self._logged.lengths[i] for i in unused]


class SelectJob(_SamplingJob):
    """k samples, whatever they say."""

    def next_sample(self) -> int | None:
        """Ids in ascending order."""
        return next(self._ids, None)

    @property
    def closed(self) -> bool:
        """When all k samples are in."""
        return len(self._arrived) >= self._limit


class CollectJob(_SamplingJob):
    """Samples until the lowest successful id is certain, or the cap."""

    @property
    def _best(self) -> int | None:
        return min(self.attempts.correct, default=None)

    def next_sample(self) -> int | None:
        """Ids in ascending order, and none after a success: a later one cannot be first any
        more.
        """
        return None if self.attempts.correct else next(self._ids, None)

    @property
    def closed(self) -> bool:
        """When every id below the best success is in, or the cap is used up."""
        if (best := self._best) is None:
            return len(self._arrived) >= self._limit
        return sum(i < best for i in self._arrived) >= best


def replay(
    records: list[dict[str, Any]], stage: str, problems: list[Problem], task: Task
) -> dict[str, Attempts]:
    """What the log already knows of a stage, by problem id, in the problems' order."""
    known = {p.id: Attempts(p, len(task.render(p))) for p in problems}
    take_records(known, records, stage)
    return known


def take_records(known: dict[str, Attempts], records: list[dict[str, Any]], stage: str) -> None:
    """Adds the log's records of a stage to what is known of their problems."""
    for record in records:
        attempts = known.get(record["problem"]) if record["stage"] == stage else None
        if attempts is not None:
            trace = Trace.from_record(record["trace"]) if "trace" in record else None
            attempts.add(record["sample"], Verdict(record["verdict"]), record["tokens"], trace)
            attempts.wrong = record.get("wrong", attempts.wrong)


def attempt_all(
    stage: str,
    engine: Engine,
    params: Params,
    task: Task,
    problems: list[Problem],
    limit: int,
    sampling: Sampling,
    stream: jax.Array,
    ledger: Ledger,
    log: SharedLog,
    show: Callable = lambda known: None,
) -> dict[str, Attempts]:
    """Runs one stage ("select": exactly `limit` samples; "collect": until the first success, at
    most `limit`).

    Each process samples and grades its part of the problems; all get the attempts at all of them,
    and the whole bill.
    """
    kind, before = {"select": SelectJob, "collect": CollectJob}[stage], ledger.copy().state
    found = replay(log.records, stage, problems, task)
    if not limit:
        return found
    jobs = [kind(stage, found[p.id], task, limit, log) for p in local_slice(problems)]

    def settle(due: bool, wait: bool = False) -> None:
        for job in jobs:
            job.settle()
        if due:
            take_records(found, log.share(wait), stage)
            show(found)

    try:
        engine.run(params, jobs, sampling, stream, ledger, (stage, stage), settle)
    except Interrupted:
        settle(due=True, wait=True)
        raise
    settle(due=True, wait=True)
    for job in jobs:
        if unused := job.take_unused():  # drawn, so paid for
            ledger.add_group(engine.cost, (stage, stage), job.attempts.context, unused)
    share_charges(ledger, before)
    return found


def inherit(
    traces: list[Trace], problems: list[Problem], task: Task, log: SharedLog
) -> dict[str, Attempts]:
    """Attempts at the problems that an earlier round has traces of, by id, each known by its trace;
    the log then has them too.
    """
    found = replay(log.records, "collect", problems, task)
    for trace in local_slice([t for t in traces if not found[t.problem_id].correct]):
        log.append(
            {
                "stage": "collect",
                "problem": trace.problem_id,
                "sample": trace.sample_id,
                "tokens": len(trace.token_ids),
                "verdict": Verdict.CORRECT.value,
                "trace": trace.to_record(),
            }
        )
    take_records(found, log.share(wait=True), "collect")
    return {t.problem_id: found[t.problem_id] for t in traces}


def hard_set(attempts: dict[str, Attempts], band: tuple[float, float], count: int) -> list[Problem]:
    """The first `count` problems whose pass rate in select lies in `band` (both ends included; (0,
    0) is "never solved"); any problem if select drew no sample.
    """
    low, high = band
    return [
        a.problem
        for a in attempts.values()
        if not a.verdicts or low <= a.successes / len(a.verdicts) <= high
    ][:count]


def spent(attempts: Attempts, cost: Costs) -> float:
    """Paper FLOPs of one problem's finished samples: every sample pays its prompt and its own
    tokens.
    """
    return sum(cost.tokens(attempts.context + tokens) for tokens in attempts.lengths.values())


def first_traces(attempts: dict[str, Attempts], cost: Costs) -> list[Trace]:
    """The lowest-id success of every solved problem; one that was sampled here with the samples
    begun and the FLOPs spent until it was certain.
    """
    found = [(a, a.correct[min(a.correct)]) for a in attempts.values() if a.correct]
    fresh = lambda trace: trace.source == "sampled" and not trace.samples  # noqa: E731
    return [
        dataclasses.replace(t, samples=len(a.verdicts), flops=spent(a, cost)) if fresh(t) else t
        for a, t in found
    ]


def statistics(attempts: dict[str, Attempts]) -> dict[str, dict[str, Any]]:
    """Per problem: finished samples, their tokens, and the id of the first correct one (None at the
    cap).
    """
    return {
        a.problem.id: {
            "samples": len(a.verdicts),
            "tokens": sum(a.lengths.values()),
            "first_correct": min(a.correct, default=None),
        }
        for a in attempts.values()
    }


def summarise(attempts: dict[str, Attempts], cap: int | None, inherited: int = 0) -> dict[str, Any]:
    """Totals of collect, and what became of the problems without a trace.

    cap: None for traces that were brought. inherited: traces of an earlier round, each of which
    stands among the attempts as one sample that was not drawn in this one.
    """
    solved = sum(bool(a.correct) for a in attempts.values())
    samples, capped = (
        sum(len(a.verdicts) for a in attempts.values()) - inherited,
        len(attempts) - solved,
    )
    how = (
        "have no correct trace in the file"
        if cap is None
        else f"reached the cap of {cap} samples without a correct trace"
    )
    treatment = (
        f"{capped} problems {how}. They have no prefixes, stay in the training set as plain"
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


def strategies(traces: list[Trace], problems: dict[str, Problem], task: Task) -> dict[str, float]:
    """The mean over traces of each of the task's features; empty if there is none."""
    found = [task.strategies(problems[t.problem_id], t.token_ids) for t in traces]
    return {name: sum(f[name] for f in found) / len(found) for name in (found[0] if found else ())}


def save(directory: Path, traces: list[Trace], summary: dict[str, Any]) -> None:
    """Writes the dataset (unless there is no trace) and summary.json."""
    if traces:
        write_dataset(
            traces,
            directory / "dataset",
            {"statistics": summary, **{k: summary[k] for k in HEADER}},
        )
    write_json(directory / "summary.json", summary)


def wrong_responses(attempts: dict[str, Attempts]) -> dict[str, list[int]]:
    """Token ids of the first response of collect to each problem, where that was not correct."""
    return {problem: a.wrong for problem, a in attempts.items() if a.wrong}


def load(directory: Path, problems: dict[str, Problem], task: Task, cost: Costs) -> list[Trace]:
    """The traces of a complete corpus; of a damaged dataset those in the log, and the dataset is
    written anew.

    Raises ValueError when the token ids are another tokenizer's, or when some trace is in neither
    place.
    """
    summary = json.loads((directory / "summary.json").read_text())
    if (here := tokenizers.fingerprint(task.tokenizer)) != summary["tokenizer"]:
        raise ValueError(
            f"{directory}: the traces are token ids of tokenizer {summary['tokenizer']}, this run's"
            f" is {here}; a trace can be cut only by the tokenizer it was made with"
        )
    if not summary["solved"]:
        return []
    try:
        return read_dataset(directory / "dataset")
    except (FileNotFoundError, Damaged) as error:
        say(
            f"{error}; the traces are read from {directory / 'log.jsonl'}, and the dataset is"
            " written anew"
        )
    with Log(directory / "log.jsonl", {k: summary[k] for k in HEADER}) as log:
        traces = first_traces(replay(log.records, "collect", list(problems.values()), task), cost)
    if len(traces) != summary["solved"]:
        raise ValueError(
            f"{directory}: {summary['solved']} problems were solved, the log still knows"
            f" {len(traces)} traces ({'; '.join(log.dropped) or 'records are missing'}); to sample"
            " again what was lost, remove corpus.json and prefixes.json from the stages folder"
        )
    save(directory, traces, summary)
    return traces
