"""Declarations of fields: their ends, their words, and the tables of the modules that read them."""

import hashlib
import importlib
import json
import math
import re

import pytest
from runs import ROOT

from prefixrl_jax.config import FIELDS, check_fields, flatten, get_config, saved_config
from prefixrl_jax.fields import Choice, Flag, Interval, Number, Several, Text, Whole, shown
from prefixrl_jax.prefixes.cuts import CONTENTS, PLACES
from prefixrl_jax.prefixes.schedules import SCHEDULES
from prefixrl_jax.rl.advantage import KINDS
from prefixrl_jax.rl.step import SCHEDULES as RATE_SCHEDULES
from prefixrl_jax.rl.surrogate import AGGREGATIONS, KL, LOSSES, OFF_POLICY
from prefixrl_jax.tasks.countdown import Countdown
from prefixrl_jax.tasks.grading.grader import KINDS as GRADERS
from prefixrl_jax.tasks.jug_play import JUGS
from prefixrl_jax.tasks.registry import TASKS
from prefixrl_jax.tasks.water_jugs import WaterJugs
from prefixrl_jax.training.evaluate import PARTS


@pytest.mark.parametrize(
    ("field", "table"),
    [
        ("task.name", sorted(TASKS)),
        ("base.schedule", RATE_SCHEDULES),
        ("sft.schedule", RATE_SCHEDULES),
        ("train.schedule", RATE_SCHEDULES),
        ("prefix.schedule", SCHEDULES),
        ("prefix.content", CONTENTS),
        ("prefix.place", PLACES),
        ("train.advantage", KINDS),
        ("train.loss", LOSSES),
        ("train.aggregation", AGGREGATIONS),
        ("train.off_policy", OFF_POLICY),
        ("train.kl_estimator", KL),
        ("eval.heldout_part", PARTS),
    ],
)
def test_the_words_of_a_field_are_those_of_the_module_that_reads_it(field, table):
    assert FIELDS[field].options == tuple(table)


def test_other_ends_are_those_of_the_modules_too():
    assert FIELDS["task.water_jugs.jugs"].most == len(JUGS)
    assert all(FIELDS["task.math.kind"].accepts(kind) for kind in (*GRADERS, "graders:exact"))
    assert not FIELDS["task.math.kind"].accepts("exact")


def test_defaults_are_accepted_and_are_those_of_earlier_versions():
    config = get_config()
    check_fields(config)
    text = json.dumps(flatten(config))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "abfd8c31643d50d4"
    assert list(FIELDS)[:4] == ["method", "seed", "task.name", "task.water_jugs.max_capacity"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("[a-z]*.py")), ids=lambda p: p.stem)
def test_every_configuration_that_comes_along_is_accepted(path):
    check_fields(importlib.import_module(f"prefixrl_jax.configs.{path.stem}").get_config())


@pytest.mark.parametrize(
    ("field", "accepted", "refused"),
    [
        (Flag(False), [True, False], [0, 1, None, "True"]),
        (Whole(1, 1, 8), [1, 8], [0, 9, 1.0, True, "1", None, math.nan, 10**5000]),
        (Whole(1, 1, 8, also=(-1,)), [-1, 1], [0, -2]),
        (Number(1.0, 0, 1), [0, 1, 0.5], [-1e-9, 1.0001, math.nan, math.inf, True, "0", 10**400]),
        (Number(1.0, above=0), [1e-300, 3e38], [0, 0.0, -1, 4e38]),
        (Number(0.5, below=1), [0, 0.999], [1, 1.0]),
        (Number(1.0, least=0.1, also=(0,)), [0, 0.1], [0.05]),
        (Choice("a", ("a", "b")), ["a", "b"], ["c", "", None, 1, ("a",)]),
        (Text(""), ["", "a\nb", "é" * 9], [None, 1, "\0", "\ud800", "x" * 100_001]),
        (Text("a", "a+"), ["aa"], ["", "ab", "b\na"]),
        (Interval((0, 1)), [(0, 0), [-5.5, 3]], [(1, 0), (0,), (0, 1, 2), (0, math.nan), "01", 1]),
        (Interval((0, 1), 0, 1), [(0, 1)], [(-0.1, 1), (0, 1.1), (0, math.inf), (None, 1)]),
        (Interval((0.1, 0.2), 0, 1, open_ends=True), [(0.1, 0.1)], [(0, 0.5), (0.5, 1)]),
        (Interval((0, 1), 0, 1, may_be_point=False), [(0, 1)], [(0.5, 0.5)]),
        (Several((1,), Whole(1, 1), most=3), [(1,), [1, 2, 3]], [(), (0,), (1, 2, 3, 4), 1, "1"]),
    ],
)
def test_a_declaration_accepts_its_range_and_nothing_else(field, accepted, refused):
    for value in (field.default, *accepted):
        assert field.accepts(value), value
    for value in refused:
        assert not field.accepts(value), shown(value)
        with pytest.raises(ValueError) as error:
            field.check("section.field", value)
        assert str(error.value) == f"section.field={shown(value)}: {field.expected}"


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (Whole(1, 1, 8, also=(-1,)), "-1 or a whole number from 1 to 8 is expected"),
        (Whole(1, 1, 9999, why="reason"), "a whole number from 1 to 9,999 is expected (reason)"),
        (Number(1, above=0, most=1), "a number above 0 and at most 1 is expected"),
        (Number(1, below=1), "a number at least 0 and below 1 is expected"),
        (Interval((0, 1)), "two numbers are expected, with low <= high"),
        (Interval((0, 1), 0, 1, True), "two numbers are expected, with 0 < low <= high < 1"),
        (
            Several((1,), Whole(1, 1, 4)),
            "1 to 1,000 values are expected, each a whole number from 1 to 4",
        ),
    ],
)
def test_what_is_accepted_is_said(field, expected):
    assert field.expected == expected


def test_a_long_value_is_cut_and_an_endless_one_is_described():
    assert shown("x" * 999) == "'" + "x" * 99 + "..."
    assert shown(10**5000) == "(int, too long to be shown)"
    assert shown([1, 2]) == "(1, 2)"
    assert "\n" not in shown("a\nb")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"1",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"task": 5}',
        b'{"task": {"name": {}}}',
        b'{"task": {}, "train": 5}',
        b'{"task": {}, "train": {"steps": "many"}}',
    ],
    ids=lambda content: content[:12].decode("latin-1"),
)
def test_a_damaged_config_json_is_refused_by_name(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        check_fields(saved_config(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Countdown(8, 10, 600),
            r"max_outcome=600 with task\.countdown\.numbers=8",
        ),
        (lambda: WaterJugs(pour_weight=math.nan), r"task\.water_jugs\.pour_weight=nan: a number"),
        (lambda: WaterJugs(band=(math.nan, 1)), r"task\.water_jugs\.band=\(nan, 1\): two numbers"),
        (lambda: WaterJugs(max_moves=10**9), r"task\.water_jugs\.max_moves=1000000000: a whole"),
    ],
)
def test_a_task_checks_its_section_by_the_same_declarations(make, message):
    with pytest.raises(ValueError, match=message):
        make()
