"""JSON is read, or refused in one sentence that names file and place."""

import pytest

from prefixrl_jax.runtime.files import parse_json, read_json, read_json_lines, read_object


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty; JSON is expected"),
        (b" \n", "the file is empty"),
        (b'{"a": 1', "not valid JSON: Expecting ',' delimiter at column 8"),
        (b'{\n "a": x}', "not valid JSON: Expecting value at line 2, column 7"),
        (b'{\n "a": "\xe9"}', "0xe9 at line 2, byte 8 is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5000, "a number in it has more than 4300 digits"),
    ],
)
def test_a_file_that_is_no_json_is_named(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as refused:
        read_json(path)
    assert str(refused.value).startswith(f"{path}: ") and words in str(refused.value)


def test_an_object_is_told_from_other_values(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"\xc3\xa9": NaN}')
    assert list(read_object(path)) == ["é"]
    path.write_bytes(b"[1]")
    assert read_json(path) == [1]
    with pytest.raises(ValueError, match=r"a\.json: expected a JSON object, found list"):
        read_object(path)
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "none.json")


def test_lines_are_numbered_and_bad_ones_stand_as_errors(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": "x\\u2028y"}\r\n\n[1\n2.5')
    (one, first), (three, error), (four, last) = read_json_lines(path, parse_number=str)
    assert (one, three, four) == (1, 3, 4)
    assert first == {"a": "x\u2028y"} and last == "2.5"
    assert str(error) == "not valid JSON: Expecting ',' delimiter at column 3"


def test_half_a_surrogate_pair_may_be_refused():
    assert parse_json(b'"\\ud800"') == "\ud800"
    assert parse_json(b'"\\ud83d\\ude00"', characters_only=True) == "😀"
    with pytest.raises(ValueError, match=r"the escape \\udfff is half of a surrogate pair"):
        parse_json(b'["a", "\\udfff"]', characters_only=True)
