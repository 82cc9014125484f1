"""Seeds of 64 bits for JAX and for numpy: no two of them draw the same.

Both libraries take a seed for one 32-bit word where they can: `jax.random.key` drops the high word
unless 64-bit types are enabled, and numpy joins a list of seeds to one list of words. Seeds below
2**32 draw here what they draw there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import jax


def seed_words(seed: int) -> tuple[int, int]:
    """Return the high and the low 32 bits of a seed; raise ValueError if it has more than 64."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed}: a whole number from 0 to 2**64 - 1 is accepted")
    return divmod(int(seed), 2**32)


def seed_key(seed: int) -> jax.Array:
    """Return the PRNG key of a seed."""
    import jax  # tasks, whose processes do without it, use the generators below

    words = jax.numpy.array(seed_words(seed), jax.numpy.uint32)
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def generator(seed: int, *numbers: int) -> np.random.Generator:
    """Return the numpy generator of a seed and further numbers, each below 2**32.

    For numpy, 2**32 + 5 followed by 0 is 5 followed by 1 and 0. So the high word of a seed comes
    last here: no two seeds share a generator for as many numbers.
    """
    high, low = seed_words(seed)
    return np.random.default_rng([low, *numbers, high] if high else [low, *numbers])
