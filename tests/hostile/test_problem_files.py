"""Problem files that a program must not choke on: each is read, or refused in one sentence."""

import json
import math
import os
import re

import pyarrow.parquet
import pytest
from chat_folder import write_chat_folder

from prefixrl_jax.config import get_config
from prefixrl_jax.runtime import files
from prefixrl_jax.tasks.countdown import Countdown
from prefixrl_jax.tasks.math import Math, MathSettings
from prefixrl_jax.tasks.rows import read_rows
from prefixrl_jax.tasks.sources import candidates, read_problems

GOOD = b'{"question": "How many?", "answer": "4"}'
OTHER = b'{"question": "And now?", "answer": "5"}'
BOM = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """Questions and answers, over bytes."""
    folder = write_chat_folder(tmp_path_factory.mktemp("model"))
    section = get_config().task.math.to_dict() | {"kind": "gsm8k", "prompt": "{question}"}
    return Math(str(folder), MathSettings(**section))


def data_section(path, **fields):
    section = get_config().data
    section.update({"path": str(path), "heldout_fraction": 0.0, **fields})
    return section


READ = {
    "a byte order mark": BOM + GOOD + b"\n" + OTHER,
    "two files with one, joined": BOM + GOOD + b"\n" + BOM + OTHER + b"\n",
    "an empty line with one": BOM + b"\n" + GOOD + b"\n" + OTHER,
    "lines that end in CR LF": GOOD + b"\r\n" + OTHER + b"\r\n\r\n",
    "no newline at the end": GOOD + b"\n" + OTHER,
    "blank lines": b"\n \t\n" + GOOD + b"\n\n\n" + OTHER + b"\n",
    "a NaN in a field that is not read": GOOD[:-1] + b', "score": NaN}\n' + OTHER,
    "an escaped pair of surrogates": GOOD + b'\n{"question": "\\ud83d\\ude00?", "answer": "5"}',
    "ids of null": GOOD[:-1] + b', "id": null}\n' + OTHER[:-1] + b', "id": null}',
}


@pytest.mark.parametrize("content", READ.values(), ids=READ)
def test_odd_files_that_are_read(task, tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert [p.data["answer"] for p, _ in read_problems(task, str(path))] == ["4", "5"]


# What stands in the second line, and what is said of it.
REFUSED = {
    "a byte of Latin-1": (
        b'{"question": "caf\xe9", "answer": "4"}',
        "0xe9 at byte 18 is not UTF-8",
    ),
    "a surrogate as bytes": (b'{"question": "\xed\xa0\x80", "answer": "4"}', "0xed at byte 15"),
    "half a surrogate pair": (b'{"question": "\\ud800", "answer": "4"}', r"escape \ud800 is half"),
    "the other half": (b'{"question": "a\\uDFFFb", "answer": "4"}', r"escape \udfff is half"),
    "half a pair in a name": (GOOD[:-1] + b', "\\ud801": 1}', r"escape \ud801 is half"),
    "100,000 brackets": (b"[" * 100_000, "nested too deeply"),
    "100,000 whole lists": (
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "nested too deeply",
    ),
    "100,000 objects": (b'{"a":' * 100_000, "nested too deeply"),
    "a list": (b"[1]", "expected a JSON object, found list"),
    "null": (b"null", "expected a JSON object, found NoneType"),
    "half an object": (GOOD[:-2], "not valid JSON: Unterminated string"),
    "two objects": (GOOD + OTHER, f"not valid JSON: Extra data at column {len(GOOD) + 1}"),
    "a zero byte": (b'{"question": "\x00", "answer": "4"}', "not valid JSON: Invalid control"),
    "a number of 5,000 digits": (
        b'{"answer": ' + b"1" * 5000 + b"}",
        "a number in it has more than 4300 digits",
    ),
    "an answer of NaN": (
        b'{"question": "Q", "answer": NaN}',
        "field 'answer' is missing, empty or",
    ),
    "an infinite answer": (b'{"question": "Q", "answer": -Infinity}', "field 'answer' is missing"),
    "an answer beyond float": (b'{"question": "Q", "answer": 1e999}', "field 'answer' is missing"),
    "an id that is a list": (GOOD[:-1] + b', "id": [1]}', "field 'id', the problem's id, is [1]"),
    "an id that is empty": (GOOD[:-1] + b', "id": ""}', "field 'id', the problem's id, is ''"),
    "an id that is true": (GOOD[:-1] + b', "id": true}', "field 'id', the problem's id, is True"),
    "an id of NaN": (GOOD[:-1] + b', "id": NaN}', "field 'id', the problem's id, is NaN"),
    "the id of another row": (
        b'{"question": "Q", "answer": "4", "id": "rows-1"}',
        "id 'rows-1' stands in an earlier row",
    ),
    "a question of a list": (b'{"question": ["Q"], "answer": "4"}', "field 'question' is missing"),
    "100,000 fields": (
        json.dumps(dict.fromkeys(map(str, range(100_000)))).encode(),
        "field 'problem' is missing, empty",
    ),
}


@pytest.mark.parametrize(("line", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_line_is_named_and_may_be_passed_over(task, tmp_path, line, words):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([GOOD, line, OTHER]))
    with pytest.raises(ValueError) as refused:
        candidates(task, data_section(path), 0)
    message = str(refused.value)
    assert message.startswith(f"{path}, line 2: ") and words in message
    assert "\n" not in message and len(message) < 700
    assert re.findall(r"line \d+", message) == ["line 2"]
    sets = candidates(task, data_section(path, skip_bad=True), 0)
    assert [p.id for p in sets.problems["train"]] == ["rows-1", "rows-3"]
    assert sets.skipped == [message]


def test_a_line_without_an_end_is_not_read_into_memory(task, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_LINE", 2**20)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n" + b" " * 3 * 2**20 + b"{}\n" + OTHER)
    with pytest.raises(ValueError, match=r"line 2: the line is longer than 1 MiB"):
        read_problems(task, str(path))
    skipped = []
    assert len(read_problems(task, str(path), skipped=skipped)) == 2 and len(skipped) == 1


WHOLE = {
    "nothing": (b"", "no problem in it"),
    "a byte order mark alone": (BOM, "no problem in it"),
    "UTF-16": ("{}".encode("utf-16"), "is UTF-16; UTF-8 is expected"),
    "gzip": (b"\x1f\x8b\x08\x00", "is compressed with gzip"),
    "zstd": (b"\x28\xb5\x2f\xfd\x00", "is compressed with zstd"),
    "a zip archive": (b"PK\x03\x04\x00", "is a zip archive"),
    "Parquet under another name": (b"PAR1\x15\x04", "its name must end in .parquet"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00", "line 1: 0x89 at byte 1 is not UTF-8"),
    "a list over several lines": (b"[\n" + GOOD + b"\n]", "line 1: not valid JSON"),
}


@pytest.mark.parametrize(("content", "words"), WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_file_that_is_no_json_lines_is_named(task, tmp_path, content, words, skip_bad):
    path = tmp_path / "rows.txt"
    path.write_bytes(content)
    if skip_bad and content.startswith(b"[\n"):
        assert len(candidates(task, data_section(path, skip_bad=True), 0).skipped) == 2
        return
    with pytest.raises(ValueError) as refused:
        candidates(task, data_section(path, skip_bad=skip_bad), 0)
    assert str(path) in str(refused.value) and words in str(refused.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "cannot be loaded"),  # the folder itself
        ("none.jsonl", "no such file"),
        ("a" * 300, "name too long"),
        ("null\0byte", "no such file"),
        ("pipe", "neither a file nor a folder"),
        ("half.parquet", "no Parquet file"),
    ],
)
def test_what_is_no_file_is_named(tmp_path, name, words):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "half.parquet").write_bytes(b"PAR1" + bytes(20))
    with pytest.raises(ValueError) as refused:
        list(read_rows(str(tmp_path / name), "train", "data.path"))
    message = str(refused.value)
    assert message.startswith("data.path=") and words in message and "\n" not in message


@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b[: len(b) // 2], lambda b: b""])
def test_a_parquet_file_that_was_cut(tmp_path, damage):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([json.loads(GOOD)] * 50), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ValueError, match=r"data\.path='.*rows.parquet': no Parquet file"
    ) as refused:
        list(read_rows(str(path), "train", "data.path"))
    assert "\n" not in str(refused.value)


def test_bytes_changed_inside_a_parquet_file(tmp_path):
    """A changed byte is noticed or is part of a text: what comes out is rows or one sentence."""
    table = pyarrow.Table.from_pylist([json.loads(GOOD) | {"id": str(i)} for i in range(50)])
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(table, path, compression="zstd")
    content = path.read_bytes()
    refused = 0
    for place in range(4, len(content), 37):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            list(read_rows(str(path), "train", "data.path"))
        except ValueError as error:
            refused += 1
            assert str(error).startswith("data.path=") and "\n" not in str(error)
    assert refused


def test_a_text_in_a_parquet_file_that_is_not_utf8(task, tmp_path):
    texts = pyarrow.array([b"How many?", b"caf\xe9", b"And now?"]).view(pyarrow.string())
    table = pyarrow.table({"question": texts, "answer": ["4", "5", "6"]})
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(ValueError, match=r"rows\.parquet, row 2: a value in it cannot be read"):
        read_problems(task, str(path))
    skipped = []
    assert len(read_problems(task, str(path), skipped=skipped)) == 2 and len(skipped) == 1


def test_a_missing_number_of_a_table_is_no_answer(task, tmp_path):
    rows = [{"question": "Q", "answer": 4.5}, {"question": "R", "answer": math.nan}]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with pytest.raises(ValueError, match=r"row 2: field 'answer' is missing, empty or no text"):
        read_problems(task, str(path))


@pytest.mark.parametrize(
    "value", ["NaN", "1e400", "null", "true", '"3"', "[3]", "3.5", "-1", "1e2"]
)
def test_a_number_that_a_game_cannot_use_is_shown(tmp_path, value):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"numbers": [3, 8, 2, 6, {value}], "goal": 12}}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 1: numbers=\[3, 8, 2, 6, .*\]: integers from 1 to"):
        read_problems(Countdown(), str(path))


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "null", '"7"', "true"])
def test_a_filter_sees_numbers_only(task, tmp_path, value):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD[:-1] + b', "level": ' + value.encode() + b"}")
    with pytest.raises(ValueError, match=r"data\.filter_field='level': problem 'rows-1' has .*"):
        candidates(task, data_section(path, filter_field="level"), 0)
