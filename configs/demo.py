"""The demo: hard water-jug problems that the base model cannot solve, on one CPU in a few
minutes.
"""

from ml_collections import ConfigDict

from prefixrl_jax import config


def get_config() -> ConfigDict:
    """The demo's configuration."""
    c = config.get_config()
    c.model.unroll_layers = True
    c.sampling.rows = 128
    c.data.train_candidates = 700
    c.select.train_problems = 640  # problems are free, traces are not: twice as many, half the cap
    c.collect.cap = 128
    # short prefixes too (paper: 0.4 to 0.8), else plain problems take off late with some seeds
    c.prefix.band = (0.05, 0.8)
    c.prefix.cuts = 5
    # not the 3:1 of the paper: there are few traces here, and prefixed groups are soon all right
    c.prefix.share = 0.5
    # of 1e-4 to 1e-3, and 4 or 16 epochs, what gives the highest plain accuracy
    c.sft.learning_rate = 1e-3
    c.sft.epochs = 16
    c.sft.batch = 16
    c.train.steps = 160
    c.train.advantage = "std_normalised"  # gives rare successes more weight
    c.train.batch = 128
    c.train.learning_rate = 5e-4
    c.train.warmup_steps = 5
    c.train.schedule = "linear"
    c.train.final_fraction = 0.2
    c.train.micro_batches = 16
    c.train.logprob_chunk = 25
    c.train.max_logp_diff = 1e-3
    c.eval.temperature = 1.0
    c.eval.every = 20
    c.eval.every_samples = 1
    return c
