r"""The value that an answer states: lists, sets, intervals, relations, units around expressions.

`read` is the entry. What it cannot read, or could read in two ways, raises UnreadableError; such an
answer equals only answers that are written the same.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction

from prefixrl_jax.tasks.grading.brackets import (
    OPENING,
    Tokens,
    deepest,
    end_of_group,
    outside,
    split,
    unwrapped,
)
from prefixrl_jax.tasks.grading.expression import DEEPEST, read_expression
from prefixrl_jax.tasks.grading.names import is_name
from prefixrl_jax.tasks.grading.rational import constant, symbols
from prefixrl_jax.tasks.grading.tokens import LONGEST, QUOTE, tokenize
from prefixrl_jax.tasks.grading.units import SCALES, currency, is_plain_word, split_unit
from prefixrl_jax.tasks.grading.values import (
    Based,
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
    Symbol,
    Text,
    Tuple,
    Union,
    UnreadableError,
    Value,
)

_AND = frozenset([QUOTE + "and", "and"])
_OR = frozenset([QUOTE + "or", "or", "OR"])
_RELATIONS = frozenset(["=", "<", ">", r"\le", r"\ge", r"\ne"])
_MATRICES = frozenset(["pmatrix", "bmatrix", "matrix", "smallmatrix", "array"])
_SETS: dict[str, Value] = {r"\R": Reals(), r"\emptyset": Set(())}
_NO_NUMBER = frozenset(["nan", "inf", "infinity"])
DEEPEST_STRUCTURE = 8  # nested brackets other than the braces of LaTeX
# 10:00 AM, 5 p.m. and 2024-05-06 (no difference of numbers) are compared as written.
_CLOCK_OR_DATE = re.compile(
    r"\d\s*:\s*\d.*(?<![A-Za-z])[ap]\.?\s?m(?![A-Za-z])|\d\s*(?:\\\w+\{\s*)?[ap]\.?\s?m(?![A-Za-z])"
    r"|\d{4}\s?[-−]\s?\d\d?\s?[-−]\s?\d\d?(?!\d)",
    re.IGNORECASE | re.ASCII,
)


@functools.lru_cache(maxsize=4096)
def read(text: str) -> Value:
    """Return the value of an answer.

    Raises:
        UnreadableError: the answer has no reading, or more than one.
    """
    if len(text.strip()) > LONGEST:
        raise UnreadableError("the answer is too long")
    tokens = unwrapped(tokenize(text))
    if r"\dots" in tokens:
        raise UnreadableError("what an ellipsis stands for is not decidable")
    if tokens.count(r"\pm") + tokens.count(r"\mp") > 1:
        raise UnreadableError("which of several signs belong together is not decidable")
    if _deepest_structure(tokens) > DEEPEST_STRUCTURE or deepest(tokens) > DEEPEST:
        raise UnreadableError("brackets are nested too deeply")
    return _whole(tokens)


def _deepest_structure(tokens: Tokens) -> int:
    r"""Return how deep brackets nest, without the braces that LaTeX groups arguments by."""
    return deepest([token for token in tokens if token not in ("{", "}")])


def is_clock_or_date(text: str) -> bool:
    """Return whether a text holds a time with am or pm, or a date of digits and hyphens."""
    return len(text) <= LONGEST and _CLOCK_OR_DATE.search(text) is not None


def is_no_number(text: str) -> bool:
    """Return whether a text spells NaN or an infinite float, which are no answers."""
    words = re.sub(r"\\(?:text|mathrm)\b|[^A-Za-z]", "", text).lower()
    return words in _NO_NUMBER


def _whole(tokens: Tokens) -> Value:
    """Return the value of an answer that may be several values side by side."""
    words = _words(tokens)
    if words is not None:
        return words
    if r"\begin" in tokens:
        return _item(tokens)
    parts, separators = split(tokens, frozenset([",", ";"]) | _AND | _OR)
    # "2, 3, and 5": nothing stands between the comma and the word.
    filled = [part for part in parts if part]
    if len(filled) != len(parts) and not (_AND | _OR) & set(separators):
        raise UnreadableError("a separator with nothing beside it")
    if not filled:
        raise UnreadableError("the answer is empty")
    items = [value for part in filled for value in _signs(part)]
    if len(items) == 1:
        return items[0]
    return _side_by_side(items, bool(_OR & set(separators)))


def _side_by_side(items: list[Value], alternative: bool) -> Value:
    """Return several values; those of one name share it: x = 1, 2 and x = 1, x = 2."""
    first = items[0]
    if not isinstance(first, Named):
        return Several(tuple(items), alternative)
    named = [item for item in items if isinstance(item, Named)]
    if len(named) == 1:
        return Named(first.name, Several((first.value, *items[1:]), alternative))
    if len(named) == len(items) and {item.name for item in named} == {first.name}:
        return Named(first.name, Several(tuple(item.value for item in named), alternative))
    return Several(tuple(items), alternative)


def _words(tokens: Tokens) -> Value | None:
    """Return the text of an answer that consists of words, else None."""
    letters = [token for token in tokens if token.isalpha() or token.startswith(QUOTE)]
    if not letters or len(letters) + sum(map(tokens.count, ".'-")) != len(tokens):
        return None
    if tokens[0] == "-":
        return None
    text = " ".join(token.removeprefix(QUOTE) for token in tokens)
    letter = re.fullmatch(r"\(?\s*([A-Za-z])\s*\)?", text)
    if letter:
        return Symbol(letter[1])
    if len(tokens) > 1 and (_AND | _OR) & set(tokens):
        return None
    if all(len(token) == 1 for token in tokens) or is_no_number(text):
        return None
    return _text(text)


def _text(text: str) -> Text | None:
    """Return words in small letters, other letters as they are, and None for a sum of letters."""
    plain = re.split(r"[\s.,;'-]+", text.strip(".,; "))
    if all(map(is_plain_word, plain)):
        return Text(" ".join(plain).lower())
    # Other letters may be a product, in which case and marks count: AB is not ab, x-y no xy.
    if "-" in text or "'" in text:
        return None
    return Text(text)


def _signs(tokens: Tokens) -> list[Value]:
    r"""Return the one value of an item, or the two of one with \pm."""
    if (r"\pm" not in tokens and r"\mp" not in tokens) or r"\{" in tokens:
        return [_item(tokens)]
    both = []
    for plus, minus in (("+", "-"), ("-", "+")):
        signs = {r"\pm": plus, r"\mp": minus}
        both.append(_item([signs.get(token, token) for token in tokens]))
    return both


def _item(tokens: Tokens) -> Value:
    """Return the value of one item of a list."""
    tokens = unwrapped(tokens)
    for position, token in outside(tokens):
        if token in ("=", r"\in", r"\approx"):
            left, right = tokens[:position], tokens[position + 1 :]
            if is_name(left):
                return _under_name(left, token, _item(right))
            if token == r"\in":
                raise UnreadableError("a member that is no variable")
            break
    tokens = _exact_part(tokens)
    if any(token in (r"\cup", r"\setminus", r"\backslash") for _, token in outside(tokens)):
        return _union(tokens)
    if any(token in _RELATIONS for _, token in outside(tokens)):
        return _chain(tokens)
    return _quantity(tokens)


def _under_name(name: Tokens, relation: str, value: Value) -> Value:
    r"""Return a value with the name before "=", \approx or \in; x = 2x + 3 names nothing."""
    if relation == r"\in":
        return Member(tuple(name), value)
    if len(name) == 1 and isinstance(value, Scalar) and name[0] in symbols(value):
        return Chain((Symbol(name[0]), value), ("=",))
    return Named(tuple(name), value)


def _exact_part(tokens: Tokens) -> Tokens:
    r"""Return what stands before \approx: of 1/3 \approx 0.33 the first is stated."""
    return split(tokens, frozenset([r"\approx"]))[0][0]


def _union(tokens: Tokens) -> Value:
    kept, *removed = split(tokens, frozenset([r"\setminus", r"\backslash"]))[0]
    parts = split(kept, frozenset([r"\cup"]))[0]
    return Union(tuple(_item(part) for part in parts), tuple(_item(part) for part in removed))


def _chain(tokens: Tokens) -> Value:
    """Return a relation, or the number that a true equation of numbers ends with."""
    sides, operators = split(tokens, _RELATIONS)
    if set(operators) == {"="} and len(sides) == 2 and len(sides[1]) == 1 and is_name(sides[1]):
        return _under_name(sides[1], "=", _item(sides[0]))  # 5 = x
    if set(operators) == {"="}:
        values = [_quantity(side) for side in sides]
        numbers = [_constant(value) for value in values]
        if all(number is not None for number in numbers):
            if len(set(numbers)) > 1:
                raise UnreadableError("an equation that is not true")
            return values[-1]
    return Chain(tuple(read_expression(side) for side in sides), tuple(operators))


def _constant(value: Value) -> Fraction | None:
    scalar = value.value if isinstance(value, Quantity) else value
    return constant(scalar) if isinstance(scalar, Scalar) else None


def _quantity(tokens: Tokens) -> Value:
    """Return a value with its unit, if it has one."""
    unit, rest = currency(tokens)
    rest, unit_behind = split_unit(rest)
    scale, _, remaining = unit_behind.partition(" ")
    value = _bare(rest)
    if isinstance(value, Ratio) and unit_behind:
        raise UnreadableError("a ratio or a time with words")
    if scale in SCALES and isinstance(value, Scalar):
        value, unit_behind = Product((value, Number(Fraction(SCALES[scale])))), remaining
        number = constant(value)
        value = value if number is None else Number(number)
    if unit and unit_behind not in ("", unit):
        unit_behind = f"{unit} {unit_behind}"
    unit = unit_behind or unit
    return Quantity(value, unit) if unit else value


def _bare(tokens: Tokens) -> Value:
    """Return a value without a unit."""
    tokens = unwrapped(tokens)
    if not tokens:
        raise UnreadableError("a value is missing")
    words = _words(tokens)
    if words is not None:
        return words
    if len(tokens) == 1 and tokens[0] in _SETS:
        return _SETS[tokens[0]]
    if r"\begin" in tokens:
        return _matrix(tokens)
    if any(token == ":" for _, token in outside(tokens)):
        return Ratio(tuple(read_expression(side) for side in split(tokens, frozenset(":"))[0]))
    encloses = tokens[0] in OPENING and end_of_group(tokens, 0) == len(tokens) - 1
    return _bracketed(tokens) if encloses else _based(tokens) or read_expression(tokens)


def _based(tokens: Tokens) -> Based | None:
    """Return a number with a base below it, as in 52_8, else None."""
    if len(tokens) < 3 or tokens[1] != "_" or not tokens[0].isdigit():
        return None
    base = "".join(unwrapped(tokens[2:]))
    return Based(tokens[0], base) if re.fullmatch(r"-?\d{1,2}", base, re.ASCII) else None


def _bracketed(tokens: Tokens) -> Value:
    """Return what a pair of brackets encloses: a set, tuple or interval, or just a group."""
    opening, inner, closing = tokens[0], tokens[1:-1], tokens[-1]
    if opening == r"\{" and closing == r"\}":
        return _set(inner)
    parts = split(inner, frozenset([",", ";"]))[0]
    half_open = (opening, closing) in (("(", "]"), ("[", ")"))
    if len(parts) == 1 and not half_open:
        if opening == r"\langle":
            raise UnreadableError("a vector of one number")
        return _group(tokens)
    if len(parts) == 2 and (half_open or opening == "["):
        low, high = (read_expression(part) for part in parts)
        return Interval(low, high, opening == "[", closing == "]")
    if half_open or (opening, closing) not in (("(", ")"), ("[", "]"), (r"\langle", r"\rangle")):
        raise UnreadableError("brackets that do not match")
    items = tuple(_item(part) for part in parts)
    return Tuple(items)


def _group(tokens: Tokens) -> Value:
    """Return the value in a pair of brackets around one item: (1/2), ((1, 2)), (x > 3)."""
    try:
        return read_expression(tokens)
    except UnreadableError:
        return _item(tokens[1:-1])


def _set(inner: Tokens) -> Value:
    if not inner:
        return Set(())
    for position, token in outside(inner):
        if token in ("|", ":", r"\mid") and is_name(inner[:position]):
            value = _item(inner[position + 1 :])  # {x : x > 3}
            if not isinstance(value, Chain | Member | Named | Several):
                raise UnreadableError("a condition that is no relation")
            return value
    parts = split(inner, frozenset([",", ";"]))[0]
    return Set(tuple(value for part in parts for value in _signs(part)))


def _matrix(tokens: Tokens) -> Matrix:
    r"""Return the matrix of \begin{pmatrix} ... \end{pmatrix}."""
    if tokens[0] in ("(", "[") and end_of_group(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    kind = tokens[2] if len(tokens) > 2 else ""
    head, tail = [r"\begin", "{", kind, "}"], [r"\end", "{", kind, "}"]
    if kind not in _MATRICES or list(tokens[:4]) != head or list(tokens[-4:]) != tail:
        raise UnreadableError("no matrix that stands alone")
    cells = list(tokens[4:-4])
    if kind == "array":
        end = end_of_group(cells, 0) if cells and cells[0] == "{" else None
        if end is None:
            raise UnreadableError("an array without columns")
        cells = cells[end + 1 :]
    rows = [row for row in split(cells, frozenset([r"\\"]))[0] if row]
    matrix = tuple(
        tuple(read_expression(cell) for cell in split(row, frozenset("&"))[0]) for row in rows
    )
    if len({len(row) for row in matrix}) != 1:
        raise UnreadableError("rows of different lengths")
    return Matrix(matrix)
