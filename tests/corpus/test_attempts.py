"""What the samples of a log say of their problems; the hard set is chosen by pass rates."""

import json

from first_token import FirstToken

from prefixrl_jax.corpus.attempts import Attempts, LoggedSamples, attempts_in_log, hard_set
from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.tasks.task import Problem, Verdict


def test_the_hard_set_is_a_band_of_pass_rates():
    successes = {"a": 0, "b": 2, "c": 1, "d": 4, "e": 0}  # of four samples
    attempts = {name: Attempts(Problem(name, {}), 2) for name in successes}
    for name, count in successes.items():
        for i in range(4):
            attempts[name].add(i, Verdict.CORRECT if i < count else Verdict.UNPARSED, 5, None)

    def choose(band, count=9):
        return "".join(p.id for p in hard_set(attempts, band, count))

    assert choose((0.0, 0.0)) == "ae"
    assert choose((0.25, 0.5)) == "bc"
    assert choose((0.0, 1.0)) == "abcde"
    assert choose((0.0, 0.25), 2) == "ac"
    assert choose((0.9, 0.95)) == ""


def logged_sample(i, stage="collect", problem="p", verdict="wrong", **fields):
    record = {"stage": stage, "problem": problem, "sample": i, "verdict": verdict, "tokens": i + 1}
    if stage == "collect" and verdict == "correct":
        record["trace"] = Trace(problem, i, [1], [4, 0], [-0.1, -0.2], "stop", 0, 0.0).to_record()
    return record | fields


RECORDS = [
    logged_sample(3, verdict="correct"),
    logged_sample(0, wrong=[4, 5, 6]),
    logged_sample(1, verdict="correct"),
    logged_sample(2, verdict="correct"),
    logged_sample(50_000, problem="q", verdict="correct"),
    logged_sample(0, stage="select", verdict="correct"),
    logged_sample(1, stage="select", verdict="timeout"),
]


def test_of_a_problem_the_first_trace_is_kept_whatever_the_order():
    for records in (RECORDS, RECORDS[::-1]):
        attempts = attempts_in_log(records, "collect", [Problem("p", {})], FirstToken())["p"]
        assert attempts.verdicts == {
            0: Verdict.WRONG,
            1: Verdict.CORRECT,
            2: Verdict.CORRECT,
            3: Verdict.CORRECT,
        }
        assert attempts.successes == 3
        assert {i: trace.sample_id for i, trace in attempts.correct.items()} == {1: 1}
        assert attempts.wrong == [4, 5, 6]
        assert attempts.context == len(FirstToken().render(Problem("p", {})))


def test_another_process_is_told_all_that_is_kept():
    logged, told = LoggedSamples(), LoggedSamples()
    for record in RECORDS:
        logged.add(record)
    for row in logged.rows():
        told.add_row(json.loads(json.dumps(row)))
    for stage in ("select", "collect"):
        for name in "pqr":
            problem = Problem(name, {})
            assert told.get(stage, problem, 2) == logged.get(stage, problem, 2)
    assert logged.get("collect", Problem("q", {}), 2).first_correct == 50_000
    assert not logged.get("select", Problem("p", {}), 2).is_solved


def test_what_is_added_to_attempts_does_not_change_the_log():
    logged = LoggedSamples()
    logged.add(RECORDS[0])
    logged.get("collect", Problem("p", {}), 2).add(9, Verdict.WRONG, 1, None)
    assert list(logged.get("collect", Problem("p", {}), 2).verdicts) == [3]
