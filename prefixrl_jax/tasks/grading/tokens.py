r"""Tokens of an answer: LaTeX, plain text and Unicode come to one spelling.

A token is a string: a number ("12", ".5", "1.2e5"), a word of letters, a LaTeX command ("\\frac"),
a text group (QUOTE and its content) or a single character. Layout (spaces, \left, $ around
mathematics) is dropped, but numbers that stand apart stay apart: "2 1/2" is not "21/2".
"""

from __future__ import annotations

import functools
import re

from prefixrl_jax.tasks.grading.vocabulary import FUNCTION_WORDS, GLUED_WORDS, LAYOUT

LONGEST = 400  # characters of an answer that is read; a longer one is compared as written
QUOTE = '"'  # begins the token of a \text group

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
_FRACTIONS = {
    "½": (1, 2),
    "⅓": (1, 3),
    "⅔": (2, 3),
    "¼": (1, 4),
    "¾": (3, 4),
    "⅕": (1, 5),
    "⅖": (2, 5),
    "⅗": (3, 5),
    "⅘": (4, 5),
    "⅙": (1, 6),
    "⅚": (5, 6),
    "⅛": (1, 8),
    "⅜": (3, 8),
    "⅝": (5, 8),
    "⅞": (7, 8),
}
# A Unicode en dash is left out: "3–5" is a range, not a difference.
_CHARACTERS = {
    "−": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∙": r"\cdot ",
    "÷": r"\div ",
    "⁄": "/",
    "√": r"\sqrt ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R}",
    "°": r"^\circ ",
    "…": r"\dots ",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "λ": r"\lambda ",
    "，": ",",
    "：": ":",
    "（": "(",
    "）": ")",
    "\u00a0": " ",
    "\u2009": " ",
    "\u202f": " ",
    "\u200b": "",
    "\ufeff": "",
    "“": "",
    "”": "",
    QUOTE: "",
}
_CHARACTERS.update({chr(0xFF10 + digit): str(digit) for digit in range(10)})
_TRANSLATION = str.maketrans(
    _CHARACTERS | {sign: rf" \frac{{{a}}}{{{b}}}" for sign, (a, b) in _FRACTIONS.items()}
)

# Spellings of one thing.
_SYNONYMS = {
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\cfrac": r"\frac",
    r"\dbinom": r"\binom",
    r"\tbinom": r"\binom",
    r"\leq": r"\le",
    r"\leqslant": r"\le",
    r"\geq": r"\ge",
    r"\geqslant": r"\ge",
    r"\neq": r"\ne",
    r"\lt": "<",
    r"\gt": ">",
    "<=": r"\le",
    ">=": r"\ge",
    "!=": r"\ne",
    "*": r"\cdot",
    r"\times": r"\cdot",
    r"\ast": r"\cdot",
    r"\div": "/",
    r"\cdots": r"\dots",
    r"\ldots": r"\dots",
    r"\dotsc": r"\dots",
    r"\dotsb": r"\dots",
    "...": r"\dots",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\lbrack": "[",
    r"\rbrack": "]",
    r"\lvert": "|",
    r"\rvert": "|",
    r"\vert": "|",
    r"\%": "%",
    r"\$": "$",
    r"\pounds": "£",
    r"\varnothing": r"\emptyset",
    r"\infin": r"\infty",
    r"\degree": "°",
    r"\thinspace": "",
    r"\lor": QUOTE + "or",
    r"\vee": QUOTE + "or",
    r"\land": QUOTE + "and",
    r"\wedge": QUOTE + "and",
    r"\bmatrix": r"\pmatrix",
    r"\arctan": r"\atan",
    r"\arcsin": r"\asin",
    r"\arccos": r"\acos",
}
_TEXT_COMMANDS = "text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|operatorname|rm|bf"
_TEXT = re.compile(rf"\\(?:{_TEXT_COMMANDS})\s*\{{([^{{}}]*)\}}")
# Of a text group these are words or a unit; digits and signs in it are mathematics.
_WORDS = re.compile(r"(?:[^\W\d_]|[\s.,;:()/?~]|\\ )*|\s*[A-Za-z]+\^\d\s*")
_GROUP = r"(?:\s?\{,\s?\}\s?|,\\!\s*|\\,|\\ |[ ](?=\d{3}(?!\s*/)))"
_TOKEN = re.compile(
    rf"(?P<text>\\(?:{_TEXT_COMMANDS})\s*\{{(?P<content>[^{{}}]*)\}})"
    r"|(?P<degree>\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\}))"
    r"|(?P<reals>\\mathbb\s*(?:\{R\}|R)|\\R(?![A-Za-z]))"
    rf"|(?P<number>\d{{1,3}}(?:{_GROUP}\d{{3}})+(?!\d|,\d)(?:\.\d+)?"
    r"|(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+(?![\dA-Za-z.]))?)"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<other>\\[A-Za-z]+|\\.|\.\.\.|<=|>=|!=|\s+|.)",
    re.DOTALL | re.ASCII,
)
_THOUSANDS = re.compile(r"(?<![\d.,\\])\d{1,3}(?:,\d{3})+(?![\d]|,\d)", re.ASCII)
_OPENING = frozenset("([")
_CLOSING = frozenset(")]")


def spelled(text: str) -> str:
    """Return a text with Unicode mathematics in the spelling of LaTeX."""
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub(r"[₀₁₂₃₄₅₆₇₈₉₊₋]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    text = re.sub(r"√\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}", text, flags=re.ASCII)
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # a backslash that was escaped twice
    text = re.sub(r"\\q?quad", " ", text)  # also where a letter follows: \\quadx
    text = re.sub(r"°\s*([CF])(?![A-Za-z])", r"°\\text{\1}", text)
    return text.translate(_TRANSLATION)


def _join_thousands(text: str) -> str:
    """Return a text with 1,000 as 1000, except in brackets, where a comma parts two numbers."""
    pieces = []
    position = depth = 0
    for match in _THOUSANDS.finditer(text):
        before = text[position : match.start()]
        depth += sum((c in _OPENING) - (c in _CLOSING) for c in before)
        depth += before.count(r"\{") - before.count(r"\}")
        number = match[0] if depth > 0 else match[0].replace(",", "")
        pieces += [before, number]
        position = match.end()
    return "".join(pieces) + text[position:]


@functools.lru_cache(maxsize=4096)
def tokenize(text: str) -> tuple[str, ...]:
    """Return the tokens of an answer, in time linear in its length.

    A text of more than LONGEST characters is one token, so that it equals itself alone.
    """
    text = text.strip()
    if len(text) > LONGEST:
        return (text,)
    text = _join_thousands(_TEXT.sub(_mathematics, spelled(text)))
    # A dollar sign that has no partner is a currency; a pair of them encloses mathematics.
    bare_dollars = len(re.findall(r"(?<!\\)\$", text))
    tokens: list[str] = []
    for match in _TOKEN.finditer(text):
        token = _token(match)
        if token in LAYOUT or token.isspace():
            continue
        if match[0] == "$" and bare_dollars % 2 == 0:
            continue
        is_glued = match["word"] and match.start() and text[match.start() - 1].isdigit()
        if is_glued and token.isalpha() and len(token) > 3 and token.lower() not in GLUED_WORDS:
            tokens += token  # a product of letters
        else:
            tokens.append(token)
    while tokens and tokens[-1] in (".", ",", ";"):
        tokens.pop()
    return tuple(tokens)


def _mathematics(group: re.Match[str]) -> str:
    r"""Return a text group, or its content if that is more than words: \text{x > 3}."""
    if _WORDS.fullmatch(group[1]):
        return group[0]
    return f" {group[1].replace('~', ' ')} "


def _token(match: re.Match[str]) -> str:
    """Return the token of a match, in its one spelling."""
    if match["text"]:
        content = " ".join(match["content"].replace("~", " ").replace(r"\ ", " ").split())
        return content if re.fullmatch(r"\d+(?:\.\d+)?", content, re.ASCII) else QUOTE + content
    if match["degree"]:
        return "°"
    if match["reals"]:
        return r"\R"
    if match["number"]:
        return re.sub(r"\{,\s?\}|,\\!\s*|\\,|\\ |\s", "", match[0])
    if match["word"]:
        word = "\\" + match[0]
        return _SYNONYMS.get(word, word) if match[0] in FUNCTION_WORDS else match[0]
    return _SYNONYMS.get(match[0], match[0])
