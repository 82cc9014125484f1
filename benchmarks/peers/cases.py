"""What is timed: models, shapes and prompts that this package and its peers share.

Every environment imports this module, so it needs the standard library alone.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import NamedTuple


class ModelShape(NamedTuple):
    """The sizes of a Qwen2 model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int


@dataclasses.dataclass(frozen=True)
class Case:
    """A batch to time.

    Attributes:
        model: A name in `SHAPES`, or "smollm2".
        contexts: Distinct prompts.
        group: Continuations of each.
        context: Tokens of a prompt.
        new: Tokens of a continuation.
    """

    model: str
    contexts: int
    group: int
    context: int
    new: int

    @property
    def rows(self) -> int:
        """Sequences in the batch."""
        return self.contexts * self.group


SHAPES = {
    "0.83M": ModelShape(
        hidden=128, layers=4, heads=4, kv_heads=2, intermediate=384, vocabulary=320
    ),
    "5.8M": ModelShape(
        hidden=256, layers=6, heads=8, kv_heads=4, intermediate=768, vocabulary=4096
    ),
}

SAMPLER = {
    "SmolLM2 64+64, 4 contexts x 8": Case("smollm2", 4, 8, 64, 64),
    "SmolLM2 64+64, 32 contexts": Case("smollm2", 32, 1, 64, 64),
    "0.83M 64+128, 32 contexts": Case("0.83M", 32, 1, 64, 128),
    "0.83M 64+128, 4 contexts x 8": Case("0.83M", 4, 8, 64, 128),
    "5.8M 64+128, 32 contexts": Case("5.8M", 32, 1, 64, 128),
    "5.8M 64+128, 4 contexts x 8": Case("5.8M", 4, 8, 64, 128),
    "5.8M 128+128, 32 contexts": Case("5.8M", 32, 1, 128, 128),
}
STEP = {
    "0.83M 64+128, 32 contexts": Case("0.83M", 32, 1, 64, 128),
    "5.8M 64+128, 32 contexts": Case("5.8M", 32, 1, 64, 128),
    "5.8M 128+128, 32 contexts": Case("5.8M", 32, 1, 128, 128),
    "0.83M 115+77, 4 contexts x 8": Case("0.83M", 4, 8, 115, 77),
    "5.8M 154+102, 4 contexts x 8": Case("5.8M", 4, 8, 154, 102),
}
# A whole step of reinforcement learning: rollouts, rewards, one update.
RL = {
    "0.83M 64+128, 4 contexts x 8": Case("0.83M", 4, 8, 64, 128),
    "5.8M 64+128, 4 contexts x 8": Case("5.8M", 4, 8, 64, 128),
}
CASES = {"sampler": SAMPLER, "step": STEP, "rl": RL}

LEARNING_RATE = 1e-5
MAX_GRAD_NORM = 1.0
PROBE = list(range(3, 35))  # ids whose logits are compared


def prompts(case: Case, vocabulary: int) -> list[list[int]]:
    """Return random token ids for every context, the same in every environment.

    The first four ids are special and not drawn.
    """
    draw = random.Random(0)
    return [
        [draw.randrange(4, vocabulary) for _ in range(case.context)] for _ in range(case.contexts)
    ]


def rewards(completions: Sequence[Sequence[int]], new: int) -> list[float]:
    """Return the share of even token ids in every completion.

    It is cheap, and differs within a group, so that there is a gradient.

    Raises:
        ValueError: A completion has not `new` tokens.
    """
    lengths = {len(ids) for ids in completions}
    if lengths - {new}:
        raise ValueError(f"completions of {sorted(lengths)} tokens, not of {new}")
    return [sum(i % 2 == 0 for i in ids) / new for ids in completions]
