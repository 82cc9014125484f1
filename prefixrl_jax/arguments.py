"""Checks of what a notebook user gives to `prefixrl_jax.load` and its model.

Each function returns its value in the form that the code behind the facade expects, or raises
ValueError with one sentence that names the argument, its value and what is accepted.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np

from prefixrl_jax.model.fields import shown

MAX_NAME_BYTES = 255  # of a file, in Linux
MAX_DEPTH = 100  # of a path; Path.mkdir calls itself for each parent
ROLES = ("system", "developer", "user", "assistant", "tool")
PROMPT = "a text, a conversation or a list of token ids"
PROMPTS = (
    "a list of texts, of conversations or of lists of token ids is accepted, as in generate(['2 +"
    " 2 ='])"
)
PREFIX = "a text or a list of token ids"
TEXTS = "an array [texts, tokens] of token ids, as in [lm.render(text)],"
CONVERSATION = (
    f"a message is {{'role': ..., 'content': ...}} with a text as content and a role of"
    f" {', '.join(ROLES)}"
)


def whole_number(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """Return an int for anything that is one, such as a numpy integer."""
    accepted = f"from {least} to {most}" if most < math.inf else f"of at least {least}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool | np.bool_) or not least <= number <= most:
        raise ValueError(f"{name}={shown(value)}: a whole number {accepted} is accepted")
    return number


def temperature(value: Any) -> float:
    """Return the temperature as a float; its range is checked where it is used."""
    try:
        # A text would be taken for a number by float().
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise ValueError(f"temperature={shown(value)}: 0 (greedy) or a positive number is accepted")
    return number


def text(name: str, value: Any) -> str:
    """Return a text that can be encoded: one without lone surrogates."""
    if not isinstance(value, str):
        raise ValueError(f"{name}={shown(value)}: a text is accepted")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} has a lone surrogate, {value[error.start]!a}, at character {error.start}; text"
            " that UTF-8 can encode is accepted"
        ) from error
    return str(value)


def prompts(value: Any) -> list[Any]:
    """Return the prompts one by one; a text alone is one prompt."""
    if isinstance(value, str):
        return [value]
    # The order of a set is not defined, and that of a dictionary is that of its keys.
    refused = isinstance(value, bytes | Mapping | Set) or not isinstance(value, Iterable)
    if refused or getattr(value, "ndim", 1) == 0:
        raise ValueError(f"prompts={shown(value)}: {PROMPTS}")
    items = list(value)
    if items and isinstance(items[0], Mapping):
        raise ValueError(
            "prompts is a conversation, not a list of them: put it in a list, as in"
            " generate([[{'role': 'user', 'content': 'Hi'}]])"
        )
    if items and _is_number(items[0]):
        raise ValueError(
            f"prompts={shown(items)}: token ids of one prompt belong in a list of their own,"
            " as in generate([[1, 2, 3]])"
        )
    return items


def _is_number(value: Any) -> bool:
    is_scalar = getattr(value, "ndim", None) == 0 and not isinstance(value, str | bytes)
    return is_scalar or isinstance(value, int | float)


def is_conversation(value: Any) -> bool:
    """Return whether a prompt is a list of messages, right or wrong."""
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping)


def conversation(name: str, messages: Any) -> list[dict[str, str]]:
    """Return the messages of a conversation as dictionaries of texts."""
    checked = []
    for i, message in enumerate(messages):
        place = f"{name}[{i}]"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{place}={shown(message)}: {CONVERSATION}")
        for field, value in message.items():
            if not isinstance(value, str):
                raise ValueError(f"{place}[{field!r}]={shown(value)}: {CONVERSATION}")
        if message["role"] not in ROLES:
            raise ValueError(f"{place}['role']={message['role']!r}: {CONVERSATION}")
        checked.append({field: text(f"{place}[{field!r}]", message[field]) for field in message})
    return checked


def token_ids(name: str, value: Any, vocab_size: int, ndim: int, accepted: str) -> np.ndarray:
    """Return token ids as an int32 array of `ndim` dimensions.

    Lists and arrays of any integer type will do; each id must be one of the model's.
    """
    refusal = f"{name}={shown(value)}: {accepted} is accepted"
    try:
        ids = np.asarray(value)
    except (TypeError, ValueError) as error:  # lists of several lengths
        raise ValueError(refusal) from error
    if ids.ndim != ndim or not ids.size or ids.dtype.kind not in "iu":
        raise ValueError(refusal)
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        raise ValueError(
            f"{name} has the token id {outside[0]}: the model has ids from 0 to {vocab_size - 1}"
        )
    return ids.astype(np.int32)


def choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return the value if it is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={shown(value)}: one of {', '.join(choices)} is accepted")
    return value


def path(name: str, value: Any) -> Path:
    """Return a path, for a text or a path that is not empty and that a file may have."""
    try:
        # Neither bytes nor what a path-like object of somebody else returns.
        name_of_file = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    except Exception:
        name_of_file = None
    if not isinstance(name_of_file, str) or not name_of_file:
        raise ValueError(f"{name}={shown(value)}: a path or a name, as text, is accepted")
    if "\0" in name_of_file:
        raise ValueError(f"{name}={shown(value)}: a path without NUL characters is accepted")
    names = text(name, name_of_file).encode().split(b"/")
    if len(names) > MAX_DEPTH or max(map(len, names)) > MAX_NAME_BYTES:
        raise ValueError(
            f"{name}={shown(value)}: a path of at most {MAX_DEPTH} names is accepted, each of at"
            f" most {MAX_NAME_BYTES} bytes"
        )
    return Path(name_of_file)
