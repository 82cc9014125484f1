"""Grading through the interface of a task: a verdict or a Future of one, and nothing else."""

from concurrent.futures import Future

import pytest

from prefixrl_jax.tasks.task import Problem, Verdict, begin_grading

PROBLEM = Problem("p", {})


class Returns:
    """A task whose grader returns one value."""

    name = "fixed"

    def __init__(self, value):
        self._value = value

    def grade(self, problem, response):
        return self._value


@pytest.mark.parametrize("reward", [1, 1.5, True, None, "correct"])
def test_a_grade_that_is_no_verdict_is_refused(reward):
    message = rf"task fixed: grade returned {reward!r} for problem 'p'; accepted: Verdict\.CORRECT"
    with pytest.raises(ValueError, match=message):
        begin_grading(Returns(reward), PROBLEM, [1])()


def test_a_verdict_may_come_at_once_or_later():
    assert begin_grading(Returns(Verdict.WRONG), PROBLEM, [1])() is Verdict.WRONG
    future = Future()
    wait = begin_grading(Returns(future), PROBLEM, [1])
    future.set_result(Verdict.CORRECT)
    assert wait() is Verdict.CORRECT


def test_only_a_correct_response_is_rewarded():
    assert [v for v in Verdict if v.reward] == [Verdict.CORRECT] and Verdict.CORRECT.reward == 1.0
