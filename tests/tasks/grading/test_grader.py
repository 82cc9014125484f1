"""Which layer decides on an answer, and which kinds of graders are refused."""

import pytest

from prefixrl_jax.tasks.grading.grader import Grader
from prefixrl_jax.tasks.task import Verdict


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("graders:absent", "module 'graders' has no attribute 'absent'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("chess", "grader kind 'chess': one of gsm8k, math, or MODULE:FUNCTION"),
    ],
)
def test_a_grader_that_is_not_there_is_refused_at_once(monkeypatch, kind, message):
    monkeypatch.setenv("PYTHONPATH", "tests")
    with pytest.raises(ValueError, match=message):
        Grader(kind)


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("#### 2.5", Verdict.CORRECT),
        ("#### 5/2", Verdict.CORRECT),
        ("#### 2.500001", Verdict.WRONG),
        (r"\boxed{\frac{5}{\sqrt{4}}}", Verdict.WRONG),  # computer algebra would tell
        ("2.5", Verdict.UNPARSED),
    ],
)
def test_numbers_are_compared_by_writing_and_value_alone(response, verdict):
    grader = Grader("gsm8k")
    assert grader.submit("2.50", response).result() is verdict


def test_an_empty_gold_answer_is_refused():
    with pytest.raises(ValueError, match="the gold answer is empty"):
        Grader("gsm8k").submit(" ", "1")
