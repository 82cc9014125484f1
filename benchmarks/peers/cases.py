"""What is timed: shapes that this package and its peers are all given.

Every environment reads it: the standard library alone.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Case:
    """`contexts` distinct prompts of `context` tokens, each continued `group` times by `new`
    tokens.
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


# Qwen2 shapes: hidden size, layers, heads, key/value heads, intermediate size, vocabulary.
SHAPES = {"0.83M": (128, 4, 4, 2, 384, 320), "5.8M": (256, 6, 8, 4, 768, 4096)}

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
PROBE = list(range(3, 35))  # the ids whose logits are compared


def prompts(case: Case, vocabulary: int) -> list[list[int]]:
    """Random token ids of every context, the same in every environment; the first four ids are
    special.
    """
    draw = random.Random(0)
    return [
        [draw.randrange(4, vocabulary) for _ in range(case.context)] for _ in range(case.contexts)
    ]


def rewards(completions: Sequence[Sequence[int]], new: int) -> list[float]:
    """Of every completion the share of even token ids: cheap, and different within a group, so that
    there is a gradient.

    Raises ValueError unless each has `new` tokens.
    """
    if any(len(ids) != new for ids in completions):
        raise ValueError(
            f"completions of {sorted({len(ids) for ids in completions})} tokens, not of {new}"
        )
    return [sum(i % 2 == 0 for i in ids) / new for ids in completions]
