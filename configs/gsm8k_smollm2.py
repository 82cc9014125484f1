"""SmolLM2-135M-Instruct on word problems that it does not solve: a real model on two CPU cores.

`--config.data.path=gsm8k_train.jsonl` names the problems, and
`--config.model.path=SmolLM2-135M-Instruct` the model: a folder, a hub id or a GGUF file. Sizes are
cut for a CPU: 16 hard problems, few samples, answers of at most 96 tokens, a quarter of an hour on
two cores. That shows every stage at work. To learn something takes an accelerator, more problems,
longer answers and more steps.
"""

from ml_collections import ConfigDict

from prefixrl_jax import config


def get_config() -> ConfigDict:
    """Return the configuration."""
    c = config.get_config()
    c.task.name = "math"
    c.task.math.kind = "gsm8k"
    c.task.math.prompt = (
        '{question} Give a short calculation and finish with "The answer is" and the number.'
    )
    c.model.path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    c.data.limit = 40
    c.data.heldout_fraction = 0.25
    c.sampling.max_new_tokens = 96
    c.sampling.context_buckets = (192, 272)
    c.sampling.rows = 8
    c.sampling.slots = 8  # counts of samples below are multiples of it, so that no slot is idle
    c.sampling.chunk = 8
    c.select.samples = 8
    c.select.train_problems = 16
    c.select.heldout_problems = 8
    c.collect.cap = 32
    c.train.steps = 5
    c.train.batch = 8
    c.train.group = 8
    c.train.micro_batches = 8
    c.train.learning_rate = 5e-6
    c.eval.samples = 8
    c.eval.k = (1, 2, 4, 8)
    c.eval.fractions = (0.0, 0.6)
    c.eval.fraction_samples = 8
    c.eval.every = 0
    c.checkpoint.every = 2
    c.log.samples_every = 1
    return c
