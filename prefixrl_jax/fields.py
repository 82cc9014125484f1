"""Declarations of configuration fields: a default, a type, and a range.

prefixrl_jax/config.py declares every field of a run with one of the classes below. A value that a
field does not accept is refused by one sentence: its dotted name, the value, and what is accepted.
"""

from __future__ import annotations

import abc
import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

INT32_MAX = 2**31 - 1
FLOAT32_MAX = 3e38  # rounded down; what is larger is infinite on the device
TEXT_MAX = 100_000  # characters
PATH_MAX = 4096  # bytes, the limit of Linux
PATH_PART_MAX = 255  # bytes between two slashes, likewise
SHOWN_MAX = 100  # characters of a value in an error message


@dataclasses.dataclass(frozen=True)
class Field(abc.ABC):
    """A field's default, and what it accepts.

    Attributes:
        default: the value where no configuration sets another.
    """

    default: Any

    @abc.abstractmethod
    def accepts(self, value: Any) -> bool:
        """Return whether the field may have this value, whatever type it has."""

    @property
    @abc.abstractmethod
    def expected(self) -> str:
        """What is accepted, as an error message says it."""

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError if the value is not accepted; `name` is the field's dotted name."""
        if not self.accepts(value):
            raise ValueError(f"{name}={shown(value)}: {self.expected}")


@dataclasses.dataclass(frozen=True)
class Flag(Field):
    """True or False; 0 and 1 are numbers."""

    expected = "True or False is expected"

    def accepts(self, value: Any) -> bool:
        """Return whether the value is a bool."""
        return isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Whole(Field):
    """A whole number; True and False are none.

    Attributes:
        least, most: the range, ends included.
        also: values outside the range that have a meaning of their own.
        why: the reason for an end of the range that is not obvious.
    """

    least: int = 0
    most: int = INT32_MAX
    also: tuple[int, ...] = ()
    why: str = ""

    def accepts(self, value: Any) -> bool:
        """Return whether the value is an int of the range."""
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return value in self.also or self.least <= value <= self.most

    @property
    def expected(self) -> str:
        """The range in words."""
        numbers = f"a whole number from {self.least:,} to {self.most:,}"
        return _alternatives(self.also, numbers, self.why)


@dataclasses.dataclass(frozen=True)
class Number(Field):
    """A real number, as an int or a float; NaN and infinities are none.

    Attributes:
        least, most: the range, ends included.
        above, below: an end of the range that is excluded, in place of `least` or `most`.
        also: values outside the range that have a meaning of their own.
        why: the reason for an end of the range that is not obvious.
    """

    least: float = 0
    most: float = FLOAT32_MAX
    above: float | None = None
    below: float | None = None
    also: tuple[float, ...] = ()
    why: str = ""

    def accepts(self, value: Any) -> bool:
        """Return whether the value is a number of the range."""
        if not is_number(value):
            return False
        is_high_enough = self.least <= value if self.above is None else self.above < value
        is_low_enough = value <= self.most if self.below is None else value < self.below
        return value in self.also or (is_high_enough and is_low_enough)

    @property
    def expected(self) -> str:
        """The range in words."""
        low = f"at least {self.least:g}" if self.above is None else f"above {self.above:g}"
        high = f"at most {self.most:g}" if self.below is None else f"below {self.below:g}"
        return _alternatives(self.also, f"a number {low} and {high}", self.why)


@dataclasses.dataclass(frozen=True)
class Choice(Field):
    """One of a few words.

    Attributes:
        options: the words.
        removed: words of earlier versions, which are refused as such.
    """

    options: tuple[str, ...]
    removed: tuple[str, ...] = ()

    def accepts(self, value: Any) -> bool:
        """Return whether the value is one of the words."""
        return isinstance(value, str) and value in self.options

    @property
    def expected(self) -> str:
        """The words."""
        return f"one of {', '.join(self.options)}"

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError if the value is none of the words, or is one no longer."""
        if isinstance(value, str) and value in self.removed:
            raise ValueError(f"{name}={value!r}: removed after version 0.1.0; {self.expected}")
        super().check(name, value)


@dataclasses.dataclass(frozen=True)
class Text(Field):
    """A text that a file can hold: without NUL and without half of a surrogate pair.

    Attributes:
        form: a regular expression that the whole text must match.
        expected: what is accepted, as an error message says it.
    """

    form: str = ".*"
    expected: str = f"a text of at most {TEXT_MAX:,} characters is expected"

    def accepts(self, value: Any) -> bool:
        """Return whether the value is such a text."""
        if not _is_writable(value) or len(value) > TEXT_MAX:
            return False
        return re.fullmatch(self.form, value, re.DOTALL) is not None


@dataclasses.dataclass(frozen=True)
class Location(Field):
    """A path, or the name of a model or of a data set; it may be empty."""

    expected = (
        f"a path or a name is expected, of at most {PATH_MAX:,} bytes and {PATH_PART_MAX} between"
        " two slashes"
    )

    def accepts(self, value: Any) -> bool:
        """Return whether the file system can look the value up."""
        if not _is_writable(value) or len(value.encode()) > PATH_MAX:
            return False
        return all(len(part.encode()) <= PATH_PART_MAX for part in value.split("/"))


@dataclasses.dataclass(frozen=True)
class Interval(Field):
    """Two numbers in order, as a tuple or a list.

    Attributes:
        least, most: the range of both; None: there is no bound.
        open_ends: whether `least` and `most` themselves are excluded.
        may_be_point: whether both numbers may be equal.
    """

    least: float | None = None
    most: float | None = None
    open_ends: bool = False
    may_be_point: bool = True

    def accepts(self, value: Any) -> bool:
        """Return whether the value is a pair of such numbers."""
        if not isinstance(value, tuple | list) or len(value) != 2 or not all(map(is_number, value)):
            return False
        low, high = value
        is_ordered = low <= high if self.may_be_point else low < high
        return is_ordered and self._is_inside(low) and self._is_inside(high)

    def _is_inside(self, end: float) -> bool:
        least = -FLOAT32_MAX if self.least is None else self.least
        most = FLOAT32_MAX if self.most is None else self.most
        return least < end < most if self.open_ends else least <= end <= most

    @property
    def expected(self) -> str:
        """The order and the range as one chain of signs."""
        between = "<" if self.open_ends else "<="
        order = "<=" if self.may_be_point else "<"
        low = "" if self.least is None else f"{self.least:g} {between} "
        high = "" if self.most is None else f" {between} {self.most:g}"
        return f"two numbers are expected, with {low}low {order} high{high}"


@dataclasses.dataclass(frozen=True)
class Several(Field):
    """One or more values of the same kind, as a tuple or a list.

    Attributes:
        item: what each of them has to be; the default of this declaration means nothing.
        most: how many there may be.
    """

    item: Field
    most: int = 1000

    def accepts(self, value: Any) -> bool:
        """Return whether the value is a sequence of accepted items."""
        if not isinstance(value, tuple | list) or not 1 <= len(value) <= self.most:
            return False
        return all(map(self.item.accepts, value))

    @property
    def expected(self) -> str:
        """The count, and what each item has to be."""
        each = self.item.expected.removesuffix(" is expected")
        return f"1 to {self.most:,} values are expected, each {each}"


def is_number(value: Any) -> bool:
    """Return whether a value is an int or a float, and finite in float32; a bool is neither."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    # NaN is in no range. An int is compared as it is: one that no float can hold is refused too.
    return -FLOAT32_MAX <= value <= FLOAT32_MAX


def shown(value: Any) -> str:
    """Return a value as an error message shows it: on one line, cut if it is long."""
    if isinstance(value, list):  # as which JSON gives tuples back
        value = tuple(value)
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, a deep nest of tuples
        return f"({type(value).__name__}, too long to be shown)"
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."


def check_values(fields: Mapping[str, Field], values: Mapping[str, Any]) -> None:
    """Raise ValueError for the first value that its field does not accept.

    Args:
        fields: declarations by dotted name.
        values: by dotted name; one without a declaration is refused.
    """
    for name, value in values.items():
        if name not in fields:
            raise ValueError(f"there is no field {shown(name)}; {hint(name, fields)}")
        fields[name].check(name, value)


def hint(name: str, names: Iterable[str]) -> str:
    """Return which names are near a misspelt one, or where all of them stand."""
    near = difflib.get_close_matches(name[:SHOWN_MAX], list(names), 3)
    return f"near it: {', '.join(near)}" if near else "all are named in prefixrl_jax/config.py"


def _alternatives(also: Iterable[float], numbers: str, why: str) -> str:
    others = "".join(f"{value} or " for value in also)
    reason = f" ({why})" if why else ""
    return f"{others}{numbers} is expected{reason}"


def _is_writable(value: Any) -> bool:
    """Return whether a value is a text that UTF-8 can encode and C can hold."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
