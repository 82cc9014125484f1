"""Llama-3.1-8B-Instruct with the numbers of the paper: see `math_paper.py`, and `math_qwen3_4b.py`
for the data.

The paper first distils it on OpenThoughts3 (how is not stated), and finds the hard set with that
model: name the distilled checkpoint with `--config.model.path`, a folder or a hub id.
"""

from ml_collections import ConfigDict

from prefixrl_jax.configs import math_paper


def get_config() -> ConfigDict:
    """The configuration."""
    c = math_paper.get_config("meta-llama/Llama-3.1-8B-Instruct")
    # as OpenThoughts3's answers begin; leave it empty for a model that does not think aloud
    c.task.math.opening = "<think>\n"
    return c
