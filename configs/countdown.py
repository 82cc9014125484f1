"""Countdown: four numbers, three operations, one goal, on one CPU in some minutes.

The base model knows the rules; planning is what it has to learn.
"""

from ml_collections import ConfigDict

from prefixrl_jax.configs import jugs


def get_config() -> ConfigDict:
    """Return the configuration: the training of `jugs.py` on another task."""
    c = jugs.get_config()
    c.task.name = "countdown"
    c.task.countdown.numbers = 4
    c.base.steps = 1500
    c.sampling.max_new_tokens = 13  # three moves of four tokens, and the end
    c.sampling.context_buckets = (8, 20)
    c.train.logprob_chunk = 13
    return c
