"""Problem sets: the checks on their rows, how they are divided, and what is left out."""

import json

import pytest
from chat_folder import write_chat_folder

from prefixrl_jax.config import get_config
from prefixrl_jax.model.tokenizer import word_tokenizer
from prefixrl_jax.runtime.memo import Memo
from prefixrl_jax.tasks.fitting import fitting
from prefixrl_jax.tasks.math import Math, MathSettings
from prefixrl_jax.tasks.sources import Sets, candidates, read_problems
from prefixrl_jax.tasks.task import Problem
from prefixrl_jax.tasks.water_jugs import WaterJugs

ROW = {"question": "How many?", "answer": "#### 4"}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Questions and answers, over bytes."""
    folder = write_chat_folder(tmp_path_factory.mktemp("model"))
    section = get_config().task.math.to_dict() | {"kind": "gsm8k", "prompt": "{question}"}
    return Math(str(folder), MathSettings(**section))


def write_rows(path, *lines):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return str(path)


def data_section(**fields):
    section = get_config().data
    section.update({"train_candidates": 4, "heldout_candidates": 3, **fields})
    return section


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"rows\.jsonl: no problem in it"),
        (["", "  "], r"rows\.jsonl: no problem in it"),
        ([ROW, "", {"question": "How?"}], r"rows\.jsonl, line 3: field 'answer' is missing"),
        ([{"question": " ", "answer": "#### 4"}], r"rows\.jsonl, line 1: field 'question'"),
        (
            [ROW | {"id": "a"}, ROW | {"id": "b"}, ROW | {"id": "a"}],
            r"rows\.jsonl, line 3: id 'a' stands in an earlier row",
        ),
        ([ROW, '{"question": '], r"rows\.jsonl, line 2: "),
        ([ROW, "[1, 2]"], r"rows\.jsonl, line 2: expected a JSON object, found list"),
    ],
)
def test_a_malformed_file_is_refused_with_line_and_field(task, tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        read_problems(task, write_rows(tmp_path / "rows.jsonl", *lines))


def test_candidates_of_the_generator():
    jugs = WaterJugs(max_capacity=8, max_moves=6, band=(0.02, 0.2))
    sets = candidates(jugs, data_section(), seed=1)
    assert sets.problems == {
        "train": jugs.generate("train", 4, 1),
        "heldout": jugs.generate("heldout", 3, 1),
    }
    assert candidates(jugs, data_section(heldout_candidates=0), seed=1).problems["heldout"] == []


def test_candidates_of_two_files(task, tmp_path):
    train = write_rows(tmp_path / "train.jsonl", ROW, {"question": "Who?", "answer": "2"})
    heldout = write_rows(tmp_path / "heldout.jsonl", {"question": "When?", "answer": "3"})
    sets = candidates(task, data_section(path=train, heldout_path=heldout), 0)
    assert [p.id for p in sets.problems["train"]] == ["train-1", "train-2"]
    assert [p.id for p in sets.problems["heldout"]] == ["heldout-1"]
    assert sets.skipped == sets.overlap == []


def test_one_file_is_divided_by_content_and_stays_divided(task, tmp_path):
    rows = [{"id": f"q{i}", "question": f"{i}?", "answer": f"#### {i}"} for i in range(400)]

    def divide(rows, fraction):
        path = write_rows(tmp_path / "rows.jsonl", *rows)
        return candidates(task, data_section(path=path, heldout_fraction=fraction), 0).problems

    few, many = divide(rows[:200][::-1], 0.25), divide(rows, 0.25)
    held_out = {p.id for p in many["heldout"]}
    assert len(many["train"]) + len(held_out) == 400 and 70 < len(held_out) < 130
    assert {p.id for p in few["heldout"]} == held_out & {f"q{i}" for i in range(200)}
    with pytest.raises(ValueError, match=r"data\.heldout_fraction=1\.0 leaves none of 400"):
        divide(rows, 1.0)


def test_a_problem_that_is_trained_on_is_not_held_out(task, tmp_path):
    train = write_rows(
        tmp_path / "train.jsonl",
        ROW | {"id": "a"},
        {"id": "b", "question": "?", "answer": "#### 1"},
    )
    other = {"id": "d", "question": "Another?", "answer": "#### 1"}
    rewritten = {"id": "c", "question": f" {ROW['question'].upper()}\n", "answer": ROW["answer"]}
    heldout = write_rows(tmp_path / "heldout.jsonl", rewritten, other)
    sets = candidates(task, data_section(path=train, heldout_path=heldout), 0)
    assert [p.id for p in sets.problems["heldout"]] == ["d"] and len(sets.problems["train"]) == 2
    assert sets.overlap == ["held-out problem 'c' is training problem 'a'"]


def test_malformed_rows_are_passed_over_if_asked_and_each_is_listed(task, tmp_path):
    path = write_rows(
        tmp_path / "rows.jsonl", ROW, {"question": "How?"}, "{", ROW | {"id": "b", "question": "Y?"}
    )
    sets = candidates(task, data_section(path=path, skip_bad=True, heldout_fraction=0.0), 0)
    assert [p.id for p in sets.problems["train"]] == ["rows-1", "b"]
    assert [s.split(": ", 1)[0] for s in sets.skipped] == [f"{path}, line 2", f"{path}, line 3"]
    assert "field 'answer' is missing" in sets.skipped[0]


def test_a_prompt_that_leaves_no_room_for_a_prefix_is_refused_or_passed_over(task, tmp_path):
    long_row = {"id": "long", "question": "How " + "very " * 20 + "many?", "answer": "#### 4"}
    path = write_rows(tmp_path / "rows.jsonl", ROW, long_row)
    sets = candidates(task, data_section(path=path, heldout_fraction=0.0), 0)
    short, long = (len(task.render(p)) for p in sets.problems["train"])
    assert fitting(sets, task, long + 9, 9, False) == sets
    message = (
        rf"problem 'long' renders to {long} tokens, and a prefix may have 9; the largest .* 100"
    )
    with pytest.raises(ValueError, match=message):
        fitting(sets, task, 100, 9, False)
    rest = fitting(sets, task, short + 9, 9, True)
    assert [p.id for p in rest.problems["train"]] == ["rows-1"]
    assert len(rest.skipped) == 1 and "'long'" in rest.skipped[0]
    with pytest.raises(ValueError, match="no problem is left to train on"):
        fitting(sets, task, short + 8, 9, True)


def test_rows_are_chosen_by_a_number_in_them(task, tmp_path):
    rows = [{"question": f"{d}?", "answer": "#### 1", "difficulty": d} for d in (2, 6.0, 7.5, 8, 9)]
    path = write_rows(tmp_path / "rows.jsonl", *rows)

    def questions(**fields) -> list[str]:
        section = data_section(path=path, heldout_fraction=0.0, **fields)
        return [p.data["question"] for p in candidates(task, section, 0).problems["train"]]

    assert questions(filter_field="difficulty") == ["6.0?", "7.5?", "8?"]
    message = r"data\.filter_band=\(10, 11\): none of 5 problems .* they go from 2 to 9"
    with pytest.raises(ValueError, match=message):
        questions(filter_field="difficulty", filter_band=(10, 11))
    message = r"data\.filter_field='level': problem 'rows-1' has None there.*'difficulty'"
    with pytest.raises(ValueError, match=message):
        questions(filter_field="level")


def test_an_id_in_both_sets_is_named(task, tmp_path):
    """Noise, logs and traces know a problem by its id, so one id may not mean two problems."""
    train = write_rows(tmp_path / "train.jsonl", ROW | {"id": "same"})
    heldout = write_rows(
        tmp_path / "heldout.jsonl", {"id": "same", "question": "Another?", "answer": "#### 1"}
    )
    with pytest.raises(ValueError, match="'same'"):
        candidates(task, data_section(path=train, heldout_path=heldout), 0)


def test_many_problems_are_rendered_as_each_of_them(task):
    questions = ["How many?", "<eos> is text", "", "né\u2028e", "[assistant]" * 3, "<pad>"]
    problems = [Problem(str(i), {"question": q}) for i, q in enumerate(questions)]
    assert task.render_all(problems) == [task.render(problem) for problem in problems]
    assert task.render_all([]) == []


class Counting:
    """A task that renders a problem to as many tokens as its number says, and counts."""

    tokenizer = word_tokenizer(["a"])

    def __init__(self, added: int = 0):
        self.added = added
        self.rendered = 0

    def render(self, problem):
        self.rendered += 1
        return [1] * (problem.data["size"] + self.added)


def sized_sets(sizes):
    problems = [Problem(f"p{i}", {"size": size}) for i, size in enumerate(sizes)]
    return Sets({"train": problems, "heldout": problems[:2]}, [], [])


def test_only_the_prompts_that_will_be_used_are_rendered():
    sets = sized_sets([2, 9, 3, 9, 4, 9, 2])
    task = Counting()
    kept = fitting(sets, task, 5, 0, True, used={"train": 2, "heldout": 0})
    assert [p.id for p in kept.problems["train"]] == ["p0", "p2", "p3", "p4", "p5", "p6"]
    assert len(kept.skipped) == 1 and task.rendered <= 5
    assert len(fitting(sets, task, 5, 0, True).problems["train"]) == 4
    # A problem that is not used may be too long.
    assert fitting(sets, Counting(), 5, 0, False, used={"train": 1, "heldout": 1}) == sets
    with pytest.raises(ValueError, match="'p1' renders to 9 tokens"):
        fitting(sets, Counting(), 5, 0, False, used={"train": 2, "heldout": 0})


def test_the_sizes_of_a_large_set_are_remembered(tmp_path):
    sets = sized_sets([2 + (i % 50 == 7) for i in range(1500)])
    memo = Memo(tmp_path / "memo.json")
    first = fitting(sets, Counting(), 2, 0, True, memo=memo)
    assert len(first.problems["train"]) == 1470 and len(first.skipped) == 30
    memo.save()

    def again(sets, added=0, room=2):
        task = Counting(added)
        kept = fitting(sets, task, room, 0, True, memo=Memo(tmp_path / "memo.json"))
        return kept, task.rendered < 100

    assert again(sets) == (first, True)
    # Nothing is taken from another content, another rendering or another size.
    assert again(sized_sets([2] * 1500))[1] is False
    with pytest.raises(ValueError, match="no problem is left"):
        again(sets, added=1)
    assert again(sets, added=1, room=3)[1] is False
    assert again(sets, room=3)[0].skipped == []
    longer = sized_sets([2 + (i % 50 == 7) for i in range(1501)])
    assert again(longer)[1] is False
