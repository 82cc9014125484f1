"""SmolLM2-135M-Instruct on lists that it sorts wrong: a real model on two CPU cores.

`--config.model.path=SmolLM2-135M-Instruct` names the model: a folder, a hub id or a GGUF file. The
problems are generated: five different digits, which it sorts right once in sixty answers. Answers
have about fifteen tokens, so that a step takes seconds.
"""

from ml_collections import ConfigDict

from prefixrl_jax.configs import gsm8k_smollm2


def get_config() -> ConfigDict:
    """Return the configuration: gsm8k_smollm2 with more problems and shorter answers."""
    c = gsm8k_smollm2.get_config()
    c.task.name = "sorting"
    c.data.train_candidates = 60
    c.data.heldout_candidates = 46
    c.sampling.max_new_tokens = 16
    c.sampling.context_buckets = (41, 54)
    c.select.train_problems = 40
    c.select.heldout_problems = 32
    c.collect.cap = 64
    c.sft.learning_rate = 3e-5
    c.sft.epochs = 4
    c.sft.batch = 4
    c.train.steps = 40
    c.train.micro_batches = 4
    c.train.logprob_chunk = 16
    c.train.learning_rate = 1e-5
    c.eval.temperature = 1.0
    c.eval.every = 5
    c.eval.every_samples = 2
    c.checkpoint.every = 20
    c.log.samples_every = 10
    return c
