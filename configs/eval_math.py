"""pass@k of any model on any set of problems, with a report; nothing is trained.

`--config.model.path=MODEL --config.data.path=math500.jsonl` name model and problems. For a set with
other field names there are `--config.task.math.question_field` and
`--config.task.math.answer_field`. Samples are drawn as in the paper's evaluation: 256 of each
problem, at temperature 0.7.
"""

from ml_collections import ConfigDict

from prefixrl_jax import config


def get_config() -> ConfigDict:
    """Return the configuration."""
    c = config.get_config()
    c.task.name = "math"
    c.data.heldout_fraction = 0.0
    c.model.dtype = "bfloat16"
    c.model.param_dtype = "bfloat16"
    c.sampling.max_new_tokens = 4096
    c.sampling.context_buckets = (512, 2048)
    c.sampling.rows = 32
    c.sampling.chunk = 32
    c.select.samples = 0  # no screening: every problem is evaluated
    c.select.train_problems = 1_000_000  # all there are
    c.collect.cap = 0
    c.train.steps = 0
    c.eval.samples = 256
    c.eval.temperature = 0.7
    c.eval.k = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    c.eval.fractions = (0.0,)
    return c
