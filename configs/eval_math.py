"""pass@k of any model on any set of problems, with a report: nothing is screened, collected or
trained.

`--config.model.path=MODEL --config.data.path=math500.jsonl`; a set with other field names:
`--config.task.math.question_field`, `--config.task.math.answer_field`. Sampling as in the paper's
evaluation (temperature 0.7, 256 samples).
"""

from ml_collections import ConfigDict

from prefixrl_jax import config


def get_config() -> ConfigDict:
    """The configuration."""
    c = config.get_config()
    c.task.name = "math"
    c.data.heldout_fraction = 0.0
    c.model.dtype = "bfloat16"
    c.model.param_dtype = "bfloat16"
    c.sampling.max_new_tokens = 4096
    c.sampling.context_buckets = (512, 2048)
    c.sampling.rows = 32
    c.sampling.chunk = 32
    c.select.samples = 0
    c.select.train_problems = 1_000_000  # all there are
    c.collect.cap = 0
    c.train.steps = 0
    c.eval.samples = 256
    c.eval.temperature = 0.7
    c.eval.k = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    c.eval.fractions = (0.0,)
    return c
