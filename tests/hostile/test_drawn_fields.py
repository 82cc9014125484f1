"""Configurations drawn from the declared ranges, near the smoke configuration, run to their end."""

import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict
from test_fields import refusal, with_value

from prefixrl_jax.config import FIELDS, flatten
from prefixrl_jax.configs import smoke
from prefixrl_jax.experiment.run import run_rounds
from prefixrl_jax.experiment.workdir import Workdir
from prefixrl_jax.fields import Choice, Field, Flag, Interval, Number, Several, Whole
from prefixrl_jax.methods import configure

COUNT = int(os.environ.get("DRAWN", "10"))  # `make drawn` has 50
CHANGED = 20  # fields of a configuration
# Other tasks and models are not near, the mesh has one device, and a narrow band of pass rates
# leaves none of so few problems.
KEPT = ("method", "task.", "data.", "mesh.", "model.path", "select.band", "collect.traces_path")
# What only the drawn corpus shows: that a configuration has nothing to train on.
NOTHING_TO_TRAIN_ON = re.compile(
    "the corpus has no trace|has a pass rate inside it|there is one trace only|no wrong response"
    "|a wrong response|asks for plain problems"
)


def near(rng: random.Random, field: Field, value: Any) -> Any:
    """Returns a value of about the same size; that the field accepts it is not certain."""
    match field:
        case Flag():
            value = rng.random() < 0.5
        case Choice():
            value = rng.choice(field.options)
        case Whole():
            value = rng.randint(value // 2, 2 * value + 1)
        case Number():
            value = value * rng.uniform(0.5, 2) if value else rng.uniform(0, 0.5)
        case Interval():
            value = tuple(sorted((rng.random(), rng.random())))
        case Several():
            items = rng.sample(list(value), rng.randint(1, len(value)))
            value = tuple(near(rng, field.item, item) for item in items)
    return value


def drawn(seed: int) -> ConfigDict:
    """Returns a configuration that the checks accept: changes that they refuse are left out."""
    rng = random.Random(seed)
    config = smoke.get_config()
    names = [name for name in FIELDS if not name.startswith(KEPT)]
    for name in rng.sample(names, CHANGED):
        value = near(rng, FIELDS[name], flatten(config)[name])
        changed = with_value(config, name, value)
        if not refusal(changed, Path("nowhere")):
            config = changed
    return configure(config, config.method, {})


def test_drawn_configurations_differ_in_most_fields():
    before = flatten(smoke.get_config())
    changes = [{n for n, v in flatten(drawn(seed)).items() if v != before[n]} for seed in range(3)]
    assert all(len(change) > CHANGED / 2 for change in changes)


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(COUNT))
def test_a_configuration_that_the_checks_accept_runs_through(seed, tmp_path):
    try:
        run_rounds(Workdir(drawn(seed), tmp_path / "run"))
    except ValueError as error:  # that is known once the corpus is made, and says what to change
        assert NOTHING_TO_TRAIN_ON.search(str(error)), error
        return
    assert (tmp_path / "run" / "report.html").exists()
