"""Every field of the configuration with values that no one should set.

Each value either passes all that a run checks before it computes, or is refused by one sentence
that names the field. Work directories are opened, and nothing is computed.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from families import words
from ml_collections import ConfigDict
from runs import python
from tiny_models import TINY, random_params

from prefixrl_jax.config import FIELDS, get_config
from prefixrl_jax.configs import smoke
from prefixrl_jax.experiment.arms import budget_fields, check_numbers, parse_seeds
from prefixrl_jax.experiment.workdir import Workdir
from prefixrl_jax.methods import configure, preset
from prefixrl_jax.model.hf import export_hf
from prefixrl_jax.model.tokenizer import word_tokenizer
from prefixrl_jax.tasks import number_questions, water_jugs

DEEP: Any = 1
for _ in range(100_000):
    DEEP = (DEEP,)

ODD_VALUES = [
    "",
    "a string",
    "a\0b",
    "\ud800",
    "x" * 200_000,
    None,
    True,
    -1,
    0,
    0.5,
    10**9,
    10**400,  # no float holds it
    10**5000,  # Python refuses to write it out
    math.nan,
    math.inf,
    -math.inf,
    (),
    (0,),
    ("a", "b"),
    (math.nan, 0.5),
    (0.9, 0.1),
    ((0.1, 0.2),),
    DEEP,
    {},
    {"a": 1},
    object(),
]


def with_value(config: ConfigDict, name: str, value: Any) -> ConfigDict:
    """Returns a copy with a field set to any value; ConfigDict itself would refuse some."""
    fields = config.to_dict()
    section = fields
    *path, field = name.split(".")
    for step in path:
        section = section[step]
    section[field] = value
    return ConfigDict(fields)


def refusal(config: ConfigDict, workdir: Path) -> str:
    """Returns the sentence by which a run of this configuration is refused; "" if it is not."""
    try:
        Workdir(configure(config, config.get("method"), {}), workdir)
    except ValueError as error:
        return str(error)
    return ""


def names(sentence: str, field: str) -> bool:
    """Whether a sentence names a field."""
    return field in sentence


def check_odd_values(config: ConfigDict, field: str, workdir: Path) -> None:
    """Asserts that each odd value is accepted, or refused by one sentence that names the field."""
    for value in ODD_VALUES:
        sentence = refusal(with_value(config, field, value), workdir)
        if sentence:
            assert names(sentence, field), sentence
            assert "\n" not in sentence and len(sentence) < 1000


@pytest.mark.parametrize("field", FIELDS)
def test_an_odd_value_is_accepted_or_refused_by_name(field, tmp_path):
    check_odd_values(smoke.get_config(), field, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny pretrained model, and problems in a file."""
    directory = tmp_path_factory.mktemp("pretrained")
    tokenizer = word_tokenizer(words(33))
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    export_hf(random_params(TINY), TINY, tokenizer, directory / "model")
    rows = [{"question": f"{i} + 1", "answer": str(i + 1), "level": i} for i in range(20)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "problems.jsonl").write_text(text)
    return directory


def pretrained(folder: Path, task: str) -> ConfigDict:
    """Returns a configuration of a task for pretrained models."""
    config = get_config()
    config.task.name = task
    config.task.math.kind = "gsm8k"
    config.model.path = str(folder / "model")
    config.sampling.context_buckets = (64, 512)
    config.data.train_candidates = 4
    config.data.heldout_candidates = 4
    if task == "math":
        config.data.path = str(folder / "problems.jsonl")
        config.data.filter_field = "level"
        config.data.filter_band = (0, 20)
    return config


@pytest.mark.parametrize("task", ["arithmetic", "sorting", "math"])
def test_odd_values_of_a_pretrained_models_task_are_accepted_or_refused_by_name(
    task, folder, tmp_path
):
    config = pretrained(folder, task)
    assert not refusal(config, tmp_path)
    for field in FIELDS:
        if field.startswith((f"task.{task}.", "data.")):
            check_odd_values(config, field, tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prefix.band", ("a", "b"), r"prefix\.band=\('a', 'b'\): two numbers are expected"),
        ("eval.fractions", (), r"eval\.fractions=\(\): 1 to 1,000 values are expected"),
        ("eval.k", (0,), r"eval\.k=\(0,\): .* each a whole number from 1 to"),
        ("eval.k", (32,), r"eval\.k=\(32,\): pass@k needs k samples, .* eval\.samples=4"),
        ("eval.temperature", math.nan, r"eval\.temperature=nan: 0 or a number"),
        ("data.limit", -1, r"data\.limit=-1: a whole number from 0"),
        ("data.heldout_fraction", math.nan, r"data\.heldout_fraction=nan: a number"),
        ("data.train_candidates", 0, r"data\.train_candidates=0 and no data\.path"),
        ("select.heldout_problems", -1, r"select\.heldout_problems=-1"),
        ("train.updates_per_batch", 0, r"train\.updates_per_batch=0: a whole number from 1"),
        ("train.max_grad_norm", 0.0, r"train\.max_grad_norm=0\.0: a number at least 1e-12"),
        ("train.b2", 1.0, r"train\.b2=1\.0: .* must not vanish in float32"),
        ("train.group", True, r"train\.group=True: a whole number"),
        ("seed", 2**63, r"seed=9223372036854775808: a whole number from 0"),
        ("train.seed", -1, r"train\.seed=-1: a whole number from 0"),
        ("task.name", "water_jugs.band", r"task\.name='water_jugs\.band': one of arithmetic"),
        ("task.water_jugs.max_capacity", 3000, r"max_capacity=3000: .* at most 250 litres"),
        ("model.dtype", "float64", r"model\.dtype='float64': JAX would compute in float32"),
        ("sampling.rows", 2**20, r"sampling\.rows=1048576, sampling\.slots=400.*tokens"),
        ("prefix.content", "wrong", r"prefix\.content='wrong' with collect\.traces_path='t'"),
        ("train.off_policy", "importance", r"train\.off_policy='importance' with collect\.traces"),
    ],
)
def test_what_is_wrong_and_what_would_be_accepted_is_said(field, value, message, tmp_path):
    config = smoke.get_config()
    if "traces_path" in message or "traces" in message:
        config.collect.traces_path = "t"
    if field == "sampling.rows":
        config.sampling.slots = 400
    assert re.search(message, refusal(with_value(config, field, value), tmp_path))


def test_a_field_that_is_missing_or_misspelt_is_named(tmp_path):
    config = smoke.get_config()
    del config.train.steps
    assert refusal(config, tmp_path).startswith("train.steps is missing from the configuration")
    config = smoke.get_config()
    config.train.stesp = 5
    expected = "train.stesp=5: there is no such field; near it: train.steps"
    assert refusal(config, tmp_path).startswith(expected)


def test_a_model_that_no_machine_holds_is_refused(tmp_path):
    config = smoke.get_config()
    config.model.num_layers = 1000
    config.model.hidden_size = 2**17
    config.model.intermediate_size = 2**20
    assert "these make 4.12e+14 parameters" in refusal(config, tmp_path)


def test_a_search_for_problems_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(water_jugs, "MOST_ENTRIES", 10**7)  # in less than a second
    config = smoke.get_config()
    config.task.water_jugs.max_capacity = 250
    config.task.water_jugs.max_moves = 1000
    config.task.water_jugs.band = (0.9999999, 1.0)
    assert re.search(r"only \d+ of 16 train problems lie in", refusal(config, tmp_path))


def test_a_search_for_questions_ends(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(number_questions, "IN_VAIN", 1000)
    config = pretrained(folder, "arithmetic")
    config.task.arithmetic.largest = 3
    config.data.train_candidates = 100_000
    expected = r"only \d+ of 100000 train problems were found: ask for fewer by data\.train_cand"
    assert re.search(expected, refusal(config, tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "train.steps=1.5",
        "train.loss=5",
        "train.learning_rate=1e999",
        "prefix.band=(1,)",
        "seed=-1",
        "eval.k=" + "(" * 5000,
        "seed=" + "9" * 5000,
        "train.stesp=5",
        "method=rl",
        "\0=1",
        "x" * 999,
    ],
)
def test_a_field_in_a_methods_name_is_checked_too(text):
    with pytest.raises(ValueError) as error:
        preset(f"rl+{text}")
    assert text.split("=")[0][:50] in str(error.value).replace("\\x00", "\0")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["²", "1" * 20, "99999999999999999999", "-1", "1.0", "", "٣", "nan"]
)
def test_a_seed_of_a_comparison_is_a_seed(text):
    with pytest.raises(ValueError, match="--seeds"):
        parse_seeds([text])


@pytest.mark.parametrize("number", [math.nan, math.inf, -1.0])
def test_numbers_of_a_comparison_are_numbers(number):
    with pytest.raises(ValueError, match="--flops"):
        check_numbers(budget=number, level=0.0)
    with pytest.raises(ValueError, match="--flops"):
        budget_fields(None, None, number)
    with pytest.raises(ValueError, match="--level"):
        check_numbers(budget=0.0, level=number)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.prefix.band=('a','b')", "prefix.band=('a', 'b'): two numbers are expected"),
        ("--config.train.max_grad_norm=nan", "train.max_grad_norm=nan: a number at least 1e-12"),
        ("--config.train.steps=many", "config.train.steps"),
        ("--config.eval.k=(1,", "config.eval.k"),
    ],
)
def test_the_command_refuses_in_one_line(argument, message, tmp_path):
    flags = ["--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}", argument]
    done = python("-m", "prefixrl_jax.main", *flags)
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and line.startswith("error: ") and message in line
    assert not (tmp_path / "run").exists()
