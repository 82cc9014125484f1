"""Errands: four cells to call at in order on a floor with walls; long walks that wander, on one CPU
in some minutes.
"""

from ml_collections import ConfigDict

from prefixrl_jax.configs import demo


def get_config() -> ConfigDict:
    """The demo's training on another task."""
    c = demo.get_config()
    c.task.name = "errand"
    c.data.train_candidates = 440
    c.data.heldout_candidates = 260
    c.base.steps = 1000
    c.select.train_problems = 320
    c.select.heldout_problems = 200
    c.sampling.max_new_tokens = 41  # twenty moves of two tokens, and the end
    c.sampling.context_buckets = (10, 42)
    c.train.logprob_chunk = 41
    return c
