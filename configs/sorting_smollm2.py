"""SmolLM2-135M-Instruct on lists it does not sort: a real model and generated problems, small enough for two CPU cores.

`--config.model.path=SmolLM2-135M-Instruct` (a folder, a hub id or a GGUF file). Four numbers up to 20: one answer in fifty is
right, since the model repeats the list, or speaks of Python. Answers are short, so that steps take seconds.
"""

from ml_collections import ConfigDict

from configs import gsm8k_smollm2


def get_config() -> ConfigDict:
    """The training of gsm8k_smollm2 on generated problems, with shorter answers and more of them."""
    c = gsm8k_smollm2.get_config()
    c.task.name = "sorting"
    c.data.train_candidates = 56
    c.data.heldout_candidates = 40
    c.sampling.temperature = 0.6  # at 1 half of the answers of so small a model are about something else
    c.sampling.max_new_tokens = 24
    c.sampling.context_buckets = (64, 80)
    c.select.train_problems = 40
    c.select.heldout_problems = 32
    c.collect.cap = 48
    c.sft.learning_rate = 3e-5
    c.sft.epochs = 8
    c.sft.batch = 4
    c.train.steps = 20
    c.train.micro_batches = 4
    c.train.logprob_chunk = 12
    c.train.learning_rate = 3e-5
    c.eval.temperature = 0.6
    c.checkpoint.every = 10
    c.log.samples_every = 5
    return c
