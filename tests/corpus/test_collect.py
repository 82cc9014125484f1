"""Select and collect under any order of finishing, across a kill, and on the real sampler."""

import dataclasses
import itertools
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TINY, random_params

from prefixrl_jax.corpus.attempts import Attempts, attempts_in_log, first_traces, hard_set
from prefixrl_jax.corpus.collect import CollectJob, RejectionSampler, SelectJob
from prefixrl_jax.corpus.sample_log import Log
from prefixrl_jax.corpus.saved import load_corpus, save_corpus
from prefixrl_jax.corpus.shared_log import SharedLog
from prefixrl_jax.corpus.traces import read_dataset
from prefixrl_jax.flops import Ledger, causal_pairs, costs
from prefixrl_jax.model.tokenizer import fingerprint, word_tokenizer
from prefixrl_jax.runtime.mesh import make_mesh
from prefixrl_jax.sampling import refill
from prefixrl_jax.sampling.job import FixedJob, Sample
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.sampling.refill import Engine
from prefixrl_jax.sampling.sampler import Sampling
from prefixrl_jax.tasks.prompt import Prompt
from prefixrl_jax.tasks.task import Problem, Verdict
from prefixrl_jax.training.rollout import RolloutSampler

HEADER = {"model": "tiny"}
COST = costs(1000, 1, 4, 8)
PROBLEM = Problem("p", {})


class FirstToken:
    """A task in which a response is correct if it begins with a token below `limit`."""

    stop_ids = (0, 1)
    tokenizer = word_tokenizer(["a", "b"])
    grades_aside = False

    def __init__(self, limit: int = 2):
        self.limit = limit

    def render(self, problem):
        return [5, 6, *(ord(c) % 37 for c in problem.id)]

    def grade(self, problem, response):
        return Verdict.CORRECT if response[0] < self.limit else Verdict.WRONG


class Aside(FirstToken):
    """The same, graded by a thread that takes its time: `delay(number of the response)` seconds."""

    grades_aside = True

    def __init__(self, limit: int, delay=lambda i: 0.001 * (i % 3)):
        super().__init__(limit)
        self._delay, self._count, self._thread = delay, itertools.count(), ThreadPoolExecutor(1)

    def grade(self, problem, response):
        return self._thread.submit(self._later, next(self._count), super().grade(problem, response))

    def _later(self, number, verdict):
        time.sleep(self._delay(number))
        return verdict


def sample(i: int, correct: bool) -> Sample:
    return Sample(
        i,
        np.array([1 if correct else 9, *range(i)], np.int32),
        np.full(i + 1, -0.5, np.float32),
        "stop",
    )


def make_job(kind, path, limit):
    """A job over the problem "p" that knows what is in the log, and the log, to which it goes on
    writing.
    """
    log = SharedLog(path / "log.jsonl", HEADER)
    logged = attempts_in_log(log.records, kind.stage, [PROBLEM], FirstToken())
    return kind(logged["p"], FirstToken(), limit, log), log


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
    # three prompts, samples of 4, 1 and 2 tokens
    assert trace.flops == 2000 * (3 * len(trace.context_ids) + 4 + 1 + 2)
    assert (trace.context_ids, trace.token_ids, trace.finish_reason) == (
        FirstToken().render(PROBLEM),
        [1, 0],
        "stop",
    )


def test_collect_gives_up_at_the_cap(tmp_path):
    job, _ = make_job(CollectJob, tmp_path, 3)
    for i in range(3):
        assert job.next_sample() == i and not job.closed
        job.deliver(sample(i, correct=False))
    assert (
        job.closed and job.next_sample() is None and first_traces({"p": job.attempts}, COST) == []
    )


@settings(max_examples=80)
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
    assert [t.sample_id for t in first_traces({"p": job.attempts}, COST)] == (
        [] if first is None else [first]
    )
    assert set(range(cap if first is None else first + 1)) <= job.attempts.verdicts.keys()


@pytest.mark.parametrize("kind", [SelectJob, CollectJob])
def test_what_is_in_the_log_is_known_and_comes_back_whole(tmp_path, kind):
    job, log = make_job(kind, tmp_path, 6)
    assert [job.next_sample() for _ in range(5)] == [0, 1, 2, 3, 4]
    for i in (0, 2, 3):
        job.deliver(sample(i, correct=i == 3))
    log.append({"stage": "another", "problem": "p", "sample": 5, "verdict": "correct", "tokens": 1})
    log.append(
        {"stage": job.stage, "problem": "unknown", "sample": 4, "verdict": "correct", "tokens": 1}
    )
    log.close()
    again, _ = make_job(kind, tmp_path, 6)
    assert [again.known_length(i) for i in range(6)] == [
        1,
        0,
        3,
        4,
        0,
        0,
    ] and again.attempts.lengths == {}
    # the same ids are begun; known ones are not drawn
    assert [again.next_sample() for _ in range(5)] == [0, 1, 2, 3, 4]
    for i in (0, 2, 3):
        again.redeliver(i)
    assert again.attempts == job.attempts and again.closed == job.closed


def test_logged_samples_that_nobody_asks_for_are_kept_and_counted(tmp_path):
    job, log = make_job(CollectJob, tmp_path, 9)
    for i in (0, 2, 1):
        job.deliver(sample(i, correct=i > 0))
    log.close()
    again, _ = make_job(CollectJob, tmp_path, 9)
    assert again.next_sample() == 0
    again.redeliver(0)
    assert again.next_sample() == 1
    again.redeliver(1)
    assert again.closed and again.next_sample() is None  # one slot: 2 is never begun
    assert (
        again.take_unused() == [3] and again.take_unused() == [] and again.attempts == job.attempts
    )


def test_the_hard_set_is_a_band_of_pass_rates():
    rates = {"a": 0, "b": 2, "c": 1, "d": 4, "e": 0}
    attempts = {name: Attempts(Problem(name, {}), 2) for name in rates}
    for name, n in rates.items():
        for i in range(4):
            attempts[name].add(i, Verdict.CORRECT if i < n else Verdict.UNPARSED, 5, None)
    choose = lambda band, count=9: "".join(p.id for p in hard_set(attempts, band, count))  # noqa: E731
    assert (
        choose((0.0, 0.0)) == "ae" and choose((0.25, 0.5)) == "bc" and choose((0.0, 1.0)) == "abcde"
    )
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
    engine.run(
        params, jobs, SAMPLING, stream_key(0, "test"), ledger or Ledger(), ("prefill", "decode")
    )
    return {job.name: job.samples for job in jobs}


@pytest.fixture(scope="module")
def reference(params):
    """The samples and the ledger of one run of the smaller engine."""
    ledger = Ledger()
    return run_fixed(params, make_engine(), ledger=ledger), ledger


def test_every_job_gets_exactly_its_ids(reference):
    samples, _ = reference
    assert {name: sorted(found) for name, found in samples.items()} == {
        name: [0, 1, 2, 3, 4] for name in CONTEXTS
    }
    drawn = [s for found in samples.values() for s in found.values()]
    # ends of all kinds: slots were refilled out of step
    assert len({len(s.token_ids) for s in drawn}) > 2
    for s in drawn:
        stopped = s.token_ids[-1] in SAMPLING.stop_ids
        assert s.finish_reason == ("stop" if stopped else "length") and (
            stopped or len(s.token_ids) == 7
        )
        assert not np.isin(s.token_ids[:-1], SAMPLING.stop_ids).any()
        assert len(s.logprobs) == len(s.token_ids) and (s.logprobs < 0).all()


def test_samples_do_not_depend_on_rows_slots_or_neighbours(params, reference):
    other = run_fixed(
        params, make_engine(rows=3, slots=2, chunk=5), names=["e", "a", "ccc", "bb", "d"]
    )
    for name, found in reference[0].items():
        for i, s in found.items():
            np.testing.assert_array_equal(other[name][i].token_ids, s.token_ids)
            np.testing.assert_allclose(other[name][i].logprobs, s.logprobs, atol=2e-5)


def test_jobs_of_few_samples_take_rows_rather_than_slots(params, reference):
    engine = make_engine(rows=1, slots=6)
    shapes = {n: (engine.wide(n).rows, engine.wide(n).slots) for n in (1, 2, 3, 4, 5, 6, 50)}
    assert shapes == {1: (6, 1), 2: (3, 2), 3: (2, 3), 4: (2, 3), 5: (2, 3), 6: (1, 6), 50: (1, 6)}
    ledgers = Ledger(), Ledger()
    for ledger, used in zip(ledgers, (engine, engine.wide(1)), strict=True):
        for name, found in run_fixed(params, used, n=1, ledger=ledger).items():
            np.testing.assert_array_equal(found[0].token_ids, reference[0][name][0].token_ids)
    slow, fast = (ledger.state["hardware"]["decode"] for ledger in ledgers)
    assert fast < slow / 2  # what the device decodes, idle slots included


def test_the_ledger_counts_the_delivered_samples(reference):
    samples, ledger = reference
    lengths = {name: [len(s.token_ids) for s in found.values()] for name, found in samples.items()}
    tokens = sum(map(sum, lengths.values()))
    assert ledger.state["paper"]["decode"] == ledger.state["actual"]["decode"] == 2000 * tokens
    assert ledger.state["paper"]["prefill"] == 2000 * sum(
        5 * len(CONTEXTS[name]) for name in lengths
    )
    assert ledger.state["actual"]["prefill"] == 2000 * sum(
        len(CONTEXTS[name]) - 1 for name in lengths
    )
    attention = (
        sum(causal_pairs(len(CONTEXTS[name]), rows) for name, rows in lengths.items())
        * COST.attention_pair
    )
    assert ledger.state["attention"]["prefill"] + ledger.state["attention"][
        "decode"
    ] == pytest.approx(attention)
    assert ledger.state["hardware"]["decode"] >= ledger.state["actual"]["decode"]


def test_a_slot_idles_only_when_nothing_is_left_for_it(params, monkeypatch):
    fill, seen = refill._Loop.fill, []

    def checked(loop):
        work = fill(loop)
        waiting = list(loop.jobs)
        loop.jobs = iter(waiting)
        for row in loop.rows:
            assert row.job is not None or not waiting
            assert (row.slots >= 0).all() or row.job is None or row.job.next_sample() is None
        seen.append(work.running)
        return work

    monkeypatch.setattr(refill._Loop, "fill", checked)
    run_fixed(params, make_engine())
    assert seen[0] == 6 and seen[-1] == 0


PROBLEMS = [Problem(name, {}) for name in CONTEXTS]


def run_stage(params, path, stage, limit, task, ledger, show=lambda known: None):
    with SharedLog(path / "log.jsonl", HEADER) as log:
        sampler = RejectionSampler(make_engine(), params, task, SAMPLING, log)
        return sampler.run(stage, PROBLEMS, limit, stream_key(0, stage), ledger, show)


def test_a_job_that_knows_no_finished_sample_is_handed_none():
    job = FixedJob("p", [1], 2)
    assert job.known_length(0) == 0
    with pytest.raises(LookupError, match="p: sample 0 was not finished before"):
        job.redeliver(0)


class Killed(Exception):
    """Stands for a kill between two chunks."""


@pytest.mark.parametrize("stage", ["select", "collect"])
@pytest.mark.parametrize(("make_task", "torn"), [(FirstToken, 0), (FirstToken, 2), (Aside, 2)])
def test_a_stage_killed_again_and_again_ends_as_one_that_was_not(
    params, tmp_path, stage, make_task, torn
):
    """Equal to the bit: verdicts, traces with their log-probs, the log's records in order, and the
    ledger.
    """
    task, expected = make_task(limit=3), Ledger()
    whole = run_stage(params, tmp_path / "whole", stage, 12, task, expected)
    path, kills = tmp_path / "killed" / "log.jsonl", 0
    while True:
        ledger, chunks = Ledger(), []

        def kill(known, chunks=chunks, last=2 + 3 * kills):
            chunks.append(1)
            if len(chunks) == last:
                raise Killed

        try:
            resumed = run_stage(params, tmp_path / "killed", stage, 12, task, ledger, kill)
            break
        except Killed:
            kills += 1
            lines = path.read_bytes().splitlines(keepends=True)
            # the last records may be lost too
            path.write_bytes(b"".join(lines[: max(len(lines) - torn, 1)]))
    assert kills > 3 and resumed == whole and ledger.state == expected.state
    records = [Log(tmp_path / name / "log.jsonl", HEADER).records for name in ("whole", "killed")]
    assert len(records[0]) == len(records[1]) and all(r in records[1] for r in records[0])


@pytest.mark.parametrize("stage", ["select", "collect"])
def test_what_is_drawn_does_not_depend_on_how_long_grading_takes(params, tmp_path, stage):
    tasks = [Aside(3, delay) for delay in (lambda i: 0.0, lambda i: 0.05 * (i % 4 == 1))]
    ledgers = [Ledger(), Ledger()]
    fast, slow = (
        run_stage(params, tmp_path / str(i), stage, 12, tasks[i], ledgers[i]) for i in range(2)
    )
    assert fast == slow and ledgers[0].state == ledgers[1].state
    at_once = run_stage(params, tmp_path / "at once", stage, 12, FirstToken(3), Ledger())
    traces = [
        {name: first_traces({name: a}, COST) for name, a in found.items()}
        for found in (fast, at_once)
    ]
    # the first correct trace is the same; a chunk more may have been begun beside it
    for name, found in traces[0].items():
        assert [t.token_ids for t in found] == [t.token_ids for t in traces[1][name]]


def test_a_verdict_given_aside_counts_from_the_next_chunk_on(tmp_path):
    log = SharedLog(tmp_path / "log.jsonl", HEADER)
    job = CollectJob(Attempts(PROBLEM, 2), Aside(2), 9, log)
    assert [job.next_sample() for _ in range(3)] == [0, 1, 2]
    job.deliver(sample(0, correct=True))
    assert job.attempts.correct == {} and job.next_sample() == 3 and not job.closed
    job.settle()
    assert list(job.attempts.correct) == [0] and job.next_sample() is None and job.closed


def test_rollouts_are_graded_in_their_order_whenever_the_verdicts_come(params):
    prompts = [Prompt(p) for p in PROBLEMS[:3]]
    found = [
        RolloutSampler(make_engine(), task, SAMPLING, ("eval", "eval")).sample(
            params, prompts, 4, stream_key(0, "r"), Ledger()
        )
        for task in (FirstToken(9), Aside(9))
    ]
    assert found[0].verdicts == found[1].verdicts and 0 < found[0].rewards.mean() < 1


def test_what_is_finished_is_not_computed_again(params, tmp_path, monkeypatch):
    run_stage(params, tmp_path, "select", 4, FirstToken(), first := Ledger())
    monkeypatch.setattr(refill.sampler, "decode_chunk", None)  # a call would fail
    run_stage(params, tmp_path, "select", 4, FirstToken(), second := Ledger())
    assert second.state == first.state


def test_fewer_slots_after_a_kill_keep_every_sample_and_charge_it(params, tmp_path):
    task = FirstToken(limit=3)
    with SharedLog(tmp_path / "log.jsonl", HEADER) as log:
        sampler = RejectionSampler(make_engine(slots=5), params, task, SAMPLING, log)
        drawn = sampler.run("collect", PROBLEMS, 12, stream_key(0, "collect"), Ledger())
    resumed = run_stage(params, tmp_path, "collect", 12, task, ledger := Ledger())
    for name, attempts in drawn.items():
        assert attempts.lengths.items() <= resumed[name].lengths.items()
    tokens = sum(sum(a.lengths.values()) + len(a.lengths) * a.context for a in resumed.values())
    assert ledger.state["paper"]["collect"] >= 2000 * tokens


def test_the_first_solved_problem_of_a_stage_is_announced_once(params, tmp_path):
    announced = []
    with SharedLog(tmp_path / "log.jsonl", HEADER) as log:
        task = FirstToken(limit=12)
        sampler = RejectionSampler(
            make_engine(), params, task, SAMPLING, log, lambda *what: announced.append(what)
        )
        attempts = sampler.run("select", PROBLEMS, 4, stream_key(0, "select"), Ledger())
    ((stage, problem, token_ids),) = announced
    assert stage == "select" and attempts[problem.id].successes and token_ids[0] < 12
    assert sum(a.successes for a in attempts.values()) > 1


def test_collect_charges_samples_that_were_dropped(params, tmp_path):
    ledger = Ledger()
    found = run_stage(params, tmp_path, "collect", 40, FirstToken(limit=12), ledger)
    delivered = sum(sum(a.lengths.values()) for a in found.values())
    begun = ledger.state["paper"]["collect"] / 2000
    prompts = sum(len(a.lengths) * len(FirstToken().render(a.problem)) for a in found.values())
    assert begun > delivered + prompts
    assert any(a.correct for a in found.values())


# --- what is left of a damaged corpus


@pytest.fixture
def kept(tmp_path):
    """A complete corpus of two traces, dataset and log."""
    task, header = FirstToken(), {"model": "tiny", "tokenizer": fingerprint(FirstToken.tokenizer)}
    with Log(tmp_path / "log.jsonl", header) as log:
        jobs = [CollectJob(Attempts(p, len(task.render(p))), task, 9, log) for p in PROBLEMS[:2]]
        for job in jobs:
            job.deliver(sample(0, correct=False))
            job.deliver(sample(1, correct=True))
    traces = first_traces({job.name: job.attempts for job in jobs}, COST)
    save_corpus(tmp_path, traces, {**header, "solved": 2})
    return tmp_path, traces


def read(directory):
    return load_corpus(directory, {p.id: p for p in PROBLEMS}, FirstToken(), COST)


def shard(directory):
    (found,) = (directory / "dataset").glob("*array_record*")
    return found


def test_a_sound_corpus_comes_back(kept, capsys):
    assert read(kept[0]) == kept[1] and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: shard(d).unlink(),
        lambda d: shard(d).write_bytes(shard(d).read_bytes()[:-99]),
        lambda d: (d / "dataset" / "dataset_info.json").write_text("{"),
        lambda d: shutil.rmtree(d / "dataset"),
    ],
    ids=["no shard", "shard cut short", "no JSON", "no dataset"],
)
def test_a_damaged_dataset_is_written_anew_from_the_log(kept, damage, capsys):
    directory, traces = kept
    damage(directory)
    assert read(directory) == traces
    assert "the traces are read from" in capsys.readouterr().out
    assert read_dataset(directory / "dataset") == traces


def test_a_corpus_is_never_silently_smaller(kept):
    directory, _ = kept
    shutil.rmtree(directory / "dataset")
    lines = (directory / "log.jsonl").read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"correct", b"corrext")
    (directory / "log.jsonl").write_bytes(b"".join(lines))
    with pytest.raises(
        ValueError,
        match=r"2 problems were solved, the log still knows 1 traces .*line 3: dropped .* checksum",
    ):
        read(directory)
