"""SmolLM2-135M-Instruct on sums it gets wrong: a real model and generated problems, small enough for two CPU cores.

`--config.model.path=SmolLM2-135M-Instruct` (a folder, a hub id or a GGUF file). Answers are short, so that steps take seconds;
twenty of them show that something is learnt, not how far it goes.
"""

from ml_collections import ConfigDict

from prefixrl_jax import config


def get_config() -> ConfigDict:
    """The configuration."""
    c = config.get_config()
    c.task.name = "arithmetic"
    c.task.arithmetic.terms = 3
    c.task.arithmetic.largest = 20
    c.task.arithmetic.signs = "+-"
    c.model.path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    c.data.train_candidates = 80
    c.data.heldout_candidates = 40
    c.sampling.max_new_tokens = 32
    c.sampling.context_buckets = (64, 92)
    c.sampling.rows = 8
    c.sampling.slots = 8  # every count of samples below is a multiple of it, so that no slot is idle
    c.sampling.chunk = 8
    c.select.samples = 8
    c.select.train_problems = 48
    c.select.heldout_problems = 24
    c.collect.cap = 32
    c.train.steps = 20
    c.train.batch = 8
    c.train.group = 8
    c.train.micro_batches = 4
    c.train.logprob_chunk = 16
    c.train.learning_rate = 1e-5
    c.eval.samples = 8
    c.eval.k = (1, 2, 4, 8)
    c.eval.fractions = (0.0, 0.6)
    c.eval.fraction_samples = 8
    c.eval.every = 0
    c.log.samples_every = 5
    return c
