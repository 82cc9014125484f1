"""Tasks by name: those there are, those that were removed, and those that need a model."""

import pytest

from prefixrl_jax.tasks.registry import make_task

NAMES = "arithmetic, countdown, math, sorting, water_jugs"


def test_an_unknown_task_lists_the_known_ones():
    with pytest.raises(ValueError, match=rf"^task\.name='chess': known tasks are {NAMES}$"):
        make_task("chess", {})


@pytest.mark.parametrize("name", ["errand", "gsm8k"])
def test_a_task_of_an_earlier_version_is_refused_as_removed(name):
    message = rf"^task\.name='{name}': removed after version 0\.1\.0; known tasks are {NAMES}$"
    with pytest.raises(ValueError, match=message):
        make_task(name, {"band": (0.0, 1.0)})


def test_a_game_takes_no_pretrained_model():
    message = (
        r"model\.path='x' with task\.name='water_jugs'.*tasks for pretrained models: arithmetic,"
        r" math, sorting"
    )
    with pytest.raises(ValueError, match=message):
        make_task("water_jugs", {}, "x")
