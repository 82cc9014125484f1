"""The demo: hard water-jug problems that the base model cannot solve, on one CPU in a few
minutes.
"""

from ml_collections import ConfigDict

from prefixrl_jax import config


def get_config() -> ConfigDict:
    """The demo's configuration."""
    c = config.get_config()
    c.model.unroll_layers = True  # two small layers: faster than a scan over them
    # many small batches: legal moves are learnt in half the time that 1100 batches of 64 texts take
    c.base.batch = 32
    c.base.steps = 1500
    c.base.learning_rate = 2e-3  # with 3e-3 and seed 1, too few games are legal to find traces
    c.base.final_fraction = 0.02
    # at least 94 % of candidates are hard, so these suffice for 640 and 320 hard problems
    c.data.train_candidates = 690
    c.data.heldout_candidates = 350
    # problems are free, traces are not: many problems with a low cap (paper: 1,000 and 2,500)
    c.select.train_problems = 640
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
    # half the paper's batch of 128: the same samples make twice as many updates, and plain accuracy
    # takes off after half as many samples
    c.train.batch = 64
    c.train.steps = 280  # paper: 400; plain accuracy is flat over the last 40
    c.train.advantage = "std_normalised"  # gives rare successes more weight
    # a small model trained from scratch; the paper's 1e-6 is for pretrained ones of 4B and 8B
    c.train.learning_rate = 5e-4
    c.train.warmup_steps = 5
    c.train.schedule = "linear"
    c.train.final_fraction = 0.1
    c.train.micro_batches = 8  # of eight groups; those without a gradient are not computed
    c.train.logprob_chunk = 25
    c.train.max_logp_diff = 1e-3
    c.eval.temperature = 1.0  # as in training (paper: 0.7)
    c.eval.every = 40
    c.eval.every_samples = 1
    c.checkpoint.every = 20  # 12 s of training
    return c
