"""Countdown: five numbers, three operations, one goal; planning that a small model has to learn, on one CPU in some minutes."""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
    """The demo's training on another task."""
    c = demo.get_config()
    c.task.name = "countdown"
    c.base.steps = 1500
    c.sampling.max_new_tokens = 17  # four moves of four tokens, and the end
    c.sampling.context_buckets = (8, 21)
    c.train.logprob_chunk = 17
    return c
