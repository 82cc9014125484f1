"""Math problems for a pretrained model: prompts by its chat template, prefixes inside the open
turn, answers by value.
"""

import ast
import dataclasses
import json

import pytest
from conftest import TINY, random_params

from prefixrl_jax.config import get_config
from prefixrl_jax.experiment.build import resolve
from prefixrl_jax.model.hf import export_hf
from prefixrl_jax.model.tokenizer import byte_tokenizer
from prefixrl_jax.tasks.arithmetic import Arithmetic
from prefixrl_jax.tasks.math import Math
from prefixrl_jax.tasks.registry import make_task
from prefixrl_jax.tasks.sorting import Sorting
from prefixrl_jax.tasks.sources import candidates
from prefixrl_jax.tasks.task import Problem, Verdict

TURNS = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}[assistant]{% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Llama over bytes, with a chat template."""
    directory, tokenizer = tmp_path_factory.mktemp("model"), byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    config = dataclasses.replace(TINY, vocab_size=300)
    export_hf(
        random_params(config), config, tokenizer, directory, generation={"eos_token_id": [258, 7]}
    )
    return directory


def make(folder, **fields) -> Math:
    return Math(
        **(
            {**get_config().task.math.to_dict(), "kind": "gsm8k", "model_path": str(folder)}
            | fields
        )
    )


def test_a_question_becomes_one_open_turn(folder):
    task = make(folder, system="Be brief.", opening="<think>", prompt="Q: {question}")
    text = task.text(task.render(Problem("p", {"question": "1 + 1?", "answer": "2"})))
    assert text == "[system]Be brief.<eos>[user]Q: 1 + 1?<eos>[assistant]<think>"
    assert task.stop_ids == (7, 258)
    plain = make(folder)
    assert plain.text(plain.render(Problem("p", {"question": "{x}", "answer": "2"}))).startswith(
        "[user]{x}\n\nPlease reason"
    )


@pytest.mark.parametrize(
    ("row", "data"),
    [
        (
            {"problem": "a?", "answer": "\\frac{1}{2}", "level": 3},
            {"question": "a?", "answer": "\\frac{1}{2}"},
        ),
        ({"question": "a?", "answer": 72}, {"question": "a?", "answer": "72"}),
        ({"problem": "a?", "answer": "48 + 24 = 72\n#### 72"}, {"question": "a?", "answer": "72"}),
    ],
)
def test_rows_of_the_usual_sets(folder, row, data):
    assert make(folder).parse(row) == data


@pytest.mark.parametrize(
    "row",
    [
        {"problem": "a?"},
        {"problem": "", "answer": "1"},
        {"problem": "a?", "answer": " "},
        {"problem": 1.5},
        {"text": "a?", "answer": "1"},
        {"problem": "a?", "answer": True},
        {"question": "a?"},
    ],
)
def test_a_bad_row_names_its_field_and_what_it_has(folder, row):
    with pytest.raises(
        ValueError,
        match=r"field '(problem|question|answer)' is missing, empty or no text; the row has '",
    ):
        make(folder).parse(row)


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("it is \\boxed{72}", Verdict.CORRECT),
        ("#### 72.0", Verdict.CORRECT),
        ("The answer is 72.<eos>", Verdict.CORRECT),
        ("#### 71", Verdict.WRONG),
        ("seventy-two", Verdict.UNPARSED),
        ("", Verdict.UNPARSED),
    ],
)
def test_a_response_is_graded_by_the_answer_it_states(folder, response, verdict):
    task = make(folder)
    ids = task.tokenizer.encode(response.removesuffix("<eos>")) + [258] * response.endswith("<eos>")
    assert task.grade(Problem("p", {"question": "", "answer": "72"}), ids).result() is verdict


def test_a_grader_of_ones_own_is_called_with_gold_answer_and_whole_response(folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "tests")
    task = make(folder, kind="graders:hostile", timeout=1.0)
    problem = Problem("p", {"question": "", "answer": "so \\boxed{72}"})
    cases = {
        "so \\boxed{72}": Verdict.CORRECT,
        "\\boxed{72}": Verdict.WRONG,
        "hang": Verdict.TIMEOUT,
        "raise": Verdict.ERROR,
    }
    verdicts = [task.grade(problem, task.tokenizer.encode(text)) for text in cases]
    assert [v.result() for v in verdicts] == list(cases.values())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("graders:absent", "module 'graders' has no attribute 'absent'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("chess", "one of gsm8k, math, or MODULE:FUNCTION"),
    ],
)
def test_a_grader_that_is_not_there_is_refused_at_once(folder, monkeypatch, kind, message):
    monkeypatch.setenv("PYTHONPATH", "tests")
    with pytest.raises(ValueError, match=message):
        make(folder, kind=kind)


@pytest.mark.parametrize(
    ("prefix", "leaks"),
    [
        ("48 + 24 = 72, so", False),
        ("so \\boxed{7", True),
        ("#### ", True),
        ("The answer is 7", True),
        ("done<eos>", True),
    ],
)
def test_a_prefix_that_states_or_begins_an_answer_leaks(folder, prefix, leaks):
    task = make(folder)
    ids = task.tokenizer.encode(prefix.removesuffix("<eos>")) + [258] * prefix.endswith("<eos>")
    assert task.leaks(Problem("p", {"question": "", "answer": "72"}), ids) is leaks
    # a text of another problem is unrelated
    assert not task.could_begin(Problem("p", {"question": "", "answer": "72"}), ids)


def test_what_cannot_be_asked_is_refused(folder, tmp_path):
    for fields, message in (
        ({"model_path": ""}, r"task\.name='math' needs model\.path"),
        ({"prompt": "Solve it."}, r"\{question\}, is missing"),
        ({"kind": "chess"}, r"grader kind 'chess': one of gsm8k, math"),
    ):
        with pytest.raises(ValueError, match=message):
            make(folder, **fields)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        make(tmp_path)
    with pytest.raises(
        ValueError,
        match=(
            r"model\.path='x' with task\.name='water_jugs'.*tasks for pretrained models:"
            r" arithmetic, math, sorting"
        ),
    ):
        make_task("water_jugs", {}, "x")
    assert make(folder).base_source() == "" and make(folder).strategies(Problem("p", {}), [1]) == {}
    for call in (
        lambda: make(folder).generate("train", 1, 0),
        lambda: make(folder).base_text(None, 1),
    ):
        with pytest.raises(ValueError, match=r"set data\.path|set model\.path"):
            call()


def test_a_run_takes_sizes_and_tokenizer_from_the_model(folder, tmp_path):
    rows = [{"problem": f"{i} + {i}?", "answer": 2 * i} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    c = get_config()
    c.task.name, c.task.math.kind, c.model.path = "math", "gsm8k", str(folder)
    c.data.path, c.data.limit = str(tmp_path / "rows.jsonl"), 8
    s = resolve(c)
    assert (s.model.hidden_size, s.model.num_layers, s.model.vocab_size) == (
        TINY.hidden_size,
        TINY.num_layers,
        300,
    )
    sets = candidates(s.task, c.data, 0).problems
    assert sorted(p.data["question"] for p in [*sets["train"], *sets["heldout"]]) == [
        f"{i} + {i}?" for i in range(8)
    ]


def arithmetic(folder, **fields) -> Arithmetic:
    return Arithmetic(
        **(get_config().task.arithmetic.to_dict() | {"model_path": str(folder)} | fields)
    )


def test_arithmetic_is_generated_with_its_value_and_splits_share_no_numbers(folder):
    task = arithmetic(folder, terms=4, largest=9)
    sets = {split: task.generate(split, 150, seed=1) for split in ("train", "heldout")}
    numbers = {}
    for split, problems in sets.items():
        assert len({p.id for p in problems}) == 150
        for p in problems:
            assert p.data == task.parse(p.data)
            tree = ast.parse(p.data["question"], mode="eval")
            assert int(p.data["answer"]) == eval(compile(tree, "question", "eval"))
            found = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
            assert len(found) == 4 and set(found) <= set(range(2, 10))
            numbers.setdefault(split, set()).add(tuple(sorted(found)))
    assert not numbers["train"] & numbers["heldout"]
    signs = "".join(p.data["question"] for p in sets["train"])
    assert all(sign in signs for sign in "+-*")
    assert (
        task.generate("train", 150, seed=1) == sets["train"] != task.generate("train", 150, seed=2)
    )


def test_arithmetic_is_asked_and_graded_as_word_problems_are(folder):
    task = arithmetic(folder, prompt="What is {question}?")
    problem = Problem("p", task.parse({"question": "2 - 3 * 4", "answer": -10}))
    assert task.text(task.render(problem)) == "[user]What is 2 - 3 * 4?<eos>[assistant]"
    for response, verdict in (
        ("3 * 4 = 12, the answer is -10.", Verdict.CORRECT),
        ("The answer is 10", Verdict.WRONG),
        ("2 - 12 = -10", Verdict.UNPARSED),
    ):
        assert task.grade(problem, task.tokenizer.encode(response)).result() is verdict
    assert (
        make_task("arithmetic", get_config().task.arithmetic.to_dict(), str(folder)).name
        == "arithmetic"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"terms": 1}, "terms=1 and largest=50 must be at least 2"),
        ({"largest": 1}, "terms=3 and largest=1 must be at least 2"),
        ({"signs": "+/"}, r"task\.arithmetic\.signs='\+/': some of \+-\*"),
        ({"signs": ""}, r"task\.arithmetic\.signs='': some of"),
        ({"prompt": "Add."}, r"task\.arithmetic\.prompt='Add\.': the place of the question"),
        ({"model_path": ""}, r"task\.name='arithmetic' needs model\.path"),
    ],
)
def test_arithmetic_that_cannot_be_asked_is_refused_with_the_field(folder, fields, message):
    with pytest.raises(ValueError, match=message):
        arithmetic(folder, **fields)


def test_too_few_sums(folder):
    with pytest.raises(ValueError, match=r"only 0 of 9 train problems were found"):
        arithmetic(folder, terms=2, largest=2, signs="+").generate("train", 9, seed=0)


def test_a_hint_stands_in_the_users_turn(folder):
    task = make(folder)
    problem = Problem("p", {"question": "How many?", "answer": "7"})
    text = task.text(task.hint(problem, task.tokenizer.encode("Half of them")))
    plain = task.text(task.render(problem))
    before, after = plain.split("How many?")
    assert text == f"{before}How many?\n\nThe beginning of a solution:\nHalf of them{after}"


SYSTEM = "Sort the numbers from smallest to largest."


def sorting(folder, **fields) -> Sorting:
    return Sorting(**(get_config().task.sorting.to_dict() | {"model_path": str(folder)} | fields))


def test_lists_to_sort_are_generated_out_of_order_and_splits_share_no_set_of_numbers(folder):
    task = sorting(folder, terms=3, largest=9)
    sets = {split: task.generate(split, 60, seed=1) for split in ("train", "heldout")}
    drawn = {
        split: [[int(n) for n in p.data["question"].split(", ")] for p in found]
        for split, found in sets.items()
    }
    for split, found in sets.items():
        assert len({p.id for p in found}) == 60 and all(p.data == task.parse(p.data) for p in found)
        for given, p in zip(drawn[split], found, strict=True):
            assert (
                len(set(given)) == 3 and set(given) <= set(range(1, 10)) and given != sorted(given)
            )
            assert p.data["answer"] == ", ".join(map(str, sorted(given)))
    assert not {frozenset(x) for x in drawn["train"]} & {frozenset(x) for x in drawn["heldout"]}
    assert task.generate("train", 60, seed=1) == sets["train"] != task.generate("train", 60, seed=2)
    with pytest.raises(
        ValueError, match=r"of 90 train problems were found: .* make task\.sorting\.terms"
    ):
        sorting(folder, terms=2, largest=3).generate("train", 90, seed=1)


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
    task = sorting(folder)
    problem = Problem("p", task.parse({"question": "14, 9, 19, 8", "answer": "8, 9, 14, 19"}))
    ids = task.tokenizer.encode(response)
    assert task.grade(problem, [*ids, task.stop_ids[1]]).result() is verdict
    # the end is no word
    assert task.strategies(problem, [*ids, task.stop_ids[1]]) == {
        "repeats": repeats,
        "words": words,
    }
    assert (
        task.text(task.render(problem))
        == f"[system]{SYSTEM}<eos>[user]Sort: 14, 9, 19, 8<eos>[assistant]Sorted:"
    )


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
    task = sorting(folder)
    ids = task.tokenizer.encode(prefix)
    assert (
        task.leaks(Problem("p", {"question": "14, 9, 19, 8", "answer": "8, 9, 14, 19"}), ids)
        is leaks
    )
    assert task.leaks(
        Problem("p", {"question": "2, 1", "answer": "1, 2"}),
        [*task.tokenizer.encode("A"), task.stop_ids[0]],
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"terms": 1}, "terms=1 must be at least 2"),
        ({"terms": 9, "largest": 8}, "terms=9 must be .* largest=8 at least as large"),
        ({"prompt": "Sort."}, r"task\.sorting\.prompt='Sort\.': the place of the question"),
    ],
)
def test_lists_that_cannot_be_asked_for_are_refused_with_the_field(folder, fields, message):
    with pytest.raises(ValueError, match=message):
        sorting(folder, **fields)


@pytest.mark.parametrize(
    "row", [{"question": "3, 1, 2", "answer": "1, 3, 2"}, {"question": "7", "answer": "7"}]
)
def test_a_row_whose_answer_is_not_its_question_sorted_is_refused(folder, row):
    with pytest.raises(
        ValueError, match=f"answer='{row['answer']}' is not question='{row['question']}'"
    ):
        sorting(folder).parse(row)
