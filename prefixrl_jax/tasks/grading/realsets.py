"""Sets of real numbers: intervals, unions, inequalities and points brought to one form.

The form is a list of segments in ascending order that do not touch. Whether two ends are equal or
which is less is asked of a `Rationals`, which may leave it undecided (None).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fractions import Fraction

from prefixrl_jax.tasks.grading.rational import CONSTANTS, Rationals, symbols
from prefixrl_jax.tasks.grading.values import (
    Call,
    Chain,
    Interval,
    Member,
    Number,
    Product,
    Reals,
    Scalar,
    Set,
    Several,
    Symbol,
    Tuple,
    Union,
    Value,
)

INFINITY = Symbol("\\infty")


class NoRealSetError(ValueError):
    """A value is no set of real numbers; `undecided` if the order of its ends is not known."""

    undecided = False


class UndecidedOrderError(NoRealSetError):
    """The order of two ends is not decided."""

    undecided = True


@dataclasses.dataclass(frozen=True)
class Segment:
    """The numbers between two ends; None is minus or plus infinity."""

    low: Scalar | None
    high: Scalar | None
    low_closed: bool
    high_closed: bool


@dataclasses.dataclass(frozen=True)
class RealSet:
    """Segments in ascending order, and the variable that lies in them, if it has a name."""

    segments: tuple[Segment, ...]
    variable: tuple[str, ...] = ()


_LINE = Segment(None, None, False, False)


def real_set(value: Value, scalars: Rationals) -> RealSet:
    """Return a value as a set of real numbers.

    Raises:
        NoRealSetError: the value is none, or the order of its ends is not decided.
    """
    reader = _Reader(scalars)
    segments = reader.segments(value)
    if len(reader.variables) > 1:
        raise NoRealSetError("several variables")
    variable = next(iter(reader.variables), ())
    return RealSet(tuple(reader.joined(segments)), variable)


def equal_sets(gold: RealSet, answer: RealSet, scalars: Rationals) -> bool | None:
    """Return whether two sets are equal; None if that is not decided."""
    if gold.variable and answer.variable and gold.variable != answer.variable:
        return False
    if len(gold.segments) != len(answer.segments):
        return False
    verdict: bool | None = True
    for a, b in zip(gold.segments, answer.segments, strict=True):
        if (a.low_closed, a.high_closed) != (b.low_closed, b.high_closed):
            return False
        for end, other in ((a.low, b.low), (a.high, b.high)):
            if end is None or other is None:
                equal: bool | None = end is other
            else:
                equal = scalars.equal(end, other)
            if equal is False:
                return False
            verdict = verdict if equal else None
    return verdict


class _Reader:
    """Collects the segments of a value, and the variables named in it."""

    def __init__(self, scalars: Rationals):
        self._scalars = scalars
        self.variables: set[tuple[str, ...]] = set()

    def segments(self, value: Value) -> list[Segment]:
        """Return the segments of a value, in any order."""
        if isinstance(value, Tuple) and len(value.items) == 2:
            low, high = (_scalar(item) for item in value.items)
            value = Interval(low, high, low_closed=False, high_closed=False)
        if isinstance(value, Interval):
            ends = value.low, value.high
            return [self._segment(*ends, value.low_closed, value.high_closed)]
        if isinstance(value, Set):
            points = [_scalar(item) for item in value.items]
            return [self._segment(point, point, True, True) for point in points]
        if isinstance(value, Member):
            self.variables.add(value.variable)
            return self.segments(value.values)
        if isinstance(value, Chain):
            return self._of_chain(value)
        return self._of_parts(value)

    def _of_parts(self, value: Value) -> list[Segment]:
        if isinstance(value, Reals):
            return [_LINE]
        if isinstance(value, Several) and value.alternative:
            value = Union(value.items)
        if not isinstance(value, Union):
            raise NoRealSetError("no set of real numbers")
        segments = [segment for part in value.parts for segment in self.segments(part)]
        for removed in value.removed:
            for hole in self.segments(removed):
                if hole.low is None or hole.low != hole.high:
                    raise NoRealSetError("only points are taken out")
                segments = [part for s in segments for part in self._without(s, hole.low)]
        return segments

    def _segment(self, low: Scalar, high: Scalar, low_closed: bool, high_closed: bool) -> Segment:
        """Return a segment, after a check of the order of its ends."""
        low_end = None if _sign_of_infinity(low) == -1 else low
        high_end = None if _sign_of_infinity(high) == 1 else high
        if low_end is None or high_end is None:
            if any(end is not None and _sign_of_infinity(end) for end in (low_end, high_end)):
                raise NoRealSetError("infinity on the wrong side")
        elif low != high and not self._less(low, high):
            raise NoRealSetError("the ends are not in order")
        elif low == high and not (low_closed and high_closed):
            raise NoRealSetError("an open interval of one point")
        return Segment(
            low_end,
            high_end,
            low_closed and low_end is not None,
            high_closed and high_end is not None,
        )

    def _less(self, low: Scalar, high: Scalar) -> bool:
        less = self._scalars.less(low, high)
        if less is None:
            raise UndecidedOrderError("the order of two ends is not decided")
        return less

    def _of_chain(self, chain: Chain) -> list[Segment]:
        """Return the segments of an inequality in one variable: x > 3, 0 < x <= 1, x != 3."""
        variables = [term for term in chain.terms if not _is_constant(term)]
        if len(variables) != 1:
            raise NoRealSetError("no inequality in one variable")
        self.variables.add(_name(variables[0]))
        place = chain.terms.index(variables[0])
        if chain.operators == (r"\ne",):
            point = chain.terms[1 - place]
            if _sign_of_infinity(point):
                raise NoRealSetError("infinity is no point")
            return self._without(_LINE, point)
        segment = _LINE
        for position, operator in enumerate(chain.operators):
            if position not in (place - 1, place):
                raise NoRealSetError("a chain with more numbers than ends")
            bound = chain.terms[position if position < place else position + 1]
            segment = self._cut(segment, bound, operator, variable_first=position == place)
        if segment.low is not None and segment.high is not None:
            return [
                self._segment(segment.low, segment.high, segment.low_closed, segment.high_closed)
            ]
        return [segment]

    def _cut(self, segment: Segment, bound: Scalar, operator: str, variable_first: bool) -> Segment:
        """Return a segment with one end from an inequality."""
        if operator not in ("<", ">", r"\le", r"\ge"):
            raise NoRealSetError("no inequality")
        closed = operator in (r"\le", r"\ge")
        bounds_above = (operator in ("<", r"\le")) == variable_first
        infinity = _sign_of_infinity(bound)
        if infinity:
            if infinity != (1 if bounds_above else -1):
                raise NoRealSetError("infinity on the wrong side")
            return segment  # -oo < x says nothing
        if bounds_above:
            return dataclasses.replace(segment, high=bound, high_closed=closed)
        return dataclasses.replace(segment, low=bound, low_closed=closed)

    def _without(self, segment: Segment, point: Scalar) -> list[Segment]:
        """Return a segment without one of its points."""
        above = segment.low is None or self._less(segment.low, point)
        below = segment.high is None or self._less(point, segment.high)
        if not (above and below):
            raise NoRealSetError("the point that is taken out does not lie inside")
        return [
            dataclasses.replace(segment, high=point, high_closed=False),
            dataclasses.replace(segment, low=point, low_closed=False),
        ]

    def joined(self, segments: Sequence[Segment]) -> list[Segment]:
        """Return segments in ascending order, those that overlap or touch joined."""
        ordered: list[Segment] = []
        for segment in segments:
            place = sum(self._begins_before(other, segment) for other in ordered)
            ordered.insert(place, segment)
        result = ordered[:1]
        for segment in ordered[1:]:
            last = result[-1]
            if self._touch(last, segment):
                result[-1] = self._hull(last, segment)
            else:
                result.append(segment)
        return result

    def _begins_before(self, a: Segment, b: Segment) -> bool:
        if a.low is None or b.low is None:
            return a.low is None
        return a.low == b.low or self._less(a.low, b.low)

    def _touch(self, a: Segment, b: Segment) -> bool:
        """Return whether b, which begins no earlier than a, begins inside a or at its end."""
        if a.high is None or b.low is None:
            return True
        if a.high == b.low:
            return a.high_closed or b.low_closed
        return self._less(b.low, a.high)

    def _hull(self, a: Segment, b: Segment) -> Segment:
        low_closed = a.low_closed or (a.low == b.low and b.low_closed)
        if a.high is None or b.high is None:
            return Segment(a.low, None, low_closed, False)
        if a.high == b.high:
            return Segment(a.low, a.high, low_closed, a.high_closed or b.high_closed)
        longer = b if self._less(a.high, b.high) else a
        return Segment(a.low, longer.high, low_closed, longer.high_closed)


def _name(tree: Scalar) -> tuple[str, ...]:
    """Return the tokens of a variable: x, or f(x)."""
    if isinstance(tree, Symbol):
        return (tree.name,)
    if isinstance(tree, Call) and len(tree.arguments) == 1 and len(tree.name) == 1:
        return (tree.name, "(", *_name(tree.arguments[0]), ")")
    raise NoRealSetError("no variable")


def _scalar(value: Value) -> Scalar:
    if not isinstance(value, Scalar):
        raise NoRealSetError("an end that is no number")
    return value


def _is_constant(tree: Scalar) -> bool:
    return symbols(tree) <= CONSTANTS - {"i"}


def _sign_of_infinity(tree: Scalar) -> int:
    """Return 1 for infinity, -1 for minus infinity, else 0."""
    if tree == INFINITY:
        return 1
    minus = Number(Fraction(-1))
    return -1 if tree == Product((minus, INFINITY)) else 0
