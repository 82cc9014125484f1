r"""Names on the left of an equation: x, f(x), AB, (x, y), \angle ABC, \frac{NO}{BO}, "the area"."""

from __future__ import annotations

from collections.abc import Sequence

from prefixrl_jax.tasks.grading.numerals import is_number
from prefixrl_jax.tasks.grading.tokens import QUOTE
from prefixrl_jax.tasks.grading.vocabulary import GREEK, NAME_MARKS


def is_name(tokens: Sequence[str]) -> bool:
    """Return whether tokens name a quantity, rather than compute one.

    A name holds no sign of arithmetic but a quotient, and numbers only as subscripts and arguments.
    """
    if not tokens or len(tokens) > 24:
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
