"""How much longer the steps of a tokenizer.json can make a text: a bound on a file's memory.

A step may replace a character by many. A chain of a few such steps, each harmless, makes terabytes
of one letter.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections import Counter
from pathlib import Path
from typing import Any

from prefixrl_jax.model.fields import shown
from prefixrl_jax.model.folder_files import MAX_TOKENIZER_BYTES, read_object

# Characters that may be made of one, and copies of a text. Unicode's longest normal form has 18,
# four bytes of a character are four characters of a byte-level tokenizer, and some have both.
MAX_GROWTH = 1000
STEPS = ("normalizers", "pretokenizers", "processors", "decoders")  # of a Sequence


def check_tokenizer_growth(directory: Path) -> None:
    """Raise ValueError for a file in the folder that `check_growth` refuses.

    tokenizer_config.json can have another version of tokenizer.json read, tokenizer.VERSION.json.
    """
    for path in sorted(directory.glob("tokenizer*.json")):
        if path.name != "tokenizer_config.json" and path.is_file():
            check_growth(read_object(path, MAX_TOKENIZER_BYTES), path)


def check_growth(fields: dict[str, Any], path: Path) -> None:
    """Raise ValueError if a tokenizer makes more than MAX_GROWTH characters of one.

    Args:
        fields: the content of tokenizer.json.
        path: the file, for the message.
    """
    for parts in (("normalizer", "pre_tokenizer"), ("post_processor",), ("decoder",)):
        length = 1.0
        for part in parts:
            length = _length_after(fields.get(part), length)
        if length > MAX_GROWTH:
            raise ValueError(
                f"{path}: {' and '.join(parts)} can make a text {length:.3g} times as long; at most"
                f" {MAX_GROWTH} times is accepted"
            )


def _length_after(step: Any, length: float) -> float:
    """Return the length, at most, of a text of `length` characters after a step."""
    if not isinstance(step, dict):
        return length
    for steps in STEPS:
        for part in _list(step.get(steps)):
            length = _length_after(part, length)
    if step.get("type") == "Prepend":
        return length + len(_text(step.get("prepend")))
    return length * _factor(step)


def _factor(step: dict[str, Any]) -> float:
    """Return the characters, at most, that a step makes of one."""
    match step.get("type"):
        case "Replace":
            return _replacement(step)
        case "ByteLevel":
            return 4
        case "Precompiled":
            return _longest_of_charsmap(step.get("precompiled_charsmap"))
        case "TemplateProcessing":
            return max(_copies(step.get("single")), _copies(step.get("pair")))
        case _:
            return 1


def _replacement(step: dict[str, Any]) -> float:
    """Return the characters that a Replace makes of one."""
    content, pattern = _text(step.get("content")), step.get("pattern")
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(literal, str) and literal:
        return max(1.0, len(content) / len(literal))
    # A regular expression can match between characters as well as each of them.
    return max(1.0, 2.0 * len(content) + 1)


def _longest_of_charsmap(charsmap: Any) -> int:
    """Return the length of the longest text that SentencePiece's table puts for a character.

    The table is the size of a trie, the trie, and texts that end with a zero byte.
    """
    try:
        data = base64.b64decode(_text(charsmap))
        (trie_bytes,) = struct.unpack_from("<I", data)
    except (binascii.Error, ValueError, struct.error):
        return 1  # tokenizers refuses it
    texts = data[4 + trie_bytes :].split(b"\0")
    return max(1, *(len(text.decode(errors="replace")) for text in texts))


def _copies(template: Any) -> int:
    """Return how often a template of a post-processor holds the same text."""
    sequences = [
        shown(piece["Sequence"].get("id"))
        for piece in _list(template)
        if isinstance(piece, dict) and isinstance(piece.get("Sequence"), dict)
    ]
    return max(Counter(sequences).values(), default=1)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
