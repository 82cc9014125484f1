"""Units behind a number and currencies around it: which words are one, and which change the number.

A unit says what is counted. Words that would change the number (5 or 6, 3 dozen, 2 squared) are
no units: an answer with them is compared as written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from prefixrl_jax.tasks.grading.numerals import is_number
from prefixrl_jax.tasks.grading.tokens import QUOTE
from prefixrl_jax.tasks.grading.values import UnreadableError
from prefixrl_jax.tasks.grading.vocabulary import (
    ANSWER_WORDS,
    CHANGING_ENDINGS,
    CHANGING_STEMS,
    CHANGING_WORDS,
    FUNCTIONS,
    NOUNS_IN_TH,
    SHORT_UNITS,
    UNIT_FILLERS,
    UNIT_LETTERS,
)

CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen", "¢": "cent"}
SCALES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
_SYNONYMS = {
    "percent": "%",
    "pct": "%",
    "percentage": "%",
    "°": "degree",
    "deg": "degree",
    "centimeter": "cm",
    "centimetre": "cm",
    "meter": "m",
    "metre": "m",
    "millimeter": "mm",
    "millimetre": "mm",
    "kilometer": "km",
    "kilometre": "km",
    "inche": "in",
    "inch": "in",
    "feet": "ft",
    "foot": "ft",
    "yard": "yd",
    "mile": "mi",
    "kilogram": "kg",
    "gram": "g",
    "pound": "lb",
    "lbs": "lb",
    "ounce": "oz",
    "hour": "h",
    "hr": "h",
    "minute": "min",
    "second": "s",
    "sec": "s",
    "liter": "l",
    "litre": "l",
    "usd": "dollar",
    "mph": "mi/h",
    "kph": "km/h",
    "kmh": "km/h",
}
_PERCENT = ("percent", "percentage", "pct")
_PATTERN = re.compile(
    r"(?:\((?P<bracketed>[TW]+)\)"
    r"|(?P<degree>D[TW]?)"
    r"|(?P<words>(?:[TW%](?:\^(?:N|\{N\}))?|[C])(?:/?[TW](?:\^(?:N|\{N\}))?)*))$"
)


def currency(tokens: Sequence[str]) -> tuple[str, list[str]]:
    """Return the currency that stands before a number ("" without one), and the other tokens."""
    rest = list(tokens)
    position = 1 if rest[:1] == ["-"] else 0
    if len(rest) > position + 1 and rest[position] in CURRENCIES:
        return CURRENCIES[rest.pop(position)], rest
    return "", rest


def split_unit(tokens: Sequence[str]) -> tuple[list[str], str]:
    """Return the tokens without the unit at their end, and the unit; "" if there is none.

    Raises:
        UnreadableError: the words at the end change the number before them.
    """
    match = _PATTERN.search("".join(_letter(tokens, i) for i in range(len(tokens))))
    if match is None or match.start() == 0:
        return list(tokens), ""
    left, behind = list(tokens[: match.start()]), tokens[match.start() :]
    plain = [token for token in behind if token.isalpha()]
    is_angle = match["degree"] is not None and FUNCTIONS & set(left)  # sin 80° is a number
    nouns = [word for word in plain if word.lower() not in UNIT_FILLERS]
    is_product = plain and not (_is_constant(left) and all(map(_is_unit_word, nouns)))
    if is_angle or is_product:
        return list(tokens), ""
    unit = " ".join(token.removeprefix(QUOTE) for token in behind if token not in "()")
    names = re.findall(r"[a-z]+", unit.lower())
    digits = re.search(r"[0-9]", re.sub(r"\^ \{? ?[0-9]", "", unit))
    is_percent = unit.startswith("%") or (bool(names) and names[0] in _PERCENT)
    if unit.startswith("%"):
        names = ["percent", *names]
    if digits or "%" in unit[1:] or _changes_number(names):
        raise UnreadableError("words that change the number before them")
    return left, "%" if is_percent else unit_name(unit)


def _letter(tokens: Sequence[str], position: int) -> str:
    """Return the class of a token, as one letter of _PATTERN."""
    token = tokens[position]
    if token.startswith(QUOTE):
        # An upright e is the number, an upright m the metre.
        return "T" if len(token) > 2 or token[1:] in UNIT_LETTERS else "x"
    if is_number(token):
        return "N"
    per_letter = token in UNIT_LETTERS and position > 1 and tokens[position - 1] == "/"
    if per_letter and tokens[position - 2] in SHORT_UNITS:
        return "W"  # km/h
    if (token.isalpha() and len(token) > 1) or token == r"\sec":
        return "W"
    classes = dict.fromkeys(CURRENCIES, "C") | {"°": "D"} | {mark: mark for mark in "^{}/()%"}
    return classes.get(token, "x")


def _is_constant(tokens: Sequence[str]) -> bool:
    """Return whether tokens hold no letters, so that a word behind them is no factor."""
    return bool(tokens) and not any(token.isalpha() for token in tokens)


def _is_unit_word(word: str) -> bool:
    return word.lower() in SHORT_UNITS or word in UNIT_LETTERS or is_plain_word(word)


def is_plain_word(word: str) -> bool:
    """Return whether letters are a word of English, rather than a product of variables.

    Letters in alphabetical order, without a vowel or with capitals behind the first are none.
    """
    if word.lower() in ANSWER_WORDS:
        return True
    if len(word) < 4 or not word.isalpha() or not (word.islower() or word[1:].islower()):
        return False
    small = word.lower()
    vowels = set("aeiou") & set(small)
    return list(small) != sorted(small) and bool(vowels) and not set(small) <= vowels


def _changes_number(names: Sequence[str]) -> bool:
    """Return whether words behind a number change it: 5 tenths, 5 lakh, 5 halved.

    A scale may come first (5 million people), and "square" and "cubic" before a unit.
    """
    rest = names[1:] if names and names[0].removesuffix("s") in SCALES else names
    if rest and (rest[0] in _PERCENT or (len(rest) > 1 and rest[0] in ("square", "cubic"))):
        rest = rest[1:]
    return any(_is_changing(name) for name in rest)


def _is_changing(name: str) -> bool:
    is_ordinal = name.endswith(("th", "ths")) and name.removesuffix("s") not in NOUNS_IN_TH
    stem = name.removesuffix("s")
    return (
        is_ordinal
        or stem in SCALES
        or bool({name, stem} & CHANGING_WORDS)
        or name.startswith(CHANGING_STEMS)
        or name.endswith(CHANGING_ENDINGS)
    )


def unit_name(words: str) -> str:
    """Return the one name of a unit: "square inches" and "in ^ 2" are "in^2"."""
    words = re.sub(r"\s*([/^{}])\s*", r"\1", words.lower().replace("\\", ""))
    words = re.sub(r"[{}.,]", "", words)
    words = re.sub(r"\s+(?:per|an?)\s+", "/", words)
    if words.startswith("°"):
        return "degree " + words[1:].strip() if words[1:].strip() else "degree"
    power = re.match(r"(square|sq|cubic|cu)\s+", words)
    exponent = ""
    if power:
        words = words[power.end() :]
        exponent = "^2" if power[1].startswith("s") else "^3"
    parts = [_singular(part) for part in words.split("/")]
    return "/".join(parts) + exponent


def _singular(words: str) -> str:
    name, caret, exponent = words.strip().partition("^")
    name = CURRENCIES.get(name, name)
    if name not in _SYNONYMS and len(name) > 2:
        name = name.removesuffix("s")
    return _SYNONYMS.get(name, name) + caret + exponent
