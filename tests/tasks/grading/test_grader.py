"""Which layer decides on an answer, and which kinds of graders are refused."""

import pytest

from prefixrl_jax.tasks.grading.grader import Grader, grade
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
        ("#### 2 1/2 dollars", Verdict.CORRECT),
        ("#### 1.5 + 1 = 2.5", Verdict.CORRECT),
        ("#### 1.5 + 1", Verdict.WRONG),  # repeating the question is no answer
        (r"\boxed{5 \cdot \frac{1}{2}}", Verdict.WRONG),
        (r"\boxed{\frac{5}{\sqrt{4}}}", Verdict.WRONG),
        ("#### 2.500001", Verdict.WRONG),
        ("#### 2.0 = 2.5", Verdict.WRONG),
        ("2.5", Verdict.UNPARSED),
    ],
)
def test_among_numbers_only_one_that_is_written_out_counts(response, verdict):
    assert Grader("gsm8k").submit("2.50", response).result() is verdict


@pytest.mark.parametrize("kind", ["gsm8k", "math"])
@pytest.mark.parametrize("gold", [" ", "nan", "inf"])
def test_a_gold_answer_that_is_none_is_refused(kind, gold):
    with pytest.raises(ValueError, match="the gold answer is"):
        Grader(kind).submit(gold, "#### nan")


@pytest.mark.parametrize(
    ("gold", "response", "verdict"),
    [
        (r"It is \(\boxed{6}\).", r"\boxed{6}", Verdict.CORRECT),
        (r"2\sqrt{2}", r"\boxed{\sqrt{8}}", Verdict.CORRECT),
        (r"2\sqrt{2}", r"\boxed{\sqrt{7}}", Verdict.WRONG),
        ("1e999", r"\boxed{nan}", Verdict.WRONG),
        ("1, 2", r"\boxed{1} and \boxed{2}", Verdict.CORRECT),
        ("2", r"\boxed{1} and \boxed{2}", Verdict.WRONG),
    ],
)
def test_what_exact_arithmetic_leaves_open_is_decided_elsewhere(gold, response, verdict):
    assert grade("math", gold, response) is verdict
