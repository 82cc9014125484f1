"""Problem sets in every format that is read, and the checks on their rows."""

import json
import pathlib
import sys

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import tensorflow_datasets

from prefixrl_jax.config import get_config
from prefixrl_jax.tasks.gsm8k import GSM8K
from prefixrl_jax.tasks.rows import read_rows
from prefixrl_jax.tasks.sources import candidates, fitting, read_problems
from prefixrl_jax.tasks.water_jugs import WaterJugs

DATA = pathlib.Path(__file__).parent.parent / "data"


def write_rows(path, *lines):
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines),
        encoding="utf-8",
    )
    return str(path)


QA = {"question": "How many?", "answer": "#### 4"}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"rows\.jsonl: no problem in it"),
        (["", "  "], r"rows\.jsonl: no problem in it"),
        ([QA, "", {"question": "How?"}], r"rows\.jsonl, line 3: field 'answer' is missing"),
        ([{"question": " ", "answer": "#### 4"}], r"rows\.jsonl, line 1: field 'question'"),
        ([{"question": 5, "answer": "#### 4"}], r"rows\.jsonl, line 1: field 'question'"),
        (
            [QA, {"question": "How?", "answer": "four"}],
            r"rows\.jsonl, line 2: field 'answer' ends in 'four'; '#### N'",
        ),
        (
            [QA | {"id": "a"}, QA | {"id": "b"}, QA | {"id": "a"}],
            r"rows\.jsonl, line 3: id 'a' stands in an earlier row",
        ),
        ([QA, '{"question": '], r"rows\.jsonl, line 2: "),
        ([QA, "[1, 2]"], r"rows\.jsonl, line 2: list found where a JSON object"),
    ],
)
def test_a_malformed_file_is_refused_with_line_and_field(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        read_problems(GSM8K(), write_rows(tmp_path / "rows.jsonl", *lines))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"data\.path='.*none\.jsonl': no such file"):
        read_problems(GSM8K(), str(tmp_path / "none.jsonl"))


def test_a_line_ends_at_a_newline_only(tmp_path):
    row = QA | {"question": "one\u2028two\x85three"}
    path = write_rows(tmp_path / "rows.jsonl", json.dumps(row, ensure_ascii=False), QA)
    assert [p.data["question"] for p, _ in read_problems(GSM8K(), path)] == [
        row["question"],
        QA["question"],
    ]


def data_section(**fields):
    section = get_config().data
    section.update({"train_candidates": 4, "heldout_candidates": 3, **fields})
    return section


def test_candidates_of_the_generator():
    task = WaterJugs(max_capacity=8, max_moves=6, band=(0.02, 0.2))
    sets = candidates(task, data_section(), seed=1)
    assert sets.problems == {
        "train": task.generate("train", 4, 1),
        "heldout": task.generate("heldout", 3, 1),
    }
    assert candidates(task, data_section(heldout_candidates=0), seed=1).problems["heldout"] == []


def test_candidates_of_two_files():
    sets = candidates(
        GSM8K(),
        data_section(
            path=str(DATA / "gsm8k_train.jsonl"), heldout_path=str(DATA / "gsm8k_heldout.jsonl")
        ),
        0,
    )
    assert (len(sets.problems["train"]), len(sets.problems["heldout"])) == (
        6,
        4,
    ) and sets.skipped == sets.overlap == []


def test_one_file_is_divided_by_content_and_stays_divided(tmp_path):
    rows = [{"id": f"q{i}", "question": f"{i}?", "answer": f"#### {i}"} for i in range(400)]

    def divide(rows, fraction):
        path = write_rows(tmp_path / "rows.jsonl", *rows)
        return candidates(GSM8K(), data_section(path=path, heldout_fraction=fraction), 0).problems

    few, many = divide(rows[:200][::-1], 0.25), divide(rows, 0.25)
    held = {p.id for p in many["heldout"]}
    assert len(many["train"]) + len(held) == 400 and 70 < len(held) < 130
    assert {p.id for p in few["heldout"]} == held & {f"q{i}" for i in range(200)}
    with pytest.raises(ValueError, match=r"data\.heldout_fraction=1\.0 leaves none of 400"):
        divide(rows, 1.0)


def test_a_problem_that_is_trained_on_is_not_held_out(tmp_path):
    train = write_rows(
        tmp_path / "train.jsonl", QA | {"id": "a"}, {"id": "b", "question": "?", "answer": "#### 1"}
    )
    other = {"id": "d", "question": "Another?", "answer": "#### 1"}
    rewritten = {"id": "c", "question": f" {QA['question'].upper()}\n", "answer": QA["answer"]}
    heldout = write_rows(tmp_path / "heldout.jsonl", rewritten, other)
    sets = candidates(GSM8K(), data_section(path=train, heldout_path=heldout), 0)
    assert [p.id for p in sets.problems["heldout"]] == ["d"] and len(sets.problems["train"]) == 2
    assert sets.overlap == ["held-out problem 'c' is training problem 'a'"]


def test_malformed_rows_are_passed_over_if_asked_and_each_is_listed(tmp_path):
    path = write_rows(
        tmp_path / "rows.jsonl", QA, {"question": "How?"}, "{", QA | {"id": "b", "question": "Why?"}
    )
    sets = candidates(GSM8K(), data_section(path=path, skip_bad=True, heldout_fraction=0.0), 0)
    assert [p.id for p in sets.problems["train"]] == ["rows-1", "b"]
    assert [s.split(": ", 1)[0] for s in sets.skipped] == [f"{path}, line 2", f"{path}, line 3"]
    assert "field 'answer' is missing" in sets.skipped[0]


def test_a_prompt_that_leaves_no_room_for_a_prefix_is_refused_or_passed_over(tmp_path):
    task = GSM8K()
    path = write_rows(
        tmp_path / "rows.jsonl",
        QA,
        {"id": "long", "question": "How " + "very " * 20 + "many?", "answer": "#### 4"},
    )
    sets = candidates(task, data_section(path=path, heldout_fraction=0.0), 0)
    short, long = (len(task.render(p)) for p in sets.problems["train"])
    assert fitting(sets, task, long + 9, 9, False) == sets
    with pytest.raises(
        ValueError,
        match=(
            rf"problem 'long' renders to {long} tokens, and a prefix may have 9; the largest .* 100"
        ),
    ):
        fitting(sets, task, 100, 9, False)
    found = fitting(sets, task, short + 9, 9, True)
    assert (
        [p.id for p in found.problems["train"]] == ["rows-1"]
        and len(found.skipped) == 1
        and "'long'" in found.skipped[0]
    )
    with pytest.raises(ValueError, match="no problem is left to train on"):
        fitting(sets, task, short + 8, 9, True)


def test_rows_are_chosen_by_a_number_in_them(tmp_path):
    rows = [{"question": f"{d}?", "answer": "#### 1", "difficulty": d} for d in (2, 6.0, 7.5, 8, 9)]
    path = write_rows(tmp_path / "rows.jsonl", *rows)
    section = data_section(path=path, filter_field="difficulty", heldout_fraction=0.0)
    assert [p.data["question"] for p in candidates(GSM8K(), section, 0).problems["train"]] == [
        "6.0?",
        "7.5?",
        "8?",
    ]
    with pytest.raises(
        ValueError, match=r"data\.filter_band=\(10, 11\): none of 5 problems .* they go from 2 to 9"
    ):
        candidates(
            GSM8K(), data_section(path=path, filter_field="difficulty", filter_band=(10, 11)), 0
        )
    with pytest.raises(
        ValueError,
        match=r"data\.filter_field='level': problem 'rows-1' has None there.*'difficulty'",
    ):
        candidates(GSM8K(), data_section(path=path, filter_field="level"), 0)


def test_an_id_in_both_sets_is_named(tmp_path):
    """Noise, logs and traces know a problem by its id, so one id may not mean two problems."""
    train = write_rows(tmp_path / "train.jsonl", QA | {"id": "same"})
    heldout = write_rows(
        tmp_path / "heldout.jsonl", {"id": "same", "question": "Another?", "answer": "#### 1"}
    )
    with pytest.raises(ValueError, match="'same'"):
        candidates(GSM8K(), data_section(path=train, heldout_path=heldout), 0)


ROWS = [{"question": f"{i} and {i}?", "answer": f"#### {2 * i}", "level": i} for i in range(3)]


def parquet(path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path / "rows.parquet")
    return str(path / "rows.parquet"), "train"


class Sums(tensorflow_datasets.core.GeneratorBasedBuilder):
    """The rows, as TFDS keeps them."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        text = tensorflow_datasets.features.Text()
        features = tensorflow_datasets.features.FeaturesDict(
            {"question": text, "answer": text, "level": np.int64}
        )
        return tensorflow_datasets.core.DatasetInfo(
            builder=self, features=features, disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"hard": enumerate(ROWS)}

    def _generate_examples(self):
        """Splits are given above."""


def tfds(path):
    """A dataset of TFDS: a split of its own name, in ArrayRecord files."""
    Sums(data_dir=path, file_format="array_record").download_and_prepare()
    return str(path / "sums" / "1.0.0"), "hard"


def hugging_face(path):
    datasets.DatasetDict({"hard": datasets.Dataset.from_list(ROWS)}).save_to_disk(path / "sums")
    return str(path / "sums"), "hard"


@pytest.mark.parametrize("write", [parquet, tfds, hugging_face])
def test_rows_are_the_same_in_every_format(tmp_path, write):
    name, split = write(tmp_path)
    rows = list(read_rows(name, split, "data.path"))
    assert [row for _, row in rows] == ROWS
    assert all(type(row["level"]) is int for _, row in rows)
    assert [where for where, _ in rows] == [f"{name}, row {i}" for i in (1, 2, 3)]
    section = data_section(
        path=name, split=split, heldout_fraction=0.0, filter_field="level", filter_band=(1, 2)
    )
    assert [p.data["question"] for p in candidates(GSM8K(), section, 0).problems["train"]] == [
        "1 and 1?",
        "2 and 2?",
    ]


@pytest.mark.parametrize("write", [tfds, hugging_face])
def test_a_split_that_is_not_there_is_named(tmp_path, write):
    name, _ = write(tmp_path)
    with pytest.raises(ValueError, match=r"data\.path='.*', split 'easy': "):
        read_rows(name, "easy", "data.path")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows.parquet", "no Parquet file"),
        ("tfds:no_such_set", "TFDS cannot open it"),
        ("folder", "cannot be loaded"),
    ],
)
def test_a_set_that_cannot_be_read_is_named(tmp_path, name, message):
    (tmp_path / "rows.parquet").write_text("none")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=f"data.heldout_path='.*{name}'.*{message}"):
        read_rows(name if ":" in name else str(tmp_path / name), "test", "data.heldout_path")


def test_a_hub_without_network_or_a_missing_extra_is_told(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"data\.path='hf:some/sums', split 'test': cannot be loaded"
    ):
        read_rows("hf:some/sums", "test", "data.path")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ValueError, match=r"needs the \[hf\] extra: pip install 'prefixrl_jax\[hf\]'"
    ):
        read_rows("hf:some/sums", "test", "data.path")
