r"""Names on the left of an equation: x, f(x), AB, (x, y), \angle ABC, \frac{NO}{BO}, "the area"."""

from __future__ import annotations

from collections.abc import Sequence

from prefixrl_jax.tasks.grading.numerals import is_number
from prefixrl_jax.tasks.grading.tokens import QUOTE
from prefixrl_jax.tasks.grading.vocabulary import CHANGING_WORDS, GREEK, NAME_MARKS


def is_name(tokens: Sequence[str]) -> bool:
    """Return whether tokens name a quantity, rather than compute one.

    A name holds no sign of arithmetic but a quotient, and numbers only as subscripts and arguments.
    """
    if not tokens or len(tokens) > 24:
        return False
    if not _may_name(tokens):
        return False
    letters = False
    for position, token in enumerate(tokens):
        if token.isalpha() or token in GREEK or token.startswith(QUOTE):
            letters = True
        elif is_number(token):
            before = "".join(tokens[max(position - 2, 0) : position])
            if not letters or not before.endswith(("_", "(", ",", "_{")):
                return False
        elif token not in NAME_MARKS:
            return False
    return letters


def _may_name(tokens: Sequence[str]) -> bool:
    """Return whether no word denies what follows (not x), and |...| is a length, as in |AB|."""
    words = {word for token in tokens for word in token.removeprefix(QUOTE).split()}
    words = {word.lower() for word in words if not word.isupper()}
    if words & (CHANGING_WORDS - {"is", "sum", "product", "ratio", "average", "mean", "median"}):
        return False
    letters = [token for token in tokens if token.isalpha()]
    is_length = all(len(token) == 2 and token.isupper() for token in letters)
    return "|" not in tokens or is_length
