"""SmolLM2-135M-Instruct on sums that it gets wrong: a real model on two CPU cores.

`--config.model.path=SmolLM2-135M-Instruct` names the model: a folder, a hub id or a GGUF file. The
problems are generated: three numbers up to 20, which it adds right once in a hundred answers.
Answers are short, so that a step takes seconds. There are few steps: they show what is learnt
first, not how far it goes.
"""

from ml_collections import ConfigDict

from prefixrl_jax.configs import gsm8k_smollm2


def get_config() -> ConfigDict:
    """Return the configuration: gsm8k_smollm2 with more problems and shorter answers."""
    c = gsm8k_smollm2.get_config()
    c.task.name = "arithmetic"
    c.task.arithmetic.terms = 3
    c.task.arithmetic.largest = 20
    c.task.arithmetic.signs = "+"
    c.data.train_candidates = 56
    c.data.heldout_candidates = 30
    # At 1 half of the answers of so small a model are about something else.
    c.sampling.temperature = 0.6
    c.sampling.max_new_tokens = 24
    c.sampling.context_buckets = (64, 84)
    c.select.train_problems = 40
    c.select.heldout_problems = 20
    c.collect.cap = 48
    c.sft.learning_rate = 3e-5
    c.train.steps = 20
    c.train.micro_batches = 4
    c.train.logprob_chunk = 12
    c.train.learning_rate = 3e-5
    c.eval.temperature = 0.6
    c.checkpoint.every = 10
    c.log.samples_every = 5
    return c
