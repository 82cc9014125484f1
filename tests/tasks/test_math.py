"""Math problems for a pretrained model: its chat template, prefixes in the open turn, answers."""

import dataclasses
import json

import pytest
from chat_folder import EOS, STOP, byte_tokenizer, write_chat_folder
from tiny_models import TINY, random_params

from prefixrl_jax.config import get_config
from prefixrl_jax.experiment.build import resolve
from prefixrl_jax.model.hf import export_hf
from prefixrl_jax.tasks.math import Math, MathSettings
from prefixrl_jax.tasks.sources import candidates
from prefixrl_jax.tasks.task import Problem, Verdict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_chat_folder(tmp_path_factory.mktemp("model"))


def make(model_path, **fields) -> Math:
    section = get_config().task.math.to_dict() | {"kind": "gsm8k"}
    return Math(str(model_path), MathSettings(**(section | fields)))


def encode(task: Math, text: str) -> list[int]:
    """The ids of a text; <eos> at its end is the token."""
    ids = task.tokenizer.encode(text.removesuffix("<eos>"))
    return [*ids, EOS] if text.endswith("<eos>") else ids


def test_a_question_becomes_one_open_turn(folder):
    task = make(folder, system="Be brief.", opening="<think>", prompt="Q: {question}")
    text = task.text(task.render(Problem("p", {"question": "1 + 1?", "answer": "2"})))
    assert text == "[system]Be brief.<eos>[user]Q: 1 + 1?<eos>[assistant]<think>"
    assert task.stop_ids == (STOP, EOS)
    plain = make(folder)
    text = plain.text(plain.render(Problem("p", {"question": "{x}", "answer": "2"})))
    assert text.startswith("[user]{x}\n\nPlease reason")


def test_a_hint_stands_in_the_users_turn(folder):
    task = make(folder)
    problem = Problem("p", {"question": "How many?", "answer": "7"})
    text = task.text(task.hint(problem, task.tokenizer.encode("Half of them")))
    before, after = task.text(task.render(problem)).split("How many?")
    assert text == f"{before}How many?\n\nThe beginning of a solution:\nHalf of them{after}"


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
    message = r"field '(problem|question|answer)' is missing, empty or no text; the row has '"
    with pytest.raises(ValueError, match=message):
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
    problem = Problem("p", {"question": "", "answer": "72"})
    assert task.grade(problem, encode(task, response)).result() is verdict


def test_bytes_that_are_no_text_are_no_obstacle(folder):
    task = make(folder)
    problem = Problem("p", {"question": "", "answer": "5/2"})
    start_byte = task.tokenizer.encode("é")[:1]
    assert task.grade(problem, [*start_byte, *encode(task, "#### 2.5")]).result() is Verdict.CORRECT


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
    verdicts = [task.grade(problem, encode(task, text)) for text in cases]
    assert [v.result() for v in verdicts] == list(cases.values())


@pytest.mark.parametrize(
    ("prefix", "leaks"),
    [
        ("48 + 24 = 72, so", False),
        ("half of 5 is 2.5\n##", False),
        ("so \\boxed{7", True),
        ("#### ", True),
        ("The answer is 7", True),
        ("done<eos>", True),
    ],
)
def test_a_prefix_that_states_or_begins_an_answer_leaks(folder, prefix, leaks):
    task = make(folder)
    problem = Problem("p", {"question": "", "answer": "72"})
    ids = encode(task, prefix)
    assert task.leaks(problem, ids) is leaks
    # a text of another problem is unrelated
    assert not task.could_begin(problem, ids)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_path": ""}, r"task\.name='math' needs model\.path"),
        ({"prompt": "Solve it."}, r"\{question\}, is missing"),
        ({"kind": "chess"}, r"grader kind 'chess': one of gsm8k, math"),
    ],
)
def test_settings_are_refused_with_the_field(folder, fields, message):
    with pytest.raises(ValueError, match=message):
        make(**({"model_path": folder} | fields))


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path):
    byte_tokenizer(chat_template=None).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        make(tmp_path)


def test_problems_and_model_are_the_users(folder):
    task = make(folder)
    assert task.strategies(Problem("p", {}), [1]) == {}
    with pytest.raises(ValueError, match=r"task math has no generator: set data\.path"):
        task.generate("train", 1, 0)
    with pytest.raises(ValueError, match=r"task math trains no base model: set model\.path"):
        task.base_text(None, 1)


def test_a_run_takes_sizes_and_tokenizer_from_the_model(tmp_path):
    """`data.limit` counts the rows of both sets."""
    model, tokenizer = dataclasses.replace(TINY, vocab_size=300), byte_tokenizer()
    export_hf(random_params(model), model, tokenizer, tmp_path / "model")
    rows = [{"problem": f"{i} + {i}?", "answer": 2 * i} for i in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    c = get_config()
    c.task.name = "math"
    c.task.math.kind = "gsm8k"
    c.model.path = str(tmp_path / "model")
    c.data.path, c.data.limit = str(tmp_path / "rows.jsonl"), 8
    s = resolve(c)
    sizes = s.model.hidden_size, s.model.num_layers, s.model.vocab_size
    assert sizes == (TINY.hidden_size, TINY.num_layers, 300)
    sets = candidates(s.task, c.data, 0).problems
    questions = [p.data["question"] for p in [*sets["train"], *sets["heldout"]]]
    assert sorted(questions) == [f"{i} + {i}?" for i in range(8)]
