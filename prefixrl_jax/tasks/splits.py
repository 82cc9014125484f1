"""Splits of generated problems: a hash decides which split a problem belongs to."""

from __future__ import annotations

import hashlib
from typing import Any

# In the order of the hash's residues, so that splits are disjoint by construction.
SPLITS = ("train", "heldout", "base")


def split_of_family(family: Any) -> str:
    """Return the split that all problems of a family belong to.

    Args:
        family: the features that problems of two splits must not share (for example the numbers of
            a sum, in whatever order). Its `repr` must be the same in every process.
    """
    digest = hashlib.blake2b(repr(family).encode(), digest_size=1).digest()
    return SPLITS[digest[0] % len(SPLITS)]
