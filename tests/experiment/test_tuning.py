"""Tuning: which values are tried, which are chosen, and on which problems."""

from __future__ import annotations

import json

import pytest

from prefixrl_jax.configs import smoke
from prefixrl_jax.experiment.arms import parse_seeds
from prefixrl_jax.experiment.build import resolve
from prefixrl_jax.experiment.tuning import SEED, Grid, Outcome, check_grids, choose
from prefixrl_jax.methods import configure
from prefixrl_jax.training.evaluate import PARTS, part_of

RATES = Grid("train.learning_rate", ("1e-4", "1e-3", "1e-2"))
EPOCHS = Grid("sft.epochs", ("1", "4"))
SHARES = Grid.parse("prefix.share=0.25,0.5")
CUTS = Grid.parse("prefix.cuts=3,5")


def test_fields_are_chosen_one_after_another_and_every_try_is_on_record():
    accuracies = {
        "+train.learning_rate=1e-4": 0.1,
        "+train.learning_rate=1e-3": 0.3,
        "+train.learning_rate=1e-2": 0.3,
        "+train.learning_rate=1e-3+sft.epochs=1": 0.2,
        "+train.learning_rate=1e-3+sft.epochs=4": 0.4,
    }
    suffixes = []

    def measure(suffix: str) -> Outcome:
        suffixes.append(suffix)
        return Outcome(accuracies[suffix], (0.0, 1.0), 1e9)

    suffix, record = choose("sft_rl", [RATES, EPOCHS], measure)
    assert suffixes == list(accuracies)
    assert suffix == "+train.learning_rate=1e-3+sft.epochs=4"  # the first of two equal rates
    rate, epochs = record
    assert rate["method"] == epochs["method"] == "sft_rl"
    assert (rate["field"], rate["chosen"]) == ("train.learning_rate", "1e-3")
    assert [trial["accuracy"] for trial in rate["tried"]] == [0.1, 0.3, 0.3]
    assert (epochs["field"], epochs["chosen"]) == ("sft.epochs", "4")
    assert [trial["accuracy"] for trial in epochs["tried"]] == [0.2, 0.4]
    json.dumps(record)  # it is written to a file
    assert choose("rl", [], measure) == ("", [])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("rl", [RATES]),  # a share of prefixes would make it PrefixRL
        ("sft_rl", [RATES, EPOCHS]),
        ("prefixrl", [RATES, SHARES, CUTS]),
        ("prefix_only", [RATES, CUTS]),  # the method fixes its share
        ("sft", [EPOCHS]),  # no step of RL
        ("sft_rl+sft.epochs=2", [RATES]),  # fixed by name
        ("prefixrl+train.learning_rate=1e-5", [SHARES, CUTS]),
    ],
)
def test_a_method_tunes_what_it_reads_and_does_not_fix(method, expected):
    config = configure(smoke.get_config(), method, {})
    grids = (RATES, EPOCHS, SHARES, CUTS)
    assert [grid for grid in grids if grid.matters(method, config)] == expected


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["train.learning_rate"], "a field and two or more values are expected"),
        (["train.learning_rate=1e-3"], "two or more values"),
        (["train.learning_rate=1e-3,1e-3"], "two or more values"),
        (
            ["train.learning_rat=1e-3,1e-4"],
            "no field 'train.learning_rat'; near it: train.learning_rate",
        ),
        (["train.batch=8,many"], "train.batch='many': a whole number from 1 to"),
        (["train.batch=8,16", "train.batch=32,64"], "--tune=train.batch: given twice"),
        (["select.samples=8,16"], "--tune=select.samples: the base model, the hard set"),
        (["eval.samples=8,16"], "--tune=eval.samples: .* the same for all methods"),
        (
            ["sft.epochs=4,16"],
            "--tune=sft.epochs: none of the methods rl leaves it open and reads it",
        ),
        (["checkpoint.every=1,2"], "--tune=checkpoint.every: none of the methods rl"),
        (["train.steps=8,16"], "--tune=train.steps: .* the budget are the same for all methods"),
    ],
)
def test_a_field_that_cannot_be_tuned_is_named(texts, message):
    methods = {"rl": configure(smoke.get_config(), "rl", {})}
    with pytest.raises(ValueError, match=message):
        check_grids([Grid.parse(text) for text in texts], smoke.get_config(), methods)


def test_the_seed_of_tuning_is_not_one_of_the_comparison():
    assert parse_seeds(["0", " 7"]) == [0, 7]
    message = "--seeds=0,1000: 1000 is the seed that --tune chooses with"
    with pytest.raises(ValueError, match=message):
        parse_seeds(["0", str(SEED)])


def test_the_parts_of_the_held_out_problems_are_disjoint_and_make_up_all():
    problems = list(range(7))
    validation = part_of(problems, "validation")
    test = part_of(problems, "test")
    assert sorted(validation + test) == problems
    assert part_of(problems, "all") == problems
    assert set(PARTS) == {"all", "validation", "test"}


def test_an_unknown_part_of_the_held_out_problems_is_named():
    config = smoke.get_config()
    config.eval.heldout_part = "train"
    message = r"eval.heldout_part='train': one of all, validation, test"
    with pytest.raises(ValueError, match=message):
        resolve(config)
