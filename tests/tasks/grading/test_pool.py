"""Graders that hang, raise, exhaust memory or die cost their own answer and no other."""

import subprocess
import sys

import pytest
from runs import PYTHON

from prefixrl_jax.tasks.grading.pool import Pool
from prefixrl_jax.tasks.grading.precise import decide
from prefixrl_jax.tasks.grading.worker import load
from prefixrl_jax.tasks.task import Verdict


@pytest.fixture(autouse=True)
def graders_can_be_imported(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "tests")


def test_no_answer_is_lost_when_others_misbehave():
    cases = [
        ("hang", Verdict.TIMEOUT),
        ("a", Verdict.CORRECT),
        ("raise", Verdict.ERROR),
        ("spin", Verdict.TIMEOUT),
        ("b", Verdict.WRONG),
        ("die", Verdict.ERROR),
        ("exit", Verdict.ERROR),
        ("allocate", Verdict.ERROR),
        ("print", Verdict.WRONG),
    ]
    cases = cases * 2 + [("a", Verdict.CORRECT)] * 50
    with Pool("graders:hostile", workers=2, timeout=1.0, memory=2 << 30) as pool:
        futures = [pool.submit("a", response) for response, _ in cases]
        assert [f.result() for f in futures] == [verdict for _, verdict in cases]


def test_what_is_no_verdict_is_wrong():
    with Pool("graders:unhelpful", workers=1) as pool:
        assert pool.submit("a", "a").result() is Verdict.WRONG


def test_a_worker_that_cannot_start_is_an_error_and_no_hang():
    with Pool("graders:absent", workers=1) as pool:
        assert pool.submit("a", "a").result() is Verdict.ERROR


@pytest.mark.parametrize("name", ["graders", "graders:absent", "no_such_module:f", ":f", "os:no"])
def test_a_name_that_is_no_function_is_refused(name, monkeypatch):
    monkeypatch.syspath_prepend("tests")
    with pytest.raises(ValueError, match=rf"grader '{name}': .*module:function"):
        load(name)


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        (r"\tan^2(y)+1", r"\sec^2(y)", Verdict.CORRECT),
        (r"\{\sqrt{8},1\}", r"\{1,2\sqrt{2}\}", Verdict.CORRECT),
        (r"(\sqrt{8},1)", r"(1,2\sqrt{2})", Verdict.WRONG),
        (r"\sqrt{2}", "1.4", Verdict.WRONG),
        ("3", r"3^{400000000}", Verdict.WRONG),
        ("e", r"\frac{e", Verdict.WRONG),
    ],
)
def test_high_precision_decides_what_exact_arithmetic_cannot(precise, gold, answer, verdict):
    assert precise.submit(gold, answer).result() is verdict
    assert decide(gold, answer) is (verdict is Verdict.CORRECT)


@pytest.fixture(scope="module")
def precise():
    with Pool(workers=1, timeout=3.0) as pool:
        yield pool


def test_a_worker_answers_line_by_line():
    command = [*PYTHON, "-m", "prefixrl_jax.tasks.grading.worker", "graders:hostile"]
    command += [str(4 << 30), "60"]
    lines = '["a", "a"]\n["a", "b"]\n["a", "raise"]\n'
    worker = subprocess.run(command, input=lines, capture_output=True, text=True)
    assert worker.stdout.splitlines() == [
        "ready",
        '["correct", ""]',
        '["wrong", ""]',
        """["error", "KeyError: 'no such thing'"]""",
    ]


def test_grading_imports_no_jax_and_no_computer_algebra():
    code = (
        "import sys, prefixrl_jax.tasks.grading.grader, prefixrl_jax.tasks.grading.precise;"
        " print({'jax', 'sympy', 'math_verify', 'torch'} & set(sys.modules) or 'none')"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert process.stdout == "none\n"
