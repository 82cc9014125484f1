"""Water jugs that the base model solves once in five thousand samples."""

from ml_collections import ConfigDict

from prefixrl_jax.configs import jugs


def get_config() -> ConfigDict:
    """Return the configuration of `jugs.py`, but rarer successes and more samples to find them."""
    c = jugs.get_config()
    c.task.water_jugs.band = (1e-4, 1e-3)
    c.data.train_candidates = 340
    c.data.heldout_candidates = 340
    c.select.train_problems = 320
    c.collect.cap = 512
    return c
