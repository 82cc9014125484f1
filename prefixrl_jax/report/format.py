"""Numbers and texts as a report writes them. What is not a finite number is a dash."""

from __future__ import annotations

from typing import Any

from prefixrl_jax.flops import si_unit
from prefixrl_jax.report.plotting import finite
from prefixrl_jax.runtime.streams import printable

SHOWN_CHARACTERS = 4000  # of a problem, prefix or continuation
ABSENT = "–"
# Of a duration: seconds of the larger and of the smaller unit, and their names.
_UNITS = ((86400, 3600, ("d", "h")), (3600, 60, ("h", "min")), (60, 1, ("min", "s")))


def amount(value: Any, unit: str) -> str:
    """Write three digits, an SI prefix and the unit: 1.234e12, "FLOP" -> "1.23 TFLOP"."""
    if not finite(value):
        return ABSENT
    scale, prefix = si_unit(abs(value))
    scaled = abs(value) / scale
    # The bounds are where a number rounds up to one more digit before the point.
    if value == 0 or scaled >= 99.95:
        decimals = 0
    elif scaled >= 9.995:
        decimals = 1
    else:
        decimals = 2
    return f"{value / scale:.{decimals}f}\u00a0{prefix}{unit}"


def percent(value: Any) -> str:
    """Write a fraction in percent: 0.6 -> "60.0 %", and below 1 % two digits: "0.042 %"."""
    if not finite(value):
        return ABSENT
    if 0 < abs(value) < 0.00995:
        return f"{100 * value:.2g}\u00a0%"
    return f"{100 * value:.1f}\u00a0%"


def interval(bounds: Any) -> str:
    """Write a pair of fractions: [0.1, 0.2] -> "10.0 % to 20.0 %"."""
    is_pair = isinstance(bounds, list | tuple) and len(bounds) == 2
    if not is_pair or not all(map(finite, bounds)):
        return ABSENT
    return f"{percent(bounds[0])} to {percent(bounds[1])}"


def seconds(value: Any) -> str:
    """Write a duration in its two largest units, or one below a minute: 200 -> "3 min 20 s"."""
    if not finite(value):
        return ABSENT
    if value < 0.9995:
        return f"{1000 * value:.3g}\u00a0ms"
    if value < 59.95:
        return f"{value:.1f}\u00a0s"
    larger, smaller, names = next(unit for unit in _UNITS if round(value) >= unit[0])
    whole, rest = divmod(round(value / smaller), larger // smaller)
    return f"{whole}\u00a0{names[0]} {rest}\u00a0{names[1]}"


def count(value: Any) -> str:
    """Write a whole number: 12345 -> "12,345"."""
    return f"{value:,.0f}" if finite(value) else ABSENT


def number(value: Any) -> str:
    """Write four digits that count: 3.14159 -> "3.142"."""
    return f"{value:,.4g}" if finite(value) else ABSENT


def visible(text: Any) -> str:
    """Return `text` with control characters shown and not obeyed, cut after SHOWN_CHARACTERS."""
    text = "" if text is None else str(text)
    hidden = len(text) - SHOWN_CHARACTERS
    if hidden > 0:
        text = f"{text[:SHOWN_CHARACTERS]} … [{hidden:,} more characters]"
    return printable("".join(map(_symbol, text)))


def _symbol(character: str) -> str:
    is_control = ord(character) < 32 and character not in "\n\t"
    # Unicode has a picture of each C0 control character from U+2400 on.
    return chr(0x2400 + ord(character)) if is_control else character
