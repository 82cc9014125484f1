"""Exact arithmetic on expressions: rational numbers, and identities of rational functions.

An identity in variables is tested at points with 31 random bits a variable. Two different
rational functions of degree d agree at all of them with a chance of at most (d / 2^31)^POINTS
(Schwartz-Zippel).
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from fractions import Fraction

from prefixrl_jax.tasks.grading.values import (
    Call,
    Number,
    Power,
    Product,
    Scalar,
    Sum,
    Symbol,
)

POINTS = 4
MOST_BITS = 1 << 16  # of a numerator or denominator that is computed
LARGEST_FACTORIAL = 4000
# Symbols that stand for one number, about which an inequality at a random point says nothing.
CONSTANTS = frozenset(["\\pi", "e", "i", "\\infty"])

Point = dict[str, Fraction]


class UndecidedError(ArithmeticError):
    """A value is not rational, not defined, or too large to compute."""


class Rationals:
    """Comparisons of scalars by exact arithmetic; None is returned for what it cannot decide."""

    def equal(self, a: Scalar, b: Scalar) -> bool | None:
        """Return whether two scalars are equal, for all values of their variables."""
        if canonical(a) == canonical(b):
            return True
        try:
            agree = all(evaluate(a, point) == evaluate(b, point) for point in points(a, b))
        except UndecidedError:
            return None
        if not agree and CONSTANTS & (symbols(a) | symbols(b)):
            return None
        return agree

    def less(self, a: Scalar, b: Scalar) -> bool | None:
        """Return whether one number is less than another."""
        low, high = constant(a), constant(b)
        return None if low is None or high is None else low < high

    def ratio(self, a: Scalar, b: Scalar) -> Fraction | None:
        """Return the rational number c with a = c b for all values of the variables, else None."""
        try:
            values = [(evaluate(a, point), evaluate(b, point)) for point in points(a, b)]
        except UndecidedError:
            return None
        (a0, b0), *others = values
        if not a0 or not b0 or any(x * b0 != y * a0 for x, y in others):
            return None
        return a0 / b0


class PlainNumbers(Rationals):
    """Comparisons of numbers as they are written out: 24, 2.5, 5/2, 2 1/2, but not 6 * 4."""

    def equal(self, a: Scalar, b: Scalar) -> bool | None:
        """Return whether both are numbers, and equal."""
        if not is_plain(a) or not is_plain(b):
            return canonical(a) == canonical(b)
        return constant(a) == constant(b)


def is_plain(tree: Scalar) -> bool:
    """Return whether a scalar is written as a number or as a quotient of two numbers."""
    tree = canonical(tree)
    if not isinstance(tree, Product):
        return isinstance(tree, Number)
    numbers = [factor for factor in tree.factors if isinstance(factor, Number)]
    quotients = [
        factor
        for factor in tree.factors
        if isinstance(factor, Power)
        and isinstance(factor.base, Number)
        and factor.exponent == Number(Fraction(-1))
    ]
    signs = [number for number in numbers if number.value == -1]
    return (
        len(quotients) <= 1
        and len(numbers) + len(quotients) == len(tree.factors)
        and (len(numbers) - len(signs) <= 1)
    )


def constant(tree: Scalar) -> Fraction | None:
    """Return the value of a scalar that is a rational number, else None."""
    try:
        return evaluate(tree, {})
    except UndecidedError:
        return None


@functools.lru_cache(maxsize=4096)
def symbols(tree: Scalar) -> frozenset[str]:
    """Return the names of all symbols in a scalar."""
    if isinstance(tree, Symbol):
        return frozenset([tree.name])
    return frozenset().union(*(symbols(child) for child in children(tree)))


def children(tree: Scalar) -> tuple[Scalar, ...]:
    """Return the operands of a scalar."""
    if isinstance(tree, Sum):
        return tree.terms
    if isinstance(tree, Product):
        return tree.factors
    if isinstance(tree, Power):
        return (tree.base, tree.exponent)
    return tree.arguments if isinstance(tree, Call) else ()


@functools.lru_cache(maxsize=4096)
def canonical(tree: Scalar) -> Scalar:
    """Return a scalar with nested sums and products flattened, and their operands in order."""
    if isinstance(tree, Sum):
        return Sum(_flattened(tree.terms, Sum))
    if isinstance(tree, Product):
        return Product(_flattened(tree.factors, Product))
    if isinstance(tree, Power):
        return Power(canonical(tree.base), canonical(tree.exponent))
    if isinstance(tree, Call):
        return Call(tree.name, tuple(canonical(child) for child in tree.arguments))
    return tree


def _flattened(operands: tuple[Scalar, ...], kind: type[Sum] | type[Product]) -> tuple[Scalar, ...]:
    flat: list[Scalar] = []
    for operand in operands:
        operand = canonical(operand)
        flat += children(operand) if isinstance(operand, kind) else (operand,)
    return tuple(sorted(flat, key=sort_key))


@functools.lru_cache(maxsize=4096)
def sort_key(tree: Scalar) -> str:
    """Return a text that differs for different scalars, in hexadecimal digits without a limit."""
    if isinstance(tree, Number):
        return f"{tree.value.numerator:x}/{tree.value.denominator:x}"
    if isinstance(tree, Symbol):
        return f"{tree.name!r}"
    name = tree.name if isinstance(tree, Call) else type(tree).__name__
    return f"{name}({', '.join(map(sort_key, children(tree)))})"


def points(*trees: Scalar) -> list[Point]:
    """Return points with a value for each variable; one empty point if there is none.

    They are drawn from the text of the expressions, so that none can be made to vanish at them.
    """
    names = sorted(frozenset().union(*(symbols(tree) for tree in trees)))
    if not names:
        return [{}]
    seed = text_seed(*trees)
    return [{name: Fraction(_draw(f"{name} {i} {seed}")) for name in names} for i in range(POINTS)]


def text_seed(*trees: Scalar) -> str:
    """Return a digest of expressions, in any order."""
    text = " ".join(sorted(map(sort_key, trees)))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _draw(seed: str) -> int:
    return (
        int.from_bytes(
            hashlib.blake2b(seed.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big"
        )
        >> 1
    )


def evaluate(tree: Scalar, point: Point) -> Fraction:
    """Return the value of a scalar at a point.

    Raises:
        UndecidedError: the value is not rational, not defined, too large, or of a function that is
            no rational function of its variables.
    """
    if isinstance(tree, Number):
        return tree.value
    if isinstance(tree, Symbol):
        if tree.name not in point or tree.name == "\\infty":
            raise UndecidedError(f"{tree.name} has no value")
        return point[tree.name]
    if isinstance(tree, Sum):
        return _checked(sum((evaluate(term, point) for term in tree.terms), Fraction(0)))
    if isinstance(tree, Product):
        product = Fraction(1)
        for factor in tree.factors:
            product = _checked(product * evaluate(factor, point))
        return product
    if isinstance(tree, Power):
        return _power(evaluate(tree.base, point), evaluate(tree.exponent, point), tree)
    return _call(tree)


def _checked(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise UndecidedError("the number is too large")
    return value


def _power(base: Fraction, exponent: Fraction, tree: Power) -> Fraction:
    if symbols(tree.exponent):
        raise UndecidedError("an exponent with a variable")  # at whole points (-1)^{2x} is 1
    if exponent.denominator != 1:
        if symbols(tree):
            raise UndecidedError("a root of a variable")
        base, exponent = _root(base, exponent.denominator), Fraction(exponent.numerator)
    if base == 0 and exponent <= 0:
        raise UndecidedError("0 has no such power")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if base not in (0, 1, -1) and bits * abs(exponent) > MOST_BITS:
        raise UndecidedError("the power is too large")
    if base in (0, 1, -1):
        return base ** (int(exponent) % 2) if base == -1 else base
    return base ** int(exponent)


def _root(value: Fraction, degree: int) -> Fraction:
    """Return the exact root of a nonnegative number."""
    if value < 0 or degree > 64:
        raise UndecidedError("no such root")
    roots = [_integer_root(n, degree) for n in (value.numerator, value.denominator)]
    return Fraction(*roots)


def _integer_root(number: int, degree: int) -> int:
    if degree == 2 or number < 2:
        root = math.isqrt(number)
    else:
        # Newton's iteration from above.
        root = 1 << -(-number.bit_length() // degree)
        while True:
            smaller = ((degree - 1) * root + number // root ** (degree - 1)) // degree
            if smaller >= root:
                break
            root = smaller
    if root**degree != number:
        raise UndecidedError("the root is not rational")
    return root


def _call(tree: Call) -> Fraction:
    """Return the value of a function of numbers."""
    if symbols(tree) or tree.name not in _FUNCTIONS:
        raise UndecidedError(f"{tree.name} of a variable, or unknown")
    return _FUNCTIONS[tree.name](*(evaluate(argument, {}) for argument in tree.arguments))


def _whole(value: Fraction, largest: int = LARGEST_FACTORIAL) -> int:
    if value.denominator != 1 or not 0 <= value <= largest:
        raise UndecidedError("no whole number of a size that is computed")
    return int(value)


def _binomial(n: Fraction, k: Fraction) -> Fraction:
    return _checked(Fraction(math.comb(_whole(n), _whole(k))))


def _of_integers(function: Callable[..., int]) -> Callable[..., Fraction]:
    def call(*values: Fraction) -> Fraction:
        if any(value.denominator != 1 for value in values):
            raise UndecidedError("an integer is expected")
        return Fraction(function(*(int(value) for value in values)))

    return call


_FUNCTIONS: dict[str, Callable[..., Fraction]] = {
    "factorial": lambda n: _checked(Fraction(math.factorial(_whole(n)))),
    "binomial": _binomial,
    "abs": abs,
    "floor": lambda x: Fraction(math.floor(x)),
    "ceil": lambda x: Fraction(math.ceil(x)),
    r"\max": max,
    r"\min": min,
    r"\gcd": _of_integers(math.gcd),
    r"\lcm": _of_integers(math.lcm),
}
