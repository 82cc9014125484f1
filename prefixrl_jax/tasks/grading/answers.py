r"""Final answers: where a response states its answer, and when two answers are the same.

This is the exact layer: it compares strings and rational numbers, in time linear in the text, so it
cannot hang. What it cannot decide (1/\sqrt{2} against \sqrt{2}/2) is for computer algebra, which
runs elsewhere. No jax is imported here.
"""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 400  # characters of an answer; a longer one is compared as written
DIGITS = 60  # most characters of a number that is compared by value: no answer needs more

_BOXES = ("\\boxed", "\\fbox")
_PHRASE = re.compile(r"answer\s*(?:is|:|=)\s*:?\s*", re.IGNORECASE)
_MATH = re.compile(r"\\[\[\]()]")  # \[ \] \( \)
# Spaces of all kinds, $, %, degrees.
_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|limits|quad|qquad)(?![A-Za-z])"
    r"|\\[,;:! ]|\\?[$%]|~|\^\{?\\circ\}?|\\degree|°"
)
_SYNONYMS = {
    "\\dfrac": "\\frac",
    "\\tfrac": "\\frac",
    "\\cfrac": "\\frac",
    "\\leq": "\\le",
    "\\geq": "\\ge",
    "\\neq": "\\ne",
    "\\lbrace": "\\{",
    "\\rbrace": "\\}",
    "\\cdots": "\\dots",
    "\\ldots": "\\dots",
    "\\times": "\\cdot",
    "\u2212": "-",
    "{,}": ",",
}
_SYNONYM = re.compile(
    "|".join(re.escape(k) + (r"(?![A-Za-z])" if k[-1].isalpha() else "") for k in _SYNONYMS)
)
# Words, of which the text stays.
_WORDS = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}"
)
# A unit behind a number, perhaps with an exponent.
_UNIT = re.compile(
    r"(?<=[\d}\)])\s*\\(?:text|textbf|textrm|mathrm|mbox)\s*\{[^{}]*\}(?:\^\{?\d\}?)?\s*$"
)
# Arguments and exponents of one character, with or without braces.
_BARE_FRAC = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|(\w))\s*(?:\{([^{}]*)\}|(\w))")
_BARE_SQRT = re.compile(r"\\sqrt\s*(\w)")
_SINGLE = re.compile(r"([\^_])\{(\w)\}")
_NAME = re.compile(r"^[A-Za-z](?:\([a-z]\))?=")  # x= or f(x)=
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")  # 1,000
_DECIMAL = re.compile(r"([-+]?)(\d+(?:\.\d*)?|\.\d+)(?:/(\d+))?")
_FRACTION = re.compile(r"([-+]?)(\d*)\\frac\{([-+]?\d+)\}\{(\d+)\}")


def boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed{...} (or \fbox, or \boxed 7), or None without one.

    Braces inside it are balanced. A box that is never closed counts as none.
    """
    start = max(text.rfind(name) + len(name) if name in text else -1 for name in _BOXES)
    if start < 0:
        return None
    rest = text[start:].lstrip()
    if not rest.startswith("{"):
        words = rest.split(None, 1)
        return words[0].strip("$.") if words else None
    depth = 0
    for i, character in enumerate(rest):
        if rest[i - 1 : i] == "\\" and character in "{}":
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:i]
    return None


def final_answer(text: str) -> str | None:
    r"""Return the answer that a response states, or None when it states none.

    It is the content of the last \boxed{...}, else the text after the last "####", else the text
    after the last "answer is".
    """
    in_box = boxed(text)
    if in_box is not None:
        return in_box.strip() or None
    if "####" in text:
        line = text.rsplit("####", 1)[1].strip().split("\n", 1)[0]
        return line.strip() or None
    ends = [match.end() for match in _PHRASE.finditer(text)]
    if not ends:
        return None
    line = text[ends[-1] :].split("\n", 1)[0].strip()
    sentence = re.split(r"\.(?:\s|$)", line, maxsplit=1)[0].strip().rstrip(".,;")
    return sentence or None


def normalise(answer: str) -> str:
    r"""Return an answer in a normal form, equal for answers that differ in layout only.

    Layout is spaces, \left, \dfrac, \frac12, $, %, degrees, units, "x =", and boxes.
    """
    s = _MATH.sub("", answer).strip()
    in_box = boxed(s)
    if in_box is not None:
        s = in_box
    if len(s) > LONGEST:
        return s
    s = _SYNONYM.sub(lambda m: _SYNONYMS[m.group()], s.strip("$ "))
    s = _UNIT.sub("", s.rstrip("."))
    s = _WORDS.sub(lambda m: m.group(1).strip(), s)
    s = _DROPPED.sub("", s)
    s = _BARE_FRAC.sub(lambda m: f"\\frac{{{m[1] or m[2] or ''}}}{{{m[3] or m[4] or ''}}}", s)
    s = _BARE_SQRT.sub(r"\\sqrt{\1}", s)
    s = _SINGLE.sub(r"\1\2", re.sub(r"\s+", "", s))
    s = _NAME.sub("", s).rstrip(".")
    while len(s) > 2 and s[0] == "{" and s[-1] == "}" and _closes_at_end(s):
        s = s[1:-1]
    return s.replace(",", "") if _GROUPED.fullmatch(s) else s


def _closes_at_end(s: str) -> bool:
    """Return whether the last character of a string closes the brace that it begins with."""
    depth = 0
    for i, character in enumerate(s):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return i == len(s) - 1
    return False


def rational(normalised: str) -> Fraction | None:
    r"""Return the exact value of a normalised answer, or None when it is not a rational number.

    It may be an integer, a decimal, a/b, \frac{a}{b} or a mixed number 2\frac{1}{2}.
    """
    if len(normalised) > DIGITS:
        return None
    if match := _DECIMAL.fullmatch(normalised):
        sign, number, denominator = match.groups()
        if denominator is not None and not int(denominator):
            return None
        value = Fraction(number) / int(denominator or 1)
    elif match := _FRACTION.fullmatch(normalised):
        sign, whole, numerator, denominator = match.groups()
        if not int(denominator) or (whole and int(numerator) < 0):
            return None
        value = int(whole or 0) + Fraction(int(numerator), int(denominator))
    else:
        return None
    return -value if sign == "-" else value


def same(gold: str, answer: str) -> bool | None:
    """Return whether two answers have the same normal form or the same rational value.

    Returns None if the forms differ and one of them is not a rational number.
    """
    gold, answer = normalise(gold), normalise(answer)
    if gold == answer:
        return True
    gold_value, value = rational(gold), rational(answer)
    if gold_value is None or value is None:
        return None
    return gold_value == value
