"""SmolLM2-135M-Instruct on sums it gets wrong: a real model and generated problems, small enough for two CPU cores.

`--config.model.path=SmolLM2-135M-Instruct` (a folder, a hub id or a GGUF file). Answers are short, so that steps take seconds;
twenty of them show that something is learnt, not how far it goes.
"""

from ml_collections import ConfigDict

from configs import gsm8k_smollm2


def get_config() -> ConfigDict:
    """The training of gsm8k_smollm2 on generated problems, with shorter answers and more of them."""
    c = gsm8k_smollm2.get_config()
    c.task.name = "arithmetic"
    c.task.arithmetic.terms = 3
    c.task.arithmetic.largest = 20
    c.task.arithmetic.signs = "+-"
    c.data.train_candidates = 80
    c.data.heldout_candidates = 40
    c.sampling.max_new_tokens = 32
    c.sampling.context_buckets = (64, 92)
    c.select.train_problems = 48
    c.select.heldout_problems = 24
    c.train.steps = 20
    c.train.micro_batches = 4
    c.train.logprob_chunk = 16
    c.train.learning_rate = 1e-5
    c.checkpoint.every = 10
    c.log.samples_every = 5
    return c
