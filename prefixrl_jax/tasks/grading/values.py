"""Values that an answer may state, as a tree of small immutable nodes.

Scalars (`Number` to `Call`) are expressions; the other nodes give them a structure. `parse.py`
makes the trees, `compare.py` compares them.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction


class UnreadableError(ValueError):
    """A text has no reading as a value, or more than one; it is compared as written."""


@dataclasses.dataclass(frozen=True)
class Number:
    """An exact rational number."""

    value: Fraction


@dataclasses.dataclass(frozen=True)
class Symbol:
    r"""A letter, perhaps with a subscript, or a constant: "\\pi", "e", "i", "\\infty"."""

    name: str


@dataclasses.dataclass(frozen=True)
class Sum:
    """The sum of its terms."""

    terms: tuple[Scalar, ...]


@dataclasses.dataclass(frozen=True)
class Product:
    """The product of its factors."""

    factors: tuple[Scalar, ...]


@dataclasses.dataclass(frozen=True)
class Power:
    """A base to an exponent; roots and quotients are powers too."""

    base: Scalar
    exponent: Scalar


@dataclasses.dataclass(frozen=True)
class Call:
    """A named function of its arguments."""

    name: str
    arguments: tuple[Scalar, ...]


Scalar = Number | Symbol | Sum | Product | Power | Call


@dataclasses.dataclass(frozen=True)
class Text:
    """Words, in small letters."""

    words: str


@dataclasses.dataclass(frozen=True)
class Based:
    """Digits in a base other than ten, as they are written."""

    digits: str
    base: str


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A value with a unit ("cm^2", "dollar", "%"). An empty unit does not occur."""

    value: Value
    unit: str


@dataclasses.dataclass(frozen=True)
class Named:
    """A value and the name it is stated under: x = 5, f(x) = 2x."""

    name: tuple[str, ...]
    value: Value


@dataclasses.dataclass(frozen=True)
class Chain:
    """Scalars with relations between them: 0 < x < 1 has two operators."""

    terms: tuple[Scalar, ...]
    operators: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Member:
    """A variable and the set it lies in."""

    variable: tuple[str, ...]
    values: Value


@dataclasses.dataclass(frozen=True)
class Several:
    """Values side by side, without brackets; `alternative` for those joined by "or"."""

    items: tuple[Value, ...]
    alternative: bool = False


@dataclasses.dataclass(frozen=True)
class Tuple:
    """Values in round brackets, whose order counts; two may be an open interval."""

    items: tuple[Value, ...]


@dataclasses.dataclass(frozen=True)
class Set:
    """Values in curly brackets: neither order nor repetition counts."""

    items: tuple[Value, ...]


@dataclasses.dataclass(frozen=True)
class Interval:
    """The real numbers between two ends."""

    low: Scalar
    high: Scalar
    low_closed: bool
    high_closed: bool


@dataclasses.dataclass(frozen=True)
class Union:
    """The union of intervals, sets and inequalities; `removed` are taken out of it."""

    parts: tuple[Value, ...]
    removed: tuple[Value, ...] = ()


@dataclasses.dataclass(frozen=True)
class Reals:
    """All real numbers."""


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Numbers with colons between them, as in 7:32 or 12:00."""

    items: tuple[Scalar, ...]


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Rows of scalars."""

    rows: tuple[tuple[Scalar, ...], ...]


Value = (
    Scalar
    | Text
    | Based
    | Quantity
    | Named
    | Chain
    | Member
    | Several
    | Tuple
    | Set
    | Interval
    | Union
    | Reals
    | Ratio
    | Matrix
)
