"""The values of scalars at a point, in floating point of any precision."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import mpmath

from prefixrl_jax.tasks.grading.rational import CONSTANTS, Point, UndecidedError, symbols
from prefixrl_jax.tasks.grading.values import Call, Number, Power, Product, Scalar, Sum, Symbol

LARGEST_POWER = 1 << 17  # bits of magnitude of a value
LARGEST_FACTORIAL = 1 << 14

context = mpmath.mp.clone()


@dataclasses.dataclass(frozen=True)
class Reading:
    r"""What an expression is evaluated with.

    Attributes:
        point: a value for each variable.
        base: of \log without one, "e" or "10".
        negative: the roots whose negative value is taken.
    """

    point: Point
    base: str
    negative: frozenset[Scalar] = frozenset()


class Evaluation:
    """Evaluates scalars at a point, and measures the numbers met on the way.

    Attributes:
        bits: digits of all numbers, and magnitudes of all values, in bits.
        roots: how many roots were taken.
    """

    def __init__(self, reading: Reading):
        self._reading = reading
        self._point = reading.point
        self.bits = 0
        self.roots = 0

    def value(self, tree: Scalar) -> Any:
        """Return the value of a scalar; UndecidedError if it has none or too large a one."""
        value = self._compute(tree)
        if not context.isfinite(value):
            raise UndecidedError("no finite value")
        magnitude = abs(context.mag(value)) if value else 0
        if magnitude > LARGEST_POWER:
            raise UndecidedError("the value is too large or too small")
        self.bits += int(magnitude) + 2
        return value

    def _compute(self, tree: Scalar) -> Any:
        if isinstance(tree, Number):
            return self._rational(tree.value)
        if isinstance(tree, Symbol):
            return self._symbol(tree.name)
        if isinstance(tree, Sum):
            return context.fsum(self.value(term) for term in tree.terms)
        if isinstance(tree, Product):
            return context.fprod(self.value(factor) for factor in tree.factors)
        if isinstance(tree, Power):
            return self._power(tree)
        return self._call(tree)

    def _rational(self, number: Fraction) -> Any:
        self.bits += number.numerator.bit_length() + number.denominator.bit_length()
        return context.mpf(number.numerator) / number.denominator

    def _symbol(self, name: str) -> Any:
        constants = {"\\pi": context.pi, "e": context.e, "i": context.j}
        if name in constants:
            return +constants[name]
        if name not in self._point:
            raise UndecidedError(f"{name} has no value")
        return self._rational(self._point[name])

    def _power(self, tree: Power) -> Any:
        base, exponent = self.value(tree.base), self.value(tree.exponent)
        if not base:
            if context.im(exponent) or exponent <= 0:
                raise UndecidedError("0 has no such power")
            return context.zero
        magnitude = abs(exponent) * (abs(context.mag(base)) + 1)
        if magnitude > LARGEST_POWER:
            raise UndecidedError("the power is too large")
        degree = _odd_degree(tree.exponent)
        self.roots += tree.exponent != Number(Fraction(-1)) and not context.isint(exponent)
        if degree and not context.im(base) and base < 0:
            return -context.power(-base, exponent)  # the real root
        value = context.power(base, exponent)
        return -value if tree in self._reading.negative else value

    def _call(self, tree: Call) -> Any:
        arguments = [self.value(argument) for argument in tree.arguments]
        if tree.name in _PIECEWISE and symbols(tree) <= CONSTANTS:
            return _PIECEWISE[tree.name](*arguments)
        if tree.name not in _ANALYTIC:
            raise UndecidedError(f"{tree.name} is unknown, or not analytic")
        if any(context.mag(argument) > 40 for argument in arguments if argument):
            raise UndecidedError("the argument of a function is too large")
        if tree.name == r"\log":
            base = +context.e if self._reading.base == "e" else context.mpf(10)
            arguments.append(base)
        try:
            return _ANALYTIC[tree.name](*arguments)
        except (ValueError, ZeroDivisionError) as error:
            raise UndecidedError(str(error)) from error


def _odd_degree(exponent: Scalar) -> bool:
    """Return whether an exponent is that of an odd root, as it is written: 1/3."""
    if not isinstance(exponent, Power) or not isinstance(exponent.base, Number):
        return False
    degree = exponent.base.value
    return exponent.exponent == Number(Fraction(-1)) and degree.denominator == 1 and degree % 2 == 1


def _logarithm(argument: Any, base: Any) -> Any:
    return context.log(argument) / context.log(base)


def _factorial(n: Any) -> Any:
    return context.mpf(math.factorial(_whole(n)))


def _binomial(n: Any, k: Any) -> Any:
    return context.mpf(math.comb(_whole(n), _whole(k)))


def _whole(n: Any) -> int:
    """Return a number as an integer, if its factorial is one that is computed."""
    if not context.isint(n) or not 0 <= n <= LARGEST_FACTORIAL:
        raise UndecidedError("no factorial that is computed")
    return int(n)


def _rounded(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return floor or ceil with a check that its argument is not next to an integer."""

    def call(x: Any) -> Any:
        near = context.nint(context.re(x))
        if context.im(x) or abs(x - near) < context.ldexp(1, -context.prec // 4):
            raise UndecidedError("which side of an integer a number lies on is not decided")
        return function(x)

    return call


def _real(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if any(context.im(argument) for argument in arguments):
            raise UndecidedError("complex numbers have no order")
        return function(*arguments)

    return call


# Functions with jumps or corners: agreement at points says nothing, so only of constants.
_PIECEWISE: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "floor": _rounded(context.floor),
    "ceil": _rounded(context.ceil),
    r"\max": _real(max),
    r"\min": _real(min),
}
_ANALYTIC: dict[str, Callable[..., Any]] = {
    r"\sin": context.sin,
    r"\cos": context.cos,
    r"\tan": context.tan,
    r"\cot": context.cot,
    r"\sec": context.sec,
    r"\csc": context.csc,
    r"\asin": context.asin,
    r"\acos": context.acos,
    r"\atan": context.atan,
    r"\sinh": context.sinh,
    r"\cosh": context.cosh,
    r"\tanh": context.tanh,
    r"\exp": context.exp,
    r"\ln": context.log,
    r"\log": _logarithm,
    "log": _logarithm,
    "factorial": _factorial,
    "binomial": _binomial,
}
