"""What is timed: shapes that this package and its peers are all given. Imports nothing, since every environment reads it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Case:
    """`contexts` distinct prompts of `context` tokens, each continued `group` times by `new` tokens."""

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
    "5.8M 128+128, 32 contexts": Case("5.8M", 32, 1, 128, 128),
}
STEP = {
    "0.83M 64+128, 32 contexts": Case("0.83M", 32, 1, 64, 128),
    "5.8M 128+128, 32 contexts": Case("5.8M", 32, 1, 128, 128),
    "0.83M 115+77, 4 contexts x 8": Case("0.83M", 4, 8, 115, 77),
    "5.8M 154+102, 4 contexts x 8": Case("5.8M", 4, 8, 154, 102),
}
LEARNING_RATE = 1e-5
