"""Comparison of numbers and expressions by high precision, for processes that may be killed.

Two constants count as equal if they agree to a precision far beyond what expressions of their size
can differ by: it grows with the digits and the magnitudes of all numbers in them, so that 1 - e^-k
is not 1 + e^-k, whatever k. Expressions with variables must agree at many points of either sign and
of several scales, with either sign of their roots; if they count something, they must be equal by
rewriting (`counted.py`). What needs too many bits, or is not
analytic in its variables, is not decided, and earns nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from prefixrl_jax.tasks.grading.compare import same
from prefixrl_jax.tasks.grading.counted import has_variables, is_counted, with_letters
from prefixrl_jax.tasks.grading.evaluation import Evaluation, Reading, context
from prefixrl_jax.tasks.grading.rational import (
    CONSTANTS,
    Point,
    Rationals,
    UndecidedError,
    canonical,
    children,
    constant,
    symbols,
    text_seed,
)
from prefixrl_jax.tasks.grading.values import Call, Number, Power, Scalar

FEWEST_BITS = 512
MOST_BITS = 1 << 18  # of working precision
MOST_BITS_AT_A_POINT = 1 << 15
POINTS_PER_SCALE = 6
MOST_SCALES = 10
ENOUGH = 8  # points at which two expressions must be compared
# \log without a base is the natural one for some and the decimal one for others: what is equal
# must be so by both.
LOGARITHM_BASES = ("e", "10")
MOST_ROOTS = 4  # even roots of variables in a comparison


def decide(gold: str, answer: str) -> bool:
    """Return whether an answer is the gold answer, by all means there are."""
    return same(gold, answer, Reals()) is True


class Reals(Rationals):
    """Comparisons of scalars by exact arithmetic, and by high precision where that decides not."""

    def equal(self, a: Scalar, b: Scalar) -> bool | None:
        """Return whether two scalars are equal, for all values of their variables."""
        exact = super().equal(a, b)
        if exact is not None:
            return exact
        names = sorted((symbols(a) | symbols(b)) - CONSTANTS)
        if not names:
            return _agree(a, b, {})
        if is_counted(a) or is_counted(b):
            # Points say too little about these.
            return Rationals().equal(with_letters(a), with_letters(b)) or None
        roots = _even_roots(a, b)
        if max(roots.values(), default=0) >= MOST_ROOTS:
            return None
        # An identity holds with either sign of each root; |x| = \sqrt{x^2} is no x.
        choices = [frozenset[int](), *(frozenset([root]) for root in set(roots.values()))]
        agreements = 0
        for point in _points(names, a, b):
            agree = _agree_for_signs(a, b, point, roots, choices)
            if agree is False:
                return False
            agreements += agree is True
        return True if agreements >= ENOUGH else None

    def less(self, a: Scalar, b: Scalar) -> bool | None:
        """Return whether one real number is less than another."""
        exact = super().less(a, b)
        if exact is not None or (symbols(a) | symbols(b)) - CONSTANTS:
            return exact
        orders = {_less_by(a, b, base) for base in LOGARITHM_BASES}
        return orders.pop() if len(orders) == 1 else None


def _less_by(a: Scalar, b: Scalar, base: str) -> bool | None:
    """Return whether one number is less than another with one base of logarithms."""
    try:
        x, y, tolerance = _values(a, b, Reading({}, base))
    except UndecidedError:
        return None
    if context.im(x) or context.im(y) or abs(x - y) <= tolerance:
        return None
    return bool(x < y)


def _agree(
    a: Scalar, b: Scalar, point: Point, negative: frozenset[Scalar] = frozenset()
) -> bool | None:
    """Return whether two scalars agree at a point; None if either has no value there."""
    verdicts = []
    bases = LOGARITHM_BASES if _has_logarithm(a) or _has_logarithm(b) else LOGARITHM_BASES[:1]
    for base in bases:
        try:
            x, y, tolerance = _values(a, b, Reading(point, base, negative))
        except UndecidedError:
            return None
        verdicts.append(bool(abs(x - y) <= tolerance))
    return all(verdicts)


def _agree_for_signs(
    a: Scalar,
    b: Scalar,
    point: Point,
    roots: dict[Scalar, int],
    choices: Sequence[frozenset[int]],
) -> bool | None:
    """Return whether two scalars agree at a point for each choice of signs of their roots."""
    verdicts = [
        _agree(a, b, point, frozenset(root for root, kind in roots.items() if kind in choice))
        for choice in choices
    ]
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _even_roots(*trees: Scalar) -> dict[Scalar, int]:
    """Return the even roots of variables, numbered; those of x and of 4 x have one number."""
    roots: dict[Scalar, int] = {}
    kinds: list[tuple[Scalar, int]] = []
    stack = list(trees)
    while stack:
        tree = stack.pop()
        stack += children(tree)
        exponent = constant(tree.exponent) if isinstance(tree, Power) else None
        if exponent is None or exponent.denominator % 2 or not has_variables(tree):
            continue
        assert isinstance(tree, Power)
        kind = (canonical(tree.base), exponent.denominator)
        equal = (i for i, other in enumerate(kinds) if _one_root(kind, other))
        roots[tree] = next(equal, len(kinds))
        if roots[tree] == len(kinds):
            kinds.append(kind)
    return roots


def _one_root(a: tuple[Scalar, int], b: tuple[Scalar, int]) -> bool:
    if a == b or a[1] != b[1]:
        return a == b
    ratio = Rationals().ratio(a[0], b[0])
    return ratio is not None and ratio > 0


def _has_logarithm(tree: Scalar) -> bool:
    is_logarithm = isinstance(tree, Call) and tree.name == r"\log"
    return is_logarithm or any(map(_has_logarithm, children(tree)))


def _values(a: Scalar, b: Scalar, reading: Reading) -> tuple[Any, Any, Any]:
    """Return the values of two scalars, and how far apart equal ones may be computed.

    The first pass, at low precision, measures the magnitudes of everything that is computed. If the
    second one finds larger ones, something cancels that only more precision would show.
    """
    context.prec = 64
    measure = Evaluation(reading)
    for tree in (a, b):
        measure.value(tree)
    bits = FEWEST_BITS + 4 * measure.bits * (1 + measure.roots)
    if bits > (MOST_BITS_AT_A_POINT if reading.point else MOST_BITS):
        raise UndecidedError("the comparison takes too much precision")
    context.prec = bits
    evaluation = Evaluation(reading)
    x, y = (evaluation.value(tree) for tree in (a, b))
    if 4 * evaluation.bits * (1 + evaluation.roots) > bits:
        raise UndecidedError("values that cancel")
    return x, y, context.ldexp(1 + abs(x) + abs(y), -bits // 2)


def _points(names: list[str], *trees: Scalar) -> list[Point]:
    """Return points of either sign, at the scales of the numbers in the expressions and beyond."""
    scales = {Fraction(1, 8), Fraction(1), Fraction(16), Fraction(10) ** 4, Fraction(10) ** 9}
    for tree in trees:
        scales |= {abs(number) for number in _numbers(tree) if number}
    chosen = sorted(scales)[:MOST_SCALES]
    seed = text_seed(*trees)
    return [
        {name: scale * _draw(f"{name} {scale_number} {i} {seed}") for name in names}
        for scale_number, scale in enumerate(chosen)
        for i in range(POINTS_PER_SCALE)
    ]


def _numbers(tree: Scalar) -> set[Fraction]:
    if isinstance(tree, Number):
        return {tree.value}
    return set().union(*(_numbers(child) for child in children(tree)))


def _draw(seed: str) -> Fraction:
    """Return a number between -4 and 4."""
    digest = hashlib.blake2b(seed.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    denominator = 2**29 + 1 + int.from_bytes(digest[4:], "big") // 2**8
    return Fraction(int.from_bytes(digest[:4], "big") - 2**31, denominator)
