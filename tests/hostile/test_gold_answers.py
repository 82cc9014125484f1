"""Gold answers that are no answers: refused with the field that holds them."""

import json

import pytest
from chat_folder import write_chat_folder

from prefixrl_jax.config import get_config
from prefixrl_jax.tasks.arithmetic import Arithmetic
from prefixrl_jax.tasks.math import Math, MathSettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_chat_folder(tmp_path_factory.mktemp("model")))


def make(folder, kind):
    if kind == "arithmetic":
        return Arithmetic(folder, **get_config().task.arithmetic.to_dict())
    return Math(folder, MathSettings(**(get_config().task.math.to_dict() | {"kind": kind})))


@pytest.mark.parametrize("kind", ["gsm8k", "math", "arithmetic"])
@pytest.mark.parametrize(
    "answer", ["NaN", "1e999", "-1e999", "Infinity", '"nan"', '"$\\\\text{inf}$"']
)
def test_a_gold_answer_that_is_no_number_is_refused(folder, kind, answer):
    row = json.loads(f'{{"question": "1 + 1", "answer": {answer}}}')
    with pytest.raises(ValueError, match=r"^field 'answer'='?.*the gold answer is no answer"):
        make(folder, kind).parse(row)


@pytest.mark.parametrize("answer", ["2", "2.5", '"2"', '"1e999"', '"\\\\infty"', '"none"'])
def test_a_gold_answer_is_accepted(folder, answer):
    row = json.loads(f'{{"question": "1 + 1", "answer": {answer}}}')
    assert make(folder, "math").parse(row)["answer"] == str(row["answer"])


def test_a_grader_of_ones_own_knows_what_its_answers_are(folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "tests")
    task = make(folder, "graders:hostile")
    assert task.parse({"question": "Which bread?", "answer": "nan"})["answer"] == "nan"
    with pytest.raises(ValueError, match="the gold answer is no answer"):
        task.parse({"question": "Which bread?", "answer": float("nan")})
