"""Arithmetic for a pretrained model: generated problems and their values, asked and graded."""

import ast

import pytest
from chat_folder import write_chat_folder

from prefixrl_jax.config import get_config
from prefixrl_jax.tasks.arithmetic import Arithmetic
from prefixrl_jax.tasks.registry import make_task
from prefixrl_jax.tasks.task import Problem, Verdict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_chat_folder(tmp_path_factory.mktemp("model"))


def make(folder, **fields) -> Arithmetic:
    section = get_config().task.arithmetic.to_dict()
    return Arithmetic(**(section | {"model_path": str(folder)} | fields))


def test_problems_have_their_value_and_splits_share_no_numbers(folder):
    task = make(folder, terms=4, largest=9)
    sets = {split: task.generate(split, 150, seed=1) for split in ("train", "heldout")}
    numbers = {"train": set(), "heldout": set()}
    for split, problems in sets.items():
        assert len({p.id for p in problems}) == 150
        for p in problems:
            assert p.data == task.parse(p.data)
            tree = ast.parse(p.data["question"], mode="eval")
            assert int(p.data["answer"]) == eval(compile(tree, "question", "eval"))
            terms = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
            assert len(terms) == 4 and set(terms) <= set(range(2, 10))
            numbers[split].add(tuple(sorted(terms)))
    assert not numbers["train"] & numbers["heldout"]
    signs = "".join(p.data["question"] for p in sets["train"])
    assert all(sign in signs for sign in "+-*")
    assert task.generate("train", 150, seed=1) == sets["train"]
    assert task.generate("train", 150, seed=2) != sets["train"]


def test_problems_are_asked_and_graded_as_word_problems_are(folder):
    task = make(folder, prompt="What is {question}?")
    problem = Problem("p", task.parse({"question": "2 - 3 * 4", "answer": -10}))
    assert task.text(task.render(problem)) == "[user]What is 2 - 3 * 4?<eos>[assistant]"
    for response, verdict in (
        ("3 * 4 = 12, the answer is -10.", Verdict.CORRECT),
        ("The answer is 10", Verdict.WRONG),
        ("2 - 12 = -10", Verdict.UNPARSED),
    ):
        assert task.grade(problem, task.tokenizer.encode(response)).result() is verdict
    section = get_config().task.arithmetic.to_dict()
    assert make_task("arithmetic", section, str(folder)).name == "arithmetic"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"terms": 1}, "terms=1: a whole number from 2 to 100"),
        ({"largest": 1}, "largest=1: a whole number from 2"),
        ({"signs": "+/"}, r"task\.arithmetic\.signs='\+/': some of the signs \+-\*"),
        ({"signs": ""}, r"task\.arithmetic\.signs='': some of"),
        ({"prompt": "Add."}, r"task\.arithmetic\.prompt='Add\.': a text with \{question\}"),
        ({"model_path": ""}, r"task\.name='arithmetic' needs model\.path"),
    ],
)
def test_settings_are_refused_with_the_field(folder, fields, message):
    with pytest.raises(ValueError, match=message):
        make(folder, **fields)


def test_too_few_problems(folder):
    message = r"only 0 of 9 train problems were found: .* make task\.arithmetic\.terms"
    with pytest.raises(ValueError, match=message):
        make(folder, terms=2, largest=2, signs="+").generate("train", 9, seed=0)
