"""Sampling the corpus: which problems are hard (select), and a correct trace of each (collect).

select draws k fresh samples of every candidate; k is fixed, so that pass rates are unbiased.
collect samples a hard problem until its first correct trace or a cap. *First* is the lowest sample
id, not the first to finish: short samples finish early, and taking them would bias the traces
short. Every sample begun is charged, also those dropped when a lower id succeeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import jax

from prefixrl_jax.corpus.attempts import Attempts, add_records, attempts_in_log
from prefixrl_jax.corpus.shared_log import SharedLog
from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.flops import Ledger
from prefixrl_jax.model.weights import Params
from prefixrl_jax.runtime.interrupt import Interrupted
from prefixrl_jax.runtime.processes import local_slice, share_charges
from prefixrl_jax.sampling.distribution import Sampling
from prefixrl_jax.sampling.job import Job, Sample
from prefixrl_jax.sampling.refill import Engine
from prefixrl_jax.tasks.task import Problem, Task, Verdict, begin_grading


class _SamplingJob(Job):
    """Samples one problem, grades what arrives and logs it, so that nothing is drawn twice.

    The verdict of a task that grades in other processes (`Task.grades_aside`) counts when the next
    chunk has been begun, never earlier: what is drawn must not depend on how long grading took.
    """

    stage: str

    def __init__(
        self,
        logged: Attempts,
        task: Task,
        limit: int,
        log: SharedLog,
        on_success: Callable[[Problem, list[int]], None] = lambda problem, ids: None,
    ):
        self.name = logged.problem.id
        self.attempts = Attempts(logged.problem, logged.context)
        self._logged = logged
        self._task = task
        self._log = log
        self._on_success = on_success
        self._limit = limit
        self._ids = iter(range(limit))
        # By id, settles a sample that has arrived and whose verdict does not count yet.
        self._unsettled: dict[int, Callable[[], None]] = {}

    @cached_property
    def context_ids(self) -> list[int]:  # type: ignore[override]
        """Token ids of the problem, rendered once its turn has come."""
        return self._task.render(self._logged.problem)

    def deliver(self, sample: Sample) -> None:
        """Have a fresh sample graded."""
        ids = sample.token_ids.tolist()
        verdict = begin_grading(self._task, self.attempts.problem, ids)
        self._arrive(sample.sample_id, lambda: self._keep(sample, ids, verdict()))

    def redeliver(self, sample_id: int) -> None:
        """Take a sample from the log, at the moment at which it was delivered before."""
        logged = self._logged
        verdict, length = logged.verdicts[sample_id], logged.lengths[sample_id]
        trace = logged.correct.get(sample_id)
        self._arrive(sample_id, lambda: self.attempts.add(sample_id, verdict, length, trace))

    def _arrive(self, sample_id: int, settle: Callable[[], None]) -> None:
        self._unsettled[sample_id] = settle
        if not self._task.grades_aside:
            self.settle()

    def settle(self) -> None:
        """Wait for the verdicts on all samples that have arrived; from then on they count."""
        while self._unsettled:
            sample_id = next(iter(self._unsettled))
            self._unsettled[sample_id]()
            del self._unsettled[sample_id]  # only now: one that fails is settled later

    def _keep(self, sample: Sample, ids: list[int], verdict: Verdict) -> None:
        """Log a graded sample, and add it to the attempts."""
        if verdict is Verdict.CORRECT:
            self._on_success(self.attempts.problem, ids)
        record = {
            "stage": self.stage,
            "problem": self.name,
            "sample": sample.sample_id,
            "verdict": verdict.value,
            "tokens": len(ids),
        }
        trace = self._extend(record, sample, ids, verdict)
        self.attempts.add(sample.sample_id, verdict, len(ids), trace)
        self._log.append(record)

    def _extend(
        self, record: dict[str, Any], sample: Sample, ids: list[int], verdict: Verdict
    ) -> Trace | None:
        """Add to a log record what the stage keeps besides; return the trace if that is kept."""
        return None

    @property
    def _arrived(self) -> int:
        """How many samples have arrived."""
        return len(self.attempts.outcomes) + len(self._unsettled)

    def known_length(self, sample_id: int) -> int:
        """Return the tokens of a sample that is in the log, or 0."""
        return self._logged.lengths.get(sample_id, 0)

    def take_unused(self) -> list[int]:
        """Take in logged samples that this run did not ask for; return their lengths.

        An interrupted run with another number of slots may have begun other samples.
        """
        unused = sorted(self._logged.lengths.keys() - self.attempts.lengths.keys())
        for sample_id in unused:
            self.redeliver(sample_id)
        self.settle()
        return [self._logged.lengths[i] for i in unused]


class SelectJob(_SamplingJob):
    """Draws exactly `limit` samples."""

    stage = "select"

    def next_sample(self) -> int | None:
        """Return ids in ascending order."""
        return next(self._ids, None)

    @property
    def closed(self) -> bool:
        """Whether all samples have arrived."""
        return self._arrived >= self._limit


class CollectJob(_SamplingJob):
    """Draws samples until the lowest successful id is certain, or `limit` of them."""

    stage = "collect"

    def next_sample(self) -> int | None:
        """Return ids in ascending order, and none after a success: a later id cannot be first."""
        return next(self._ids, None) if self.attempts.first_correct is None else None

    @property
    def closed(self) -> bool:
        """Whether every id below the best success has arrived, or the limit is used up."""
        best = self.attempts.first_correct
        if best is None:
            return self._arrived >= self._limit
        unsettled = sum(i < best for i in self._unsettled)
        return self.attempts.outcomes.count_below(best) + unsettled >= best

    def _extend(
        self, record: dict[str, Any], sample: Sample, ids: list[int], verdict: Verdict
    ) -> Trace | None:
        if verdict is Verdict.CORRECT:
            trace = Trace(
                problem_id=self.name,
                sample_id=sample.sample_id,
                context_ids=self.context_ids,
                token_ids=ids,
                logprobs=sample.logprobs.tolist(),
                finish_reason=sample.finish_reason,
                samples=0,  # both are known when the stage is complete
                flops=0.0,
            )
            record["trace"] = trace.to_record()
            return trace
        if sample.sample_id == 0:
            record["wrong"] = ids
        return None


def first_call_only(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function that calls `function` the first time and does nothing after that."""
    called = False

    def call(*args: Any) -> None:
        nonlocal called
        if not called:
            called = True
            function(*args)

    return call


JOBS: dict[str, type[_SamplingJob]] = {"select": SelectJob, "collect": CollectJob}


@dataclasses.dataclass(frozen=True)
class RejectionSampler:
    """Samples problems with one model and keeps what is correct.

    Attributes:
        engine: the sampler's shape on the mesh.
        params: the model, placed by the "decode" rules.
        task: renders problems and grades responses.
        sampling: how tokens are drawn.
        log: where every graded sample goes, and where those of an interrupted run are found.
        announce: called with (stage, problem, token ids) of the first sample that solves a problem
            in a stage, on each process.
    """

    engine: Engine
    params: Params
    task: Task
    sampling: Sampling
    log: SharedLog
    announce: Callable[[str, Problem, list[int]], None] = lambda stage, problem, ids: None

    def run(
        self,
        stage: str,
        problems: Sequence[Problem],
        limit: int,
        stream: jax.Array,
        ledger: Ledger,
        show: Callable[[dict[str, Attempts]], None] = lambda attempts: None,
    ) -> dict[str, Attempts]:
        """Run one stage over the problems; return the attempts at each, by problem id.

        Each process samples and grades its part of the problems; all of them get the attempts at
        all problems, and the whole bill.

        Args:
            stage: "select": exactly `limit` samples each; "collect": until the first success, at
                most `limit`.
            problems: of all processes.
            limit: samples a problem.
            stream: key of the stage's noise.
            ledger: is charged under the stage's name.
            show: called with the attempts so far whenever processes have told each other.
        """
        before = ledger.copy().state
        attempts = attempts_in_log(self.log.records, stage, problems, self.task)
        if not limit:
            return attempts
        make_job = JOBS[stage]
        mine = local_slice(list(problems))
        announce = first_call_only(partial(self.announce, stage))
        jobs = [make_job(attempts[p.id], self.task, limit, self.log, announce) for p in mine]

        def settle(due: bool, wait: bool = False) -> None:
            for job in jobs:
                job.settle()
            if due:
                add_records(attempts, self.log.share(wait), stage)
                show(attempts)

        phases = (stage, stage)
        try:
            self.engine.run(self.params, jobs, self.sampling, stream, ledger, phases, settle)
        except Interrupted:
            settle(due=True, wait=True)
            raise
        settle(due=True, wait=True)
        for job in jobs:
            if unused := job.take_unused():  # drawn by the interrupted run, so paid for
                ledger.add_group(self.engine.cost, phases, job.attempts.context, unused)
        share_charges(ledger, before)
        return attempts


def inherit_traces(
    traces: Sequence[Trace], problems: Sequence[Problem], task: Task, log: SharedLog
) -> dict[str, Attempts]:
    """Return attempts at the problems that an earlier round has traces of, by problem id.

    Each is known by its trace alone; the log of this round then has it too.
    """
    attempts = attempts_in_log(log.records, "collect", problems, task)
    for trace in local_slice([t for t in traces if not attempts[t.problem_id].correct]):
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
    add_records(attempts, log.share(wait=True), "collect")
    return {t.problem_id: attempts[t.problem_id] for t in traces}
