"""Single fields of a JSON object that somebody else wrote: their type, their range, their refusal.

`file` is the name of the file in messages. A field that is null is refused where a value belongs:
a default in its place would be another model than its author's.
"""

from __future__ import annotations

import math
import numbers
import reprlib
from typing import Any, NoReturn

_REPR = reprlib.Repr()
_REPR.maxlevel = 3
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = 10
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def is_integer(value: object) -> bool:
    """Return whether a value is an integer; bools, which Python counts as integers, are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_positive_number(value: object) -> bool:
    """Return whether a value is a number above 0 that is finite as a float; bools are none."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return 0 < float(value) < math.inf
    except OverflowError:  # an integer beyond all floats
        return False


def shown(value: object) -> str:
    """Return a value as an error message shows it: its repr, cut where it is long or deep."""
    try:
        return _REPR.repr(value)
    except ValueError:  # an integer of more digits than Python converts to text
        return f"<{type(value).__name__} too long to show>"


def is_encodable(text: str) -> bool:
    """Return whether UTF-8 can encode a text: one without lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse(file: str, name: str, value: object, accepted: str) -> NoReturn:
    """Raise the ValueError for a field."""
    raise ValueError(f"{file}: {name}={shown(value)}: {accepted} is accepted")


def integer(file: str, fields: dict[str, Any], name: str, largest: int) -> int:
    """Return a field that holds an integer from 1 to `largest`; there is no default."""
    value = fields.get(name)
    if not is_integer(value) or not 1 <= int(value) <= largest:  # type: ignore[arg-type]
        refuse(file, name, value, f"an integer from 1 to {largest}")
    return int(value)  # type: ignore[arg-type]


def number(
    file: str, fields: dict[str, Any], name: str, default: float, bounds: tuple[float, float]
) -> float:
    """Return a field that holds a number within the bounds, or the default if there is no field."""
    value = fields.get(name, default)
    least, most = bounds
    if not is_positive_number(value) or not least <= float(value) <= most:
        refuse(file, name, value, f"a number from {least:g} to {most:g}")
    return float(value)


def boolean(file: str, fields: dict[str, Any], name: str) -> bool:
    """Return a field that is true or false; an absent one is false."""
    value = fields.get(name, False)
    if not isinstance(value, bool):
        refuse(file, name, value, "true or false")
    return value


def texts(file: str, fields: dict[str, Any], name: str) -> list[str]:
    """Return a field that is a list of texts; null or an absent one is empty."""
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        refuse(file, name, value, "a list of texts")
    return value
