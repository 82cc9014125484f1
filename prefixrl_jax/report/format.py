"""Numbers and texts as people read them in the report."""

from __future__ import annotations

from typing import Any

from prefixrl_jax.report import run_figures as figures
from prefixrl_jax.report.run_figures import finite

SHOWN_CHARACTERS = 4000  # of a problem, prefix or continuation
ABSENT = "–"
# seconds, seconds, names
_UNITS = ((86400, 3600, ("d", "h")), (3600, 60, ("h", "min")), (60, 1, ("min", "s")))


def amount(value: Any, unit: str) -> str:
    """Three digits and an SI prefix: 1.234e12, "FLOP" -> "1.23 TFLOP"."""
    if not finite(value):
        return ABSENT
    scale, prefix = figures.si_unit(abs(value))
    digits = (
        0 if not value or abs(value) / scale >= 99.95 else 1 if abs(value) / scale >= 9.995 else 2
    )
    return f"{value / scale:.{digits}f}\u00a0{prefix}{unit}"


def percent(value: Any) -> str:
    """0.6 -> "60.0 %"; below 1 % two digits that count: 0.00042 -> "0.042 %"."""
    if not finite(value):
        return ABSENT
    return (
        f"{100 * value:.1f}\u00a0%" if not 0 < abs(value) < 0.00995 else f"{100 * value:.2g}\u00a0%"
    )


def interval(pair: Any) -> str:
    """[0.1, 0.2] -> "10.0 % to 20.0 %"."""
    known = isinstance(pair, list | tuple) and len(pair) == 2 and all(map(finite, pair))
    return f"{percent(pair[0])} to {percent(pair[1])}" if known else ABSENT


def seconds(value: Any) -> str:
    """200 -> "3 min 20 s"; the two largest units, and below a minute one number."""
    if not finite(value):
        return ABSENT
    if value < 0.9995:
        return f"{1000 * value:.3g}\u00a0ms"
    if value < 59.95:
        return f"{value:.1f}\u00a0s"
    larger, smaller, names = next(unit for unit in _UNITS if round(value) >= unit[0])
    big, small = divmod(round(value / smaller), larger // smaller)
    return f"{big}\u00a0{names[0]} {small}\u00a0{names[1]}"


def count(value: Any) -> str:
    """12345 -> "12,345"."""
    return f"{value:,.0f}" if finite(value) else ABSENT


def number(value: Any) -> str:
    """Four digits that count: 3.14159 -> "3.142"."""
    return f"{value:,.4g}" if finite(value) else ABSENT


def visible(text: Any) -> str:
    """`text` with control characters made visible and, past SHOWN_CHARACTERS, a count of what is
    not shown.
    """
    text = "" if text is None else str(text)
    cut = len(text) - SHOWN_CHARACTERS
    shown = text if cut <= 0 else f"{text[:SHOWN_CHARACTERS]} … [{cut:,} more characters]"
    return "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in shown)
