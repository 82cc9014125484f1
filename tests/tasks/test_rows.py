"""Rows of problem sets in every format that is read."""

import json
import sys

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import tensorflow_datasets

from prefixrl_jax.tasks.rows import read_rows

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
        """Not called: `_split_generators` returns the examples."""


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
    assert [place for place, _ in rows] == [f"{name}, row {i}" for i in (1, 2, 3)]


def test_a_line_ends_at_a_newline_only(tmp_path):
    rows = [{"question": "one\u2028two\x85three"}, {"question": "four"}]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    places = [f"{path}, line 1", f"{path}, line 2"]
    assert list(read_rows(str(path), "train", "data.path")) == list(zip(places, rows))


@pytest.mark.parametrize("write", [tfds, hugging_face])
def test_a_split_that_is_not_there_is_named(tmp_path, write):
    name, _ = write(tmp_path)
    with pytest.raises(ValueError, match=r"data\.path='.*', split 'easy': "):
        read_rows(name, "easy", "data.path")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", "no such file"),
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
    message = r"data\.path='hf:some/sums', split 'test': cannot be loaded"
    with pytest.raises(ValueError, match=message):
        read_rows("hf:some/sums", "test", "data.path")
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = r"needs the \[hf\] extra: pip install 'prefixrl_jax\[hf\]'"
    with pytest.raises(ValueError, match=message):
        read_rows("hf:some/sums", "test", "data.path")
