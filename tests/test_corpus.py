"""Select and collect under any order of finishing, across a kill, and on the real sampler."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import TINY, random_params
from hypothesis import given, settings
from hypothesis import strategies as st

from prefixrl_jax.corpus import Attempts, CollectJob, SelectJob, attempt_all, first_traces, hard_set, replay
from prefixrl_jax.flops import Ledger, causal_pairs, costs
from prefixrl_jax.log import Log
from prefixrl_jax.mesh import make_mesh
from prefixrl_jax.sampling import refill
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.sampling.refill import Engine, FixedJob, Sample
from prefixrl_jax.sampling.sampler import Sampling
from prefixrl_jax.tasks.task import Problem, Verdict

HEADER = {"model": "tiny"}
COST = costs(1000, 1, 4, 8)
PROBLEM = Problem("p", {})


class FirstToken:
    """A task in which a response is correct if it begins with a token below `limit`."""

    stop_ids = (0, 1)

    def __init__(self, limit: int = 2):
        self.limit = limit

    def render(self, problem):
        return [5, 6, *(ord(c) % 37 for c in problem.id)]

    def grade(self, problem, response):
        return Verdict.CORRECT if response[0] < self.limit else Verdict.WRONG


def sample(i: int, correct: bool) -> Sample:
    return Sample(i, np.array([1 if correct else 9, *range(i)], np.int32), np.full(i + 1, -0.5, np.float32), "stop")


def make_job(kind, path, limit, attempts=None):
    """A job over the problem "p" and the log it writes to."""
    log, stage = Log(path / "log.jsonl", HEADER), "collect" if kind is CollectJob else "select"
    attempts = attempts or Attempts(PROBLEM, len(FirstToken().render(PROBLEM)))
    return kind(stage, attempts, FirstToken(), limit, log), log


def replayed(path, stage="collect") -> Attempts:
    return replay(Log(path / "log.jsonl", HEADER), stage, [PROBLEM], FirstToken())["p"]


def test_select_draws_each_id_once_whatever_succeeds(tmp_path):
    job, _ = make_job(SelectJob, tmp_path, 4)
    assert [job.next_sample() for _ in range(5)] == [0, 1, 2, 3, None]
    for i in (3, 0, 2):
        job.deliver(sample(i, correct=True))
        assert not job.closed
    job.deliver(sample(1, correct=False))
    assert job.closed and job.attempts.successes == 3 and job.attempts.correct == {}
    assert job.attempts.lengths == {0: 1, 1: 2, 2: 3, 3: 4}


def test_the_first_success_is_the_lowest_id_though_a_higher_one_is_done_earlier(tmp_path):
    job, _ = make_job(CollectJob, tmp_path, 9)
    assert [job.next_sample() for _ in range(5)] == [0, 1, 2, 3, 4]
    job.deliver(sample(3, correct=True))
    assert job.next_sample() is None and not job.closed  # 0, 1, 2 may still come before it
    job.deliver(sample(0, correct=False))
    job.deliver(sample(1, correct=True))
    assert job.next_sample() is None and job.closed  # 2 and 4 do not matter any more
    (trace,) = first_traces({"p": job.attempts}, COST)
    assert (trace.problem_id, trace.sample_id, trace.samples) == ("p", 1, 3)
    assert trace.flops == 2000 * (3 * len(trace.context_ids) + 4 + 1 + 2)  # three prompts, samples of 4, 1 and 2 tokens
    assert (trace.context_ids, trace.token_ids, trace.finish_reason) == (FirstToken().render(PROBLEM), [1, 0], "stop")


def test_collect_gives_up_at_the_cap(tmp_path):
    job, _ = make_job(CollectJob, tmp_path, 3)
    for i in range(3):
        assert job.next_sample() == i and not job.closed
        job.deliver(sample(i, correct=False))
    assert job.closed and job.next_sample() is None and first_traces({"p": job.attempts}, COST) == []


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_any_order_of_delivery_finds_the_lowest_success(tmp_path_factory, data):
    cap, slots = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    correct = data.draw(st.sets(st.integers(0, cap - 1)))
    job, log = make_job(CollectJob, tmp_path_factory.mktemp("log"), cap)
    flying, begun = [], []
    while not job.closed:
        while len(flying) < slots and (i := job.next_sample()) is not None:
            assert not job.attempts.correct  # no id is begun after a success
            flying.append(i)
            begun.append(i)
        i = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
        job.deliver(sample(i, i in correct))
    log.close()
    assert begun == list(range(len(begun)))
    first = min(correct, default=None)
    assert [t.sample_id for t in first_traces({"p": job.attempts}, COST)] == ([] if first is None else [first])
    assert set(range(cap if first is None else first + 1)) <= job.attempts.verdicts.keys()


@pytest.mark.parametrize("kind", [SelectJob, CollectJob])
def test_nothing_in_the_log_is_drawn_again(tmp_path, kind):
    stage = "collect" if kind is CollectJob else "select"
    job, log = make_job(kind, tmp_path, 6)
    for i in (0, 2, 3):
        job.deliver(sample(i, correct=False))
    log.append({"stage": "another", "problem": "p", "sample": 5, "verdict": "correct", "tokens": 1})
    log.append({"stage": stage, "problem": "unknown", "sample": 4, "verdict": "correct", "tokens": 1})
    log.close()
    known = replayed(tmp_path, stage)
    assert known == job.attempts
    again, _ = make_job(kind, tmp_path, 6, known)
    assert [again.next_sample() for _ in range(4)] == [1, 4, 5, None]


def test_a_success_comes_back_from_the_log_whole(tmp_path):
    job, log = make_job(CollectJob, tmp_path, 6)
    job.deliver(sample(0, correct=False))
    job.deliver(sample(1, correct=True))
    log.close()
    known = replayed(tmp_path)
    assert known == job.attempts
    again, _ = make_job(CollectJob, tmp_path, 6, known)
    assert again.closed and again.next_sample() is None


def test_ids_below_a_logged_success_that_were_in_flight_at_the_kill_are_drawn(tmp_path):
    job, log = make_job(CollectJob, tmp_path, 9)
    for i, correct in ((0, False), (2, False), (4, True)):  # 1 and 3 were in flight
        job.deliver(sample(i, correct))
    log.close()
    again, _ = make_job(CollectJob, tmp_path, 9, replayed(tmp_path))
    assert not again.closed
    assert [again.next_sample() for _ in range(3)] == [1, 3, None]
    again.deliver(sample(1, correct=False))
    assert not again.closed
    again.deliver(sample(3, correct=True))
    assert again.closed and first_traces({"p": again.attempts}, COST)[0].sample_id == 3


def test_the_hard_set_is_a_band_of_pass_rates():
    rates = {"a": 0, "b": 2, "c": 1, "d": 4, "e": 0}
    attempts = {name: Attempts(Problem(name, {}), 2) for name in rates}
    for name, n in rates.items():
        for i in range(4):
            attempts[name].add(i, Verdict.CORRECT if i < n else Verdict.UNPARSED, 5, None)
    choose = lambda band, count=9: "".join(p.id for p in hard_set(attempts, band, count))  # noqa: E731
    assert choose((0.0, 0.0)) == "ae" and choose((0.25, 0.5)) == "bc" and choose((0.0, 1.0)) == "abcde"
    assert choose((0.0, 0.25), 2) == "ac" and choose((0.9, 0.95)) == ""


# --- on the real sampler

CONFIG = dataclasses.replace(TINY, num_layers=1, unroll_layers=True)
SAMPLING = Sampling(max_new_tokens=7, stop_ids=(0, 1, 2, 3, 4, 5))
CONTEXTS = {"a": [3], "bb": [4, 5, 6], "ccc": [9, 8, 7, 6], "d": [1, 2], "e": [30, 31, 32]}


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def make_engine(rows=2, slots=3, chunk=2):
    return Engine(CONFIG, make_mesh(devices=jax.devices()[:1]), COST, rows, slots, chunk, (4, 8))


def run_fixed(params, engine, n=5, names=CONTEXTS, ledger=None):
    jobs = [FixedJob(name, CONTEXTS[name], n) for name in names]
    engine.run(params, jobs, SAMPLING, stream_key(0, "test"), ledger or Ledger(), ("prefill", "decode"))
    return {job.name: job.samples for job in jobs}


@pytest.fixture(scope="module")
def reference(params):
    """The samples and the ledger of one run of the smaller engine."""
    ledger = Ledger()
    return run_fixed(params, make_engine(), ledger=ledger), ledger


def test_every_job_gets_exactly_its_ids(reference):
    samples, _ = reference
    assert {name: sorted(found) for name, found in samples.items()} == {name: [0, 1, 2, 3, 4] for name in CONTEXTS}
    drawn = [s for found in samples.values() for s in found.values()]
    assert len({len(s.token_ids) for s in drawn}) > 2  # ends of all kinds: slots were refilled out of step
    for s in drawn:
        stopped = s.token_ids[-1] in SAMPLING.stop_ids
        assert s.finish_reason == ("stop" if stopped else "length") and (stopped or len(s.token_ids) == 7)
        assert not np.isin(s.token_ids[:-1], SAMPLING.stop_ids).any()
        assert len(s.logprobs) == len(s.token_ids) and (s.logprobs < 0).all()


def test_samples_do_not_depend_on_rows_slots_or_neighbours(params, reference):
    other = run_fixed(params, make_engine(rows=3, slots=2, chunk=5), names=["e", "a", "ccc", "bb", "d"])
    for name, found in reference[0].items():
        for i, s in found.items():
            np.testing.assert_array_equal(other[name][i].token_ids, s.token_ids)
            np.testing.assert_allclose(other[name][i].logprobs, s.logprobs, atol=2e-5)


def test_the_ledger_counts_the_delivered_samples(reference):
    samples, ledger = reference
    lengths = {name: [len(s.token_ids) for s in found.values()] for name, found in samples.items()}
    tokens = sum(map(sum, lengths.values()))
    assert ledger.state["paper"]["decode"] == ledger.state["actual"]["decode"] == 2000 * tokens
    assert ledger.state["paper"]["prefill"] == 2000 * sum(5 * len(CONTEXTS[name]) for name in lengths)
    assert ledger.state["actual"]["prefill"] == 2000 * sum(len(CONTEXTS[name]) - 1 for name in lengths)
    attention = sum(causal_pairs(len(CONTEXTS[name]), rows) for name, rows in lengths.items()) * COST.attention_pair
    assert ledger.state["attention"]["prefill"] + ledger.state["attention"]["decode"] == pytest.approx(attention)
    assert ledger.state["hardware"]["decode"] >= ledger.state["actual"]["decode"]


def test_a_slot_idles_only_when_nothing_is_left_for_it(params, monkeypatch):
    fill, seen = refill._Loop.fill, []

    def checked(loop):
        running = fill(loop)
        waiting = list(loop.jobs)
        loop.jobs = iter(waiting)
        for row in loop.rows:
            assert row.job is not None or not waiting
            assert (row.slots >= 0).all() or row.job is None or row.job.next_sample() is None
        seen.append(running)
        return running

    monkeypatch.setattr(refill._Loop, "fill", checked)
    run_fixed(params, make_engine())
    assert seen[0] == 6 and seen[-1] == 0


PROBLEMS = [Problem(name, {}) for name in CONTEXTS]


def run_stage(params, path, stage, limit, task, ledger, after_chunk=lambda known: None):
    stream = stream_key(0, stage)
    with Log(path / "log.jsonl", HEADER) as log:
        return attempt_all(stage, make_engine(), params, task, PROBLEMS, limit, SAMPLING, stream, ledger, log, after_chunk)


class Killed(Exception):
    """Stands for a kill between two chunks."""


@pytest.mark.parametrize("stage", ["select", "collect"])
def test_a_stage_resumed_after_a_kill_ends_as_one_that_was_not(params, tmp_path, stage):
    task, chunks = FirstToken(limit=3), []
    whole = run_stage(params, tmp_path / "whole", stage, 12, task, Ledger())

    def kill(known):
        chunks.append(1)
        if len(chunks) == 4:
            raise Killed

    with pytest.raises(Killed):
        run_stage(params, tmp_path / "killed", stage, 12, task, Ledger(), kill)
    logged = replay(Log(tmp_path / "killed" / "log.jsonl", HEADER), stage, PROBLEMS, task)
    assert sum(len(a.verdicts) for a in logged.values()) > 0
    resumed = run_stage(params, tmp_path / "killed", stage, 12, task, Ledger())
    assert [t.sample_id for t in first_traces(resumed, COST)] == [t.sample_id for t in first_traces(whole, COST)]
    with Log(tmp_path / "killed" / "log.jsonl", HEADER) as log:
        names = [(r["problem"], r["sample"]) for r in log.records]
    assert len(names) == len(set(names))  # nothing was drawn twice
    for name, attempts in whole.items():
        both = attempts.verdicts.keys() & resumed[name].verdicts.keys()
        assert {i: attempts.verdicts[i] for i in both} == {i: resumed[name].verdicts[i] for i in both}
        if stage == "select":
            assert sorted(resumed[name].verdicts) == list(range(12))
        elif attempts.correct:
            assert both >= set(range(min(attempts.correct) + 1))


def test_samples_of_before_a_kill_stay_charged(params, tmp_path):
    first, second = Ledger(), Ledger()
    run_stage(params, tmp_path, "select", 4, FirstToken(), first)
    run_stage(params, tmp_path, "select", 4, FirstToken(), second)  # all of it comes from the log
    for accounting in ("paper", "actual", "attention"):
        assert first.state[accounting]["select"] > 0
        assert second.state[accounting]["select"] == pytest.approx(first.state[accounting]["select"])


def test_collect_charges_samples_that_were_dropped(params, tmp_path):
    ledger = Ledger()
    found = run_stage(params, tmp_path, "collect", 40, FirstToken(limit=12), ledger)
    delivered = sum(sum(a.lengths.values()) for a in found.values())
    begun = ledger.state["paper"]["collect"] / 2000
    prompts = sum(len(a.lengths) * len(FirstToken().render(a.problem)) for a in found.values())
    assert begun > delivered + prompts
    assert any(a.correct for a in found.values())
