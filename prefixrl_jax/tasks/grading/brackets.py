"""Brackets in a list of tokens, and what stands outside of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

OPENING = frozenset(["(", "[", "{", r"\{", r"\langle"])
CLOSING = frozenset([")", "]", "}", r"\}", r"\rangle"])

Tokens = Sequence[str]


def unwrapped(tokens: Tokens) -> Tokens:
    r"""Return the tokens without \boxed{...} or {...} around all of them."""
    while True:
        start = 1 if tokens and tokens[0] in (r"\boxed", r"\fbox") else 0
        encloses = len(tokens) > start and tokens[start] == "{"
        if not encloses or end_of_group(tokens, start) != len(tokens) - 1:
            return tokens
        tokens = tokens[start + 1 : -1]


def end_of_group(tokens: Tokens, start: int) -> int | None:
    """Return where the bracket at `start` is closed, by a bracket of any kind."""
    depth = 0
    for position in range(start, len(tokens)):
        depth += (tokens[position] in OPENING) - (tokens[position] in CLOSING)
        if depth == 0:
            return position
    return None


def outside(tokens: Tokens) -> Iterator[tuple[int, str]]:
    """Yield the tokens that stand outside of all brackets, with their positions."""
    depth = 0
    for position, token in enumerate(tokens):
        depth += (token in OPENING) - (token in CLOSING)
        if depth == 0:
            yield position, token


def split(tokens: Tokens, separators: frozenset[str]) -> tuple[list[Tokens], list[str]]:
    """Return the parts between separators outside of brackets, and the separators."""
    parts: list[Tokens] = []
    present: list[str] = []
    start = 0
    for position, token in outside(tokens):
        if token in separators:
            parts.append(tokens[start:position])
            present.append(token)
            start = position + 1
    return [*parts, tokens[start:]], present


def deepest(tokens: Tokens) -> int:
    """Return how many brackets the innermost token stands in."""
    depth = largest = 0
    for token in tokens:
        depth += (token in OPENING) - (token in CLOSING)
        largest = max(largest, depth)
    return largest
