"""The whole pipeline on tiny easy problems in under a minute: for tests and for a first look, not
for results.
"""

from ml_collections import ConfigDict

from prefixrl_jax import config


def get_config() -> ConfigDict:
    """The smoke test's configuration."""
    c = config.get_config()
    c.task.water_jugs.max_capacity = 5
    c.task.water_jugs.max_moves = 4
    c.task.water_jugs.band = (0.03, 0.5)
    c.data.train_candidates = 16
    c.data.heldout_candidates = 8
    c.model.hidden_size = 64
    c.model.num_heads = 2
    c.model.num_kv_heads = 1
    c.model.intermediate_size = 128
    c.sampling.max_new_tokens = 14
    c.sampling.context_buckets = (8, 20)
    c.sampling.rows = 8
    c.sampling.slots = 4
    c.base.steps = 120
    c.base.batch = 32
    c.base.learning_rate = 5e-3
    c.select.samples = 8
    c.select.band = (0.0, 1.0)
    c.select.train_problems = 8
    c.select.heldout_problems = 4
    c.collect.cap = 256
    c.sft.learning_rate = 1e-3
    c.sft.batch = 8
    c.train.steps = 3
    c.train.batch = 8
    c.train.group = 4
    c.train.learning_rate = 1e-3
    c.train.micro_batches = 2
    c.train.logprob_chunk = 7
    c.eval.samples = 4
    c.eval.k = (1, 2, 4)
    c.eval.fraction_samples = 2
    c.eval.every = 2
    c.checkpoint.every = 1
    c.log.samples_every = 1
    return c
