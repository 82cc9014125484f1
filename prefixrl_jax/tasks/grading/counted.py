r"""Powers with variables in the exponent, factorials and binomials, brought to one form.

Points say little about expressions that count something: n! and n! + \binom{n}{300} agree at all
small ones. So `with_letters` puts a letter for 2^n, n! and each function and root, with
2^{n+1} = 2 * 2^n and (n+1)! = (n+1) n!, and what is left is a rational function of the letters.
Expressions that are equal then are equal; of others nothing is known.
"""

from __future__ import annotations

import functools
from fractions import Fraction

from prefixrl_jax.tasks.grading.rational import (
    CONSTANTS,
    canonical,
    children,
    constant,
    sort_key,
    symbols,
)
from prefixrl_jax.tasks.grading.values import Call, Number, Power, Product, Scalar, Sum, Symbol

LARGEST_SHIFT = 30  # of (n + 30)! and in \binom{n}{30}
LARGEST_PRIME = 1000  # by which the base of a power is divided
_PIECEWISE = frozenset(["factorial", "binomial", "abs", "floor", "ceil", r"\max", r"\min"])
_ONE = Number(Fraction(1))

Term = tuple[Fraction, Scalar]  # a number and what it multiplies


def is_counted(tree: Scalar) -> bool:
    """Return whether an expression has a factorial, a jump or an exponent with a variable in it."""
    if has_variables(tree):
        if isinstance(tree, Call) and (tree.name in _PIECEWISE or tree.name.isalpha()):
            return tree.name != "log"
        if isinstance(tree, Power) and constant(tree.exponent) is None:
            return True
    return any(map(is_counted, children(tree)))


def has_variables(tree: Scalar) -> bool:
    """Return whether letters other than constants are in an expression."""
    return bool(symbols(tree) - CONSTANTS)


@functools.lru_cache(maxsize=1024)
def with_letters(tree: Scalar) -> Scalar:
    """Return an expression with a letter for everything that is no rational function."""
    if isinstance(tree, Sum):
        return Sum(tuple(map(with_letters, tree.terms)))
    if isinstance(tree, Product):
        return Product(tuple(map(with_letters, tree.factors)))
    if isinstance(tree, Power):
        exponent = constant(tree.exponent)
        if exponent is None:
            return _power(tree)
        is_whole = exponent.denominator == 1
        return Power(with_letters(tree.base), tree.exponent) if is_whole else _letter(tree)
    return _call(tree) if isinstance(tree, Call) and has_variables(tree) else tree


def _call(tree: Call) -> Scalar:
    if tree.name == "factorial":
        return _factorial(tree.arguments[0])
    return _binomial(tree) if tree.name == "binomial" else _letter(tree)


def _letter(*trees: Scalar) -> Symbol:
    return Symbol("letter for " + " ".join(sort_key(canonical(tree)) for tree in trees))


def _terms(tree: Scalar) -> list[Term]:
    """Return the terms of a sum, each as a number times a product."""
    number = constant(tree)
    if number is not None:
        return [(number, _ONE)]
    if isinstance(tree, Sum):
        return [term for child in tree.terms for term in _terms(child)]
    if not isinstance(tree, Product):
        return [(Fraction(1), tree)]
    coefficient = Fraction(1)
    others: list[Scalar] = []
    for factor in tree.factors:
        number = constant(factor)
        if number is None:
            others.append(factor)
        else:
            coefficient *= number
    if len(others) == 1:
        return [(coefficient * number, rest) for number, rest in _terms(others[0])]
    return [(coefficient, canonical(Product(tuple(others))))]


def _power(tree: Power) -> Scalar:
    """Return 12^{2n+1} as 12 a^4 b^2 with letters for 2^n and 3^n."""
    factors: list[Scalar] = []
    for base, multiplicity in _bases(tree.base):
        for coefficient, rest in _terms(tree.exponent):
            number = coefficient * multiplicity
            if rest == _ONE:
                part = Power(base, Number(number))
                factors.append(part if number.denominator == 1 else _letter(part))
                continue
            root = Product((Number(Fraction(1, number.denominator)), rest))
            factors.append(Power(_letter(base, root), Number(Fraction(number.numerator))))
    return Product(tuple(factors))


def _bases(base: Scalar) -> list[tuple[Scalar, int]]:
    """Return the prime factors of a rational base with their multiplicities, or another base."""
    number = constant(base)
    if number is None or number == 0:
        return [(base, 1)]
    factors: dict[int, int] = {}
    if number < 0:
        factors[-1] = 1
    for part, sign in ((abs(number.numerator), 1), (number.denominator, -1)):
        for prime in range(2, LARGEST_PRIME):
            while part % prime == 0:
                factors[prime] = factors.get(prime, 0) + sign
                part //= prime
        if part > 1:
            factors[part] = factors.get(part, 0) + sign
    return [(Number(Fraction(factor)), count) for factor, count in factors.items()]


def _factorial(argument: Scalar) -> Scalar:
    """Return (n + 2)! as (n + 2)(n + 1) n!."""
    terms = _terms(argument)
    shift = sum((number for number, rest in terms if rest == _ONE), Fraction(0))
    others = tuple(
        canonical(Product((Number(number), rest))) for number, rest in terms if rest != _ONE
    )
    if shift.denominator != 1 or abs(shift) > LARGEST_SHIFT:
        return _letter(Call("factorial", (argument,)))
    n = Sum(others)
    steps = range(1, int(shift) + 1) if shift > 0 else range(int(shift) + 1, 1)
    exponent = Number(Fraction(1 if shift > 0 else -1))
    factors = [Power(Sum((with_letters(n), Number(Fraction(k)))), exponent) for k in steps]
    return Product((_letter(Call("factorial", (n,))), *factors))


def _binomial(tree: Call) -> Scalar:
    n, k = tree.arguments
    below = constant(k)
    if below is None or below.denominator != 1 or not 0 <= below <= LARGEST_SHIFT:
        return _letter(tree)
    factors: list[Scalar] = []
    for i in range(int(below)):
        factors += [Sum((with_letters(n), Number(Fraction(-i)))), Number(Fraction(1, i + 1))]
    return Product(tuple(factors)) if factors else _ONE
