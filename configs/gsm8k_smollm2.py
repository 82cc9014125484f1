"""SmolLM2-135M-Instruct on grade-school word problems it does not solve: a real model, small enough for two CPU cores.

`--config.data.path=gsm8k_train.jsonl --config.model.path=SmolLM2-135M-Instruct` (a folder, a hub id or a GGUF file). Sizes are
cut for a CPU: tens of problems, few samples, answers of at most 96 tokens. Not yet run from end to end.
"""

from ml_collections import ConfigDict

from prefixrl_jax import config


def get_config() -> ConfigDict:
    """The configuration."""
    c = config.get_config()
    c.task.name = "math"
    c.task.math.kind = "gsm8k"
    c.task.math.prompt = '{question} Give a short calculation and finish with "The answer is" and the number.'
    c.model.path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    c.data.limit = 64
    c.data.heldout_fraction = 0.25
    c.sampling.max_new_tokens = 96
    c.sampling.context_buckets = (128, 224)
    c.sampling.rows = 8
    c.sampling.slots = 8
    c.sampling.chunk = 8
    c.select.samples = 4
    c.select.train_problems = 32
    c.select.heldout_problems = 16
    c.collect.cap = 32
    c.train.steps = 4
    c.train.batch = 8
    c.train.micro_batches = 8
    c.train.learning_rate = 1e-6
    c.eval.samples = 4
    c.eval.k = (1, 2, 4)
    c.eval.fractions = (0.0, 0.4, 0.8)
    c.eval.fraction_samples = 2
    c.eval.every = 0
    c.checkpoint.every = 2
    c.log.samples_every = 1
    return c
