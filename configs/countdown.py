"""Countdown: four numbers, three operations, one goal; planning that a small model has to learn, on
one CPU in some minutes.
"""

from ml_collections import ConfigDict

from prefixrl_jax.configs import demo


def get_config() -> ConfigDict:
    """The demo's training on another task."""
    c = demo.get_config()
    c.task.name = "countdown"
    c.task.countdown.numbers = 4
    c.base.steps = 1500
    c.sampling.max_new_tokens = 13  # three moves of four tokens, and the end
    c.sampling.context_buckets = (8, 20)
    c.train.logprob_chunk = 13
    return c
