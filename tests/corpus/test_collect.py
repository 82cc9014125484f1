"""Select and collect: any order of finishing, kills, and the real sampler."""

import itertools

import pytest
from first_token import (
    CONFIG,
    COST,
    HEADER,
    PROBLEMS,
    SAMPLING,
    Aside,
    FirstToken,
    make_engine,
    sample,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import random_params

from prefixrl_jax.corpus.attempts import Attempts, attempts_in_log, first_traces
from prefixrl_jax.corpus.collect import CollectJob, RejectionSampler, SelectJob
from prefixrl_jax.corpus.sample_log import Log
from prefixrl_jax.corpus.shared_log import SharedLog
from prefixrl_jax.flops import Ledger
from prefixrl_jax.sampling import refill
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.tasks.task import Problem

PROBLEM = Problem("p", {})


def make_job(kind, path, limit):
    """Return a job on the problem "p" that resumes from a log, and the log."""
    log = SharedLog(path / "log", HEADER)
    logged = attempts_in_log(log.records, kind.stage, [PROBLEM], FirstToken())
    return kind(logged["p"], FirstToken(), limit, log), log


def test_select_draws_each_id_once_whatever_succeeds(tmp_path):
    job, _ = make_job(SelectJob, tmp_path, 4)
    assert [job.next_sample() for _ in range(5)] == [0, 1, 2, 3, None]
    for i in (3, 0, 2):
        job.deliver(sample(i, correct=True))
        assert not job.closed
    job.deliver(sample(1, correct=False))
    assert job.closed
    assert job.attempts.successes == 3
    assert job.attempts.correct == {}
    assert job.attempts.lengths == {0: 1, 1: 2, 2: 3, 3: 4}


def test_the_first_success_is_the_lowest_id_though_a_higher_one_is_done_earlier(tmp_path):
    job, _ = make_job(CollectJob, tmp_path, 9)
    assert [job.next_sample() for _ in range(5)] == [0, 1, 2, 3, 4]
    job.deliver(sample(3, correct=True))
    assert job.next_sample() is None
    assert not job.closed  # 0, 1, 2 may still come before it
    job.deliver(sample(0, correct=False))
    job.deliver(sample(1, correct=True))
    assert job.next_sample() is None
    assert job.closed  # 2 and 4 do not matter any more
    (trace,) = first_traces({"p": job.attempts}, COST)
    assert (trace.problem_id, trace.sample_id, trace.samples) == ("p", 1, 3)
    # Three prompts, and samples of 4, 1 and 2 tokens.
    assert trace.flops == 2000 * (3 * len(trace.context_ids) + 4 + 1 + 2)
    assert trace.context_ids == FirstToken().render(PROBLEM)
    assert trace.token_ids == [1, 0]
    assert trace.finish_reason == "stop"


def test_collect_gives_up_at_the_cap(tmp_path):
    job, _ = make_job(CollectJob, tmp_path, 3)
    for i in range(3):
        assert job.next_sample() == i
        assert not job.closed
        job.deliver(sample(i, correct=False))
    assert job.closed
    assert job.next_sample() is None
    assert first_traces({"p": job.attempts}, COST) == []


@settings(max_examples=80)
@given(st.data())
def test_any_order_of_delivery_finds_the_lowest_success(tmp_path_factory, data):
    cap = data.draw(st.integers(1, 8))
    slots = data.draw(st.integers(1, 4))
    correct = data.draw(st.sets(st.integers(0, cap - 1)))
    job, log = make_job(CollectJob, tmp_path_factory.mktemp("log"), cap)
    running = []
    begun = []
    while not job.closed:
        while len(running) < slots and (i := job.next_sample()) is not None:
            assert not job.attempts.correct  # no id is begun after a success
            running.append(i)
            begun.append(i)
        i = running.pop(data.draw(st.integers(0, len(running) - 1)))
        job.deliver(sample(i, i in correct))
    log.close()
    assert begun == list(range(len(begun)))
    lowest = sorted(correct)[:1]
    assert [t.sample_id for t in first_traces({"p": job.attempts}, COST)] == lowest
    certain = lowest[0] + 1 if lowest else cap  # samples that had to be finished
    assert set(range(certain)) <= job.attempts.verdicts.keys()


@pytest.mark.parametrize("kind", [SelectJob, CollectJob])
def test_a_resumed_job_takes_finished_samples_from_the_log(tmp_path, kind):
    job, log = make_job(kind, tmp_path, 6)
    assert [job.next_sample() for _ in range(5)] == [0, 1, 2, 3, 4]
    for i in (0, 2, 3):
        job.deliver(sample(i, correct=i == 3))
    correct = {"verdict": "correct", "tokens": 1}
    log.append({"stage": "another", "problem": "p", "sample": 5, **correct})
    log.append({"stage": job.stage, "problem": "unknown", "sample": 4, **correct})
    log.close()
    resumed, _ = make_job(kind, tmp_path, 6)
    assert [resumed.known_length(i) for i in range(6)] == [1, 0, 3, 4, 0, 0]
    assert resumed.attempts.lengths == {}
    # The same ids are begun; those that the log has are delivered again instead of drawn.
    assert [resumed.next_sample() for _ in range(5)] == [0, 1, 2, 3, 4]
    for i in (0, 2, 3):
        resumed.redeliver(i)
    assert resumed.attempts == job.attempts
    assert resumed.closed == job.closed


def test_logged_samples_that_are_never_begun_again_are_kept_and_counted(tmp_path):
    job, log = make_job(CollectJob, tmp_path, 9)
    for i in (0, 2, 1):
        job.deliver(sample(i, correct=i > 0))
    log.close()
    resumed, _ = make_job(CollectJob, tmp_path, 9)
    assert resumed.next_sample() == 0
    resumed.redeliver(0)
    assert resumed.next_sample() == 1
    resumed.redeliver(1)
    assert resumed.closed
    assert resumed.next_sample() is None  # one slot: 2 is never begun
    assert resumed.take_unused() == [3]
    assert resumed.take_unused() == []
    assert resumed.attempts == job.attempts


# --- on the real sampler


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def run_stage(params, path, stage, limit, task, ledger, show=lambda attempts: None):
    """Run a stage with the log in a directory, and return the attempts by problem id."""
    with SharedLog(path / "log", HEADER) as log:
        sampler = RejectionSampler(make_engine(), params, task, SAMPLING, log)
        return sampler.run(stage, PROBLEMS, limit, stream_key(0, stage), ledger, show)


class Killed(Exception):
    """Simulates a kill between two chunks."""


@pytest.mark.parametrize("stage", ["select", "collect"])
@pytest.mark.parametrize(("make_task", "torn"), [(FirstToken, 0), (FirstToken, 2), (Aside, 2)])
def test_a_stage_killed_again_and_again_ends_as_one_that_was_not(
    params, tmp_path, stage, make_task, torn
):
    """Verdicts, traces with their log-probs, records and ledger are equal bit for bit."""
    task = make_task(limit=3)
    expected_ledger = Ledger()
    whole = run_stage(params, tmp_path / "whole", stage, 12, task, expected_ledger)
    path = tmp_path / "killed" / "log"
    kills = 0
    while True:
        ledger = Ledger()
        chunks = itertools.count(1)

        def kill(attempts, chunks=chunks, last=2 + 3 * kills):
            if next(chunks) == last:
                raise Killed

        try:
            resumed = run_stage(params, tmp_path / "killed", stage, 12, task, ledger, kill)
            break
        except Killed:
            kills += 1
            # A power cut may take the last records too.
            part = max(path.glob("part-*"))
            lines = part.read_bytes().splitlines(keepends=True)
            part.write_bytes(b"".join(lines[: max(len(lines) - torn, 1)]))
            (path / "manifest.json").unlink(missing_ok=True)  # a kill closes no part
    assert kills > 3
    assert resumed == whole
    assert ledger.state == expected_ledger.state
    whole_records = list(Log(tmp_path / "whole" / "log", HEADER).records)
    killed_records = list(Log(path, HEADER).records)
    assert len(whole_records) == len(killed_records)
    assert all(record in killed_records for record in whole_records)


def test_a_stage_goes_on_with_the_log_of_an_earlier_version(params, tmp_path):
    """That log was one file beside the folder; it ends in the midst of a record."""
    task = FirstToken(limit=3)
    whole_ledger = Ledger()
    whole = run_stage(params, tmp_path / "whole", "collect", 12, task, whole_ledger)
    earlier = (tmp_path / "whole" / "log" / "part-000001.jsonl").read_bytes()
    earlier = earlier[: 2 * len(earlier) // 3]
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "log.jsonl").write_bytes(earlier)
    ledger = Ledger()
    assert run_stage(params, tmp_path / "begun", "collect", 12, task, ledger) == whole
    assert ledger.state == whole_ledger.state
    assert (tmp_path / "begun" / "log.jsonl").read_bytes() == earlier


@pytest.mark.parametrize("stage", ["select", "collect"])
def test_the_samples_drawn_do_not_depend_on_how_long_grading_takes(params, tmp_path, stage):
    fast_task = Aside(3, delay=lambda i: 0.0)
    slow_task = Aside(3, delay=lambda i: 0.05 * (i % 4 == 1))
    fast_ledger = Ledger()
    slow_ledger = Ledger()
    fast = run_stage(params, tmp_path / "fast", stage, 12, fast_task, fast_ledger)
    slow = run_stage(params, tmp_path / "slow", stage, 12, slow_task, slow_ledger)
    assert fast == slow
    assert fast_ledger.state == slow_ledger.state
    # Graded at once, the first correct trace is the same. Graded aside, the samples of one more
    # chunk may have been begun before its verdict came.
    at_once = run_stage(params, tmp_path / "at once", stage, 12, FirstToken(3), Ledger())
    assert trace_tokens(fast) == trace_tokens(at_once)


def trace_tokens(attempts):
    return {t.problem_id: t.token_ids for t in first_traces(attempts, COST)}


def test_a_verdict_given_aside_counts_from_the_next_chunk_on(tmp_path):
    log = SharedLog(tmp_path / "log", HEADER)
    job = CollectJob(Attempts(PROBLEM, 2), Aside(2), 9, log)
    assert [job.next_sample() for _ in range(3)] == [0, 1, 2]
    job.deliver(sample(0, correct=True))
    assert job.attempts.correct == {}
    assert job.next_sample() == 3
    assert not job.closed
    job.settle()
    assert list(job.attempts.correct) == [0]
    assert job.next_sample() is None
    assert job.closed


def test_finished_samples_are_not_computed_again(params, tmp_path, monkeypatch):
    first = Ledger()
    run_stage(params, tmp_path, "select", 4, FirstToken(), first)
    monkeypatch.setattr(refill.sampler, "decode_chunk", None)  # a call would fail
    second = Ledger()
    run_stage(params, tmp_path, "select", 4, FirstToken(), second)
    assert second.state == first.state


def test_fewer_slots_after_a_kill_keep_every_sample_and_charge_it(params, tmp_path):
    task = FirstToken(limit=3)
    with SharedLog(tmp_path / "log", HEADER) as log:
        sampler = RejectionSampler(make_engine(slots=5), params, task, SAMPLING, log)
        drawn = sampler.run("collect", PROBLEMS, 12, stream_key(0, "collect"), Ledger())
    ledger = Ledger()
    resumed = run_stage(params, tmp_path, "collect", 12, task, ledger)
    for name, attempts in drawn.items():
        assert attempts.lengths.items() <= resumed[name].lengths.items()
    tokens = sum(sum(a.lengths.values()) + len(a.lengths) * a.context for a in resumed.values())
    assert ledger.state["paper"]["collect"] >= 2000 * tokens


def test_the_first_solved_problem_of_a_stage_is_announced_once(params, tmp_path):
    announced = []
    task = FirstToken(limit=12)

    def announce(*solved):
        announced.append(solved)

    with SharedLog(tmp_path / "log", HEADER) as log:
        sampler = RejectionSampler(make_engine(), params, task, SAMPLING, log, announce)
        attempts = sampler.run("select", PROBLEMS, 4, stream_key(0, "select"), Ledger())
    ((stage, problem, token_ids),) = announced
    assert stage == "select"
    assert attempts[problem.id].successes
    assert token_ids[0] < 12
    assert sum(a.successes for a in attempts.values()) > 1


def test_collect_charges_samples_that_were_dropped(params, tmp_path):
    ledger = Ledger()
    attempts = run_stage(params, tmp_path, "collect", 40, FirstToken(limit=12), ledger)
    delivered = sum(sum(a.lengths.values()) for a in attempts.values())
    prompts = sum(len(a.lengths) * len(FirstToken().render(a.problem)) for a in attempts.values())
    charged = ledger.state["paper"]["collect"] / 2000
    assert charged > delivered + prompts
    assert any(a.correct for a in attempts.values())
