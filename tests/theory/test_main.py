"""The command that measures and checks the theory."""

import json
import re

import pytest
from runs import python

from prefixrl_jax.theory import hidden_string, objective
from prefixrl_jax.theory.hidden_string import CAP, HORIZONS, PLAIN, PREFIX


def command(*flags):
    return python("-m", "prefixrl_jax.theory", *flags)


def test_the_command_writes_the_numbers_the_figure_and_a_table(tmp_path):
    done = command(f"--out={tmp_path / 'new' / 'folder'}", "--seeds=3", "--max_horizon=12")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "new" / "folder"
    found = json.loads((out / "theory.json").read_text(), parse_constant=pytest.fail)
    proposition = found["proposition_3_4"]
    assert [row["horizon"] for row in proposition["horizons"]] == [h for h in HORIZONS if h <= 12]
    assert all(
        len(row[name]["samples"]) == 3
        for row in proposition["horizons"]
        for name in (PREFIX, PLAIN)
    )
    assert proposition["cap"] == CAP and set(proposition["counted"]) == set(hidden_string.SERIES)
    assert 1 < proposition["fits"][PREFIX]["polynomial"]["slope"] < 3
    assert {name: case["violations"] > 0 for name, case in found["theorem_3_2"].items()} == {
        name: not case.must_hold for name, case in objective.CASES.items()
    }
    assert (out / "theory.png").read_bytes().startswith(b"\x89PNG")
    assert (
        re.search(r"^  12 +\d+ +[\d,]+ +[\d,]+$", done.stdout, re.M)
        and f"{out / 'theory.png'}" in done.stdout
    )


def test_too_few_horizons_for_a_fit_are_said_to_be(tmp_path):
    done = command(f"--out={tmp_path}", "--seeds=1", "--max_horizon=2")
    assert done.returncode == 0 and done.stdout.count("too few horizons") == 3, done.stderr
    assert (
        json.loads((tmp_path / "theory.json").read_text())["proposition_3_4"]["fits"][PLAIN] is None
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--out={tmp}", "--seeds=0"], ["--seeds=0", "[1, 99]"]),
        (["--out={tmp}", "--seeds=many"], ["--seeds=many"]),
        (["--out={tmp}", "--max_horizon=65"], ["--max_horizon=65", "[2, 64]"]),
        (["--out={tmp}", "--horizon=4"], ["horizon"]),
        (["--out={tmp}", "extra"], ["extra", "--name=value"]),
        (["--out={tmp}/file"], ["--out=", "file", "folder"]),
        ([], ["--out", "--help"]),
    ],
)
def test_bad_flags_are_refused_in_one_line(tmp_path, flags, words):
    (tmp_path / "file").touch()
    done = command(*(flag.format(tmp=tmp_path) for flag in flags))
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line
    assert not (tmp_path / "theory.json").exists()
