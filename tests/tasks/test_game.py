"""What the games share, whatever their rules."""

import numpy as np
import pytest

from prefixrl_jax.tasks.registry import make_task


@pytest.mark.parametrize("name", ["water_jugs", "countdown"])
def test_a_hint_stands_in_the_question_as_it_is(name):
    task = make_task(name, {})
    problem = task.generate("train", 1, 0)[0]
    prompt = task.render(problem)
    prefix = task.base_text(np.random.default_rng(0), 1)[0][1][:4]
    colon = task.text(prompt).split().index(":")
    assert task.hint(problem, prefix) == [*prompt[:colon], *prefix, *prompt[colon:]]
