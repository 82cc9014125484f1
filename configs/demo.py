"""The demo: hard water-jug problems that the base model cannot solve, on one CPU in a few minutes."""

from ml_collections import ConfigDict

from prefixrl_jax import config


def get_config() -> ConfigDict:
    """The demo's configuration."""
    c = config.get_config()
    c.model.unroll_layers = True
    c.prefix.share = 0.5  # not the 3:1 of the paper: there are few traces here, and prefixed groups are soon all right
    c.train.steps = 90
    c.train.batch = 128
    c.train.learning_rate = 3e-4
    c.train.warmup_steps = 5
    c.train.micro_batches = 16
    c.train.logprob_chunk = 25
    c.eval.temperature = 1.0
    return c
