"""Whether two answers are the same.

Structure (lists, sets, tuples, intervals, units, names) is compared by rules; the numbers and
expressions in it are left to a `Rationals`, whose subclass in `precise.py` decides more. Verdicts
are True, False, or None where the scalars leave it open.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

from prefixrl_jax.tasks.grading.parse import is_clock_or_date, is_no_number, read
from prefixrl_jax.tasks.grading.rational import (
    CONSTANTS,
    PlainNumbers,
    Rationals,
    constant,
    symbols,
)
from prefixrl_jax.tasks.grading.realsets import NoRealSetError, equal_sets, real_set
from prefixrl_jax.tasks.grading.tokens import QUOTE, tokenize
from prefixrl_jax.tasks.grading.values import (
    Based,
    Call,
    Chain,
    Interval,
    Matrix,
    Member,
    Named,
    Number,
    Product,
    Quantity,
    Ratio,
    Reals,
    Scalar,
    Set,
    Several,
    Sum,
    Symbol,
    Text,
    Tuple,
    Union,
    UnreadableError,
    Value,
)

RATIONALS = Rationals()
PLAIN_NUMBERS = PlainNumbers()
_REAL_SETS = (Interval, Union, Member, Reals, Chain)
MOST_COMPARISONS = 20_000  # of values in one pair of answers
# What a fault in the reading or comparing of one answer may raise; none may end a training run.
_FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
failures: Counter[str] = Counter()  # answers that raised one, by its kind
_LOG = logging.getLogger(__name__)
_FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def same(gold: str, answer: str, scalars: Rationals = RATIONALS) -> bool | None:
    """Return whether an answer is the gold answer.

    Args:
        gold: the gold answer.
        answer: the answer that a response states.
        scalars: decides on numbers and expressions.

    Returns:
        None if the structures agree and the scalars leave it open.
    """
    try:
        return _same(gold, answer, scalars)
    except UnreadableError:
        return False
    except _FAULTS as error:
        kind = type(error).__name__
        failures[kind] += 1
        _LOG.warning("%s in grading, number %d of its kind: wrong", kind, failures[kind])
        return False


def _same(gold: str, answer: str, scalars: Rationals) -> bool | None:
    if is_no_number(answer) or is_no_number(gold):
        return False
    tokens = tokenize(answer)
    if not tokens:
        return False
    if tokens == tokenize(gold):
        return True
    if is_clock_or_date(gold) or is_clock_or_date(answer):
        return _as_written(gold) == _as_written(answer)
    return _Comparison(scalars).equal(read(gold), read(answer))


def _as_written(text: str) -> str:
    """Return a text without spaces and full stops, in small letters."""
    tokens = (token.removeprefix(QUOTE) for token in tokenize(text))
    return re.sub(r"[\s.]", "", " ".join(tokens)).lower()


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    """Return False if any verdict is False, else None if any is None, else True."""
    result: bool | None = True
    for verdict in verdicts:
        if verdict is False:
            return False
        result = result if verdict else None
    return result


def _any(verdicts: Iterable[bool | None]) -> bool | None:
    """Return True if any verdict is True, else None if any is None, else False."""
    result: bool | None = False
    for verdict in verdicts:
        if verdict is True:
            return True
        result = None if verdict is None else result
    return result


class _Comparison:
    """The rules; `equal` is the entry for any two values, of which the first is gold."""

    def __init__(self, scalars: Rationals):
        self._scalars = scalars
        self._comparisons = 0

    def equal(self, gold: Value, answer: Value) -> bool | None:
        """Return whether two values are the same."""
        # Sets compare every member with every other, at each level of nesting.
        self._comparisons += 1
        if self._comparisons > MOST_COMPARISONS:
            raise UnreadableError("the comparison takes too many steps")
        if isinstance(gold, Named) or isinstance(answer, Named):
            return self._named(gold, answer)
        if isinstance(gold, Quantity) or isinstance(answer, Quantity):
            return self._quantities(gold, answer)
        if isinstance(gold, Scalar) and isinstance(answer, Scalar):
            return self._scalars.equal(gold, answer)
        for kinds, rule in self._rules():
            if isinstance(gold, kinds) and isinstance(answer, kinds):
                return rule(gold, answer)
        if isinstance(gold, _REAL_SETS) or isinstance(answer, _REAL_SETS):
            return self._real_sets(gold, answer)
        return self._singletons(gold, answer)

    def _rules(self) -> list[tuple[tuple[type, ...], Callable[..., bool | None]]]:
        return [
            ((Text, Based, Reals), lambda a, b: a == b),
            ((Tuple,), lambda a, b: self._in_order(a.items, b.items)),
            ((Ratio,), lambda a, b: self._in_order(a.items, b.items)),
            ((Set,), self._sets),
            ((Several, Set), self._collections),
            ((Chain,), self._chains),
            ((Matrix,), self._matrices),
        ]

    def _in_order(self, gold: Sequence[Value], answer: Sequence[Value]) -> bool | None:
        if len(gold) != len(answer):
            return False
        return _all(self.equal(a, b) for a, b in zip(gold, answer, strict=True))

    def _named(self, gold: Value, answer: Value) -> bool | None:
        """Compare the values of names; two names must be the same."""
        if isinstance(gold, Named) and isinstance(answer, Named):
            if gold.name != answer.name:
                return False
            return self.equal(gold.value, answer.value)
        # y = 2x + 3 and 2x - y + 3 = 0 are one equation, but 2x = 10 does not state that x = 5.
        if isinstance(answer, Chain) and _states_number(gold):
            return False
        if isinstance(gold, Chain) or isinstance(answer, Chain):
            left, right = _as_equation(gold), _as_equation(answer)
            return left is not None and right is not None and self._chains(left, right)
        for value in (gold, answer):
            if isinstance(value, Several) and any(isinstance(v, Named) for v in value.items):
                return False  # k = 45, n = 2 and n = 45, 2
        gold = gold.value if isinstance(gold, Named) else gold
        answer = answer.value if isinstance(answer, Named) else answer
        return self.equal(gold, answer)

    def _quantities(self, gold: Value, answer: Value) -> bool | None:
        """Compare values with units: either may leave its unit out, but two must be the same."""
        gold_value, gold_unit = _value_and_unit(gold)
        value, unit = _value_and_unit(answer)
        if gold_unit and unit and gold_unit != unit:
            return False
        if (gold_unit == "%") == (unit == "%"):
            return self.equal(gold_value, value)
        if gold_unit == "%":
            return self._percent(gold_value, value, may_lack_sign=True)
        return self._percent(value, gold_value, may_lack_sign=False)

    def _percent(self, percent: Value, other: Value, may_lack_sign: bool) -> bool | None:
        """Compare p % with a number: p / 100, or p, from 1, if an answer may lack the sign."""
        if not isinstance(percent, Scalar) or not isinstance(other, Scalar):
            return False
        number = constant(percent)
        if number is None:
            return None if self._scalars.equal(percent, other) is None else False
        readings = [number / 100]
        if may_lack_sign and abs(number) >= 1:
            readings.append(number)
        return _any(self._scalars.equal(Number(reading), other) for reading in readings)

    def _sets(self, gold: Set, answer: Set) -> bool | None:
        """Compare sets: every member of each must be a member of the other."""
        pairs = ((gold, answer), (answer, gold))
        return _all(
            _any(self.equal(item, other) for other in theirs.items)
            for ours, theirs in pairs
            for item in ours.items
        )

    def _collections(self, gold: Several | Set, answer: Several | Set) -> bool | None:
        """Compare values side by side: in any order, unless only one side has names for them."""
        if len(gold.items) != len(answer.items):
            return False
        alternatives = {item.alternative for item in (gold, answer) if isinstance(item, Several)}
        if len(alternatives) == 2 and _has_chain(gold.items):
            return False  # x > 2 and x < 5 is no x > 2 or x < 5
        sides = [_distinct_names(gold.items), _distinct_names(answer.items)]
        if sides[0] != sides[1]:
            return self._in_order(gold.items, answer.items)
        if isinstance(gold, Several) and gold.alternative and _has_chain(gold.items):
            return self._real_sets(gold, answer)
        left = list(answer.items)
        verdict: bool | None = True
        for item in gold.items:
            verdicts = [self.equal(item, other) for other in left]
            if True in verdicts:
                left.pop(verdicts.index(True))
            elif None in verdicts:
                verdict = None
            else:
                return False
        return verdict

    def _chains(self, gold: Chain, answer: Chain) -> bool | None:
        """Compare relations: term by term, as sets of real numbers, or by their difference."""
        pairs = [(answer.terms, answer.operators), _reversed(answer)]
        verdicts = [
            self._in_order(gold.terms, terms)
            for terms, operators in pairs
            if gold.operators == operators
        ]
        if True in verdicts:
            return True
        as_sets = self._real_sets(gold, answer)
        if as_sets is not False:
            return as_sets
        several_operators = len(gold.operators) != 1 or len(answer.operators) != 1
        if several_operators or _is_solved(gold):
            return _any(verdicts)
        return _any([*verdicts, self._proportional(gold, answer)])

    def _proportional(self, gold: Chain, answer: Chain) -> bool:
        """Return whether one equation or inequality is a multiple of the other."""
        ratio = self._scalars.ratio(_difference(gold), _difference(answer))
        if ratio is None:
            return False
        if gold.operators[0] in ("=", r"\ne"):
            return gold.operators == answer.operators
        operator = answer.operators[0]
        return gold.operators[0] == (operator if ratio > 0 else _FLIPPED.get(operator))

    def _real_sets(self, gold: Value, answer: Value) -> bool | None:
        try:
            left, right = real_set(gold, self._scalars), real_set(answer, self._scalars)
        except NoRealSetError as error:
            return None if error.undecided else False
        return equal_sets(left, right, self._scalars)

    def _matrices(self, gold: Matrix, answer: Matrix) -> bool | None:
        if len(gold.rows) != len(answer.rows):
            return False
        rows = zip(gold.rows, answer.rows, strict=True)
        return _all(self._in_order(a, b) for a, b in rows)

    def _singletons(self, gold: Value, answer: Value) -> bool | None:
        r"""Compare \{5\} with 5."""
        for one, other in ((gold, answer), (answer, gold)):
            if isinstance(one, Set) and len(one.items) == 1 and isinstance(other, Scalar):
                return self.equal(one.items[0], other)
        return False


def _value_and_unit(value: Value) -> tuple[Value, str]:
    return (value.value, value.unit) if isinstance(value, Quantity) else (value, "")


def _is_number(tree: Scalar) -> bool:
    return symbols(tree) <= CONSTANTS


def _states_number(value: Value) -> bool:
    if not isinstance(value, Named) or not isinstance(value.value, Scalar):
        return False
    return _is_number(value.value)


def _is_solved(chain: Chain) -> bool:
    """Return whether all sides of a relation but one are numbers, and that one is a letter.

    An answer must then be solved too: 2x - 1 < 5 may be the question that x < 3 answers.
    """
    others = [term for term in chain.terms if not _is_number(term)]
    return not others or (len(others) == 1 and isinstance(others[0], Symbol | Call))


def _as_equation(value: Value) -> Chain | None:
    """Return a relation, or a letter with a value as an equation; None for anything else."""
    if isinstance(value, Named) and len(value.name) == 1 and isinstance(value.value, Scalar):
        return Chain((Symbol(value.name[0]), value.value), ("=",))
    return value if isinstance(value, Chain) else None


def _distinct_names(items: Sequence[Value]) -> bool:
    names = [item.name for item in items if isinstance(item, Named)]
    return len(names) == len(items) and len(set(names)) == len(names)


def _has_chain(items: Sequence[Value]) -> bool:
    return any(isinstance(item, Chain | Member | Interval) for item in items)


def _reversed(chain: Chain) -> tuple[tuple[Scalar, ...], tuple[str, ...]]:
    operators = tuple(_FLIPPED.get(operator, operator) for operator in chain.operators[::-1])
    return chain.terms[::-1], operators


def _difference(chain: Chain) -> Scalar:
    left, right = chain.terms
    return Sum((left, Product((Number(Fraction(-1)), right))))
