"""Qwen3-4B-Instruct on OMNI-MATH problems of difficulty 6 to 8, with the numbers of the paper: see
`math_paper.py`.

`--config.data.path=omni_math_rule.jsonl`, and for a held-out set of its own
`--config.data.heldout_path=aime25.jsonl`. Made for a pod; on fewer devices shrink `sampling.rows`
and raise `train.micro_batches`. `--dry_run` prints sizes, memory and FLOPs.
"""

from ml_collections import ConfigDict

from prefixrl_jax.configs import math_paper


def get_config() -> ConfigDict:
    """The configuration."""
    return math_paper.get_config("Qwen/Qwen3-4B-Instruct-2507")
