"""Sorting for a pretrained model: generated lists, verdicts, leaks, and the checks on rows."""

import pytest
from chat_folder import EOS, STOP, write_chat_folder

from prefixrl_jax.config import get_config
from prefixrl_jax.tasks.sorting import Sorting
from prefixrl_jax.tasks.task import Problem, Verdict

SYSTEM = "Sort the numbers from smallest to largest."
ROW = {"question": "14, 9, 19, 8", "answer": "8, 9, 14, 19"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_chat_folder(tmp_path_factory.mktemp("model"))


def make(folder, **fields) -> Sorting:
    section = get_config().task.sorting.to_dict()
    return Sorting(**(section | {"model_path": str(folder)} | fields))


def test_lists_are_generated_out_of_order_and_splits_share_no_set_of_numbers(folder):
    task = make(folder, terms=3, largest=9)
    sets = {split: task.generate(split, 60, seed=1) for split in ("train", "heldout")}
    numbers = {"train": set(), "heldout": set()}
    for split, problems in sets.items():
        assert len({p.id for p in problems}) == 60
        for p in problems:
            assert p.data == task.parse(p.data)
            asked = [int(n) for n in p.data["question"].split(", ")]
            assert len(set(asked)) == 3 and set(asked) <= set(range(1, 10))
            assert asked != sorted(asked)
            assert p.data["answer"] == ", ".join(map(str, sorted(asked)))
            numbers[split].add(frozenset(asked))
    assert not numbers["train"] & numbers["heldout"]
    assert task.generate("train", 60, seed=1) == sets["train"]
    assert task.generate("train", 60, seed=2) != sets["train"]
    message = r"of 90 train problems were found: .* make task\.sorting\.terms"
    with pytest.raises(ValueError, match=message):
        make(folder, terms=2, largest=3).generate("train", 90, seed=1)


@pytest.mark.parametrize(
    ("response", "verdict", "repeats", "words"),
    [
        ("8, 9, 14, 19", Verdict.CORRECT, 0, 0),
        ("14, 9, 19, 8 becomes 8, 9, 14 and 19.", Verdict.CORRECT, 1, 1),
        ("8, 9, 14, 19, 20", Verdict.WRONG, 0, 0),
        ("8, 9, 19, 14", Verdict.WRONG, 0, 0),
        ("9, 14, 19", Verdict.UNPARSED, 0, 0),
        ("Python sorts 8", Verdict.UNPARSED, 0, 1),
        ("", Verdict.UNPARSED, 0, 0),
        ("14, 9, 19, 8", Verdict.WRONG, 1, 0),
    ],
)
def test_a_list_is_sorted_if_its_last_numbers_are(folder, response, verdict, repeats, words):
    task = make(folder)
    problem = Problem("p", task.parse(ROW))
    # the end is no word
    ids = [*task.tokenizer.encode(response), EOS]
    assert task.grade(problem, ids) is verdict
    assert task.strategies(problem, ids) == {"repeats": repeats, "words": words}


def test_the_question_stands_between_system_message_and_opening(folder):
    task = make(folder)
    prompt = f"[system]{SYSTEM}<eos>[user]Sort: 14, 9, 19, 8<eos>[assistant]Sorted:"
    assert task.text(task.render(Problem("p", task.parse(ROW)))) == prompt


@pytest.mark.parametrize(
    ("prefix", "leaks"),
    [
        ("", False),
        ("8, 9", False),
        ("8, 9, 14", True),
        ("It is 8, 9, 14, 19", True),
        ("14, 9, 19, 8", False),
        ("8, 9, 1", False),
    ],
)
def test_a_prefix_leaks_a_list_when_no_choice_is_left(folder, prefix, leaks):
    task = make(folder)
    ids = task.tokenizer.encode(prefix)
    assert task.leaks(Problem("p", ROW), ids) is leaks
    assert task.leaks(Problem("p", ROW), [*ids, STOP])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"terms": 1}, "terms=1: a whole number from 2 to"),
        ({"terms": 9, "largest": 8}, r"terms=9: must be at most task\.sorting\.largest=8"),
        ({"prompt": "Sort."}, r"task\.sorting\.prompt='Sort\.': a text with \{question\}"),
    ],
)
def test_settings_are_refused_with_the_field(folder, fields, message):
    with pytest.raises(ValueError, match=message):
        make(folder, **fields)


@pytest.mark.parametrize(
    "row", [{"question": "3, 1, 2", "answer": "1, 3, 2"}, {"question": "7", "answer": "7"}]
)
def test_a_row_whose_answer_is_not_its_question_sorted_is_refused(folder, row):
    message = f"answer='{row['answer']}' is not question='{row['question']}'"
    with pytest.raises(ValueError, match=message):
        make(folder).parse(row)
