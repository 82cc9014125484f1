"""Write files as a whole or not at all, tell whether they are as they were, and read JSON.

Errors of reading name the file, and the line where there are several.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# A longer line is no record of anything; reading it whole could use up the memory.
LONGEST_LINE = 2**24
# The escape of half a surrogate pair; with the other half beside it, it is a character.
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def write_text(path: Path, text: str) -> None:
    """Write or replace a UTF-8 file; its directory is created if needed.

    After a kill, or a power cut, the file has either its old content or its new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    """Write or replace a file that holds one JSON value, as `write_text` does."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the JSON value that a file holds.

    Raises:
        ValueError: the file is empty, no UTF-8 or no JSON; the message names it and the line.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    if not data.strip():
        raise ValueError(f"{path}: the file is empty; JSON is expected")
    try:
        return parse_json(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds; anything else raises ValueError, as `read_json`."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_json_lines(
    path: Path, parse_number: Callable[[str], Any] = float, characters_only: bool = False
) -> Iterator[tuple[int, Any]]:
    """Yield the number (from 1) and the JSON value of each line of a file that is not blank.

    Lines end at newlines alone: a text may hold other characters that end lines. In place of a
    value that cannot be read stands the ValueError that says why, without the line's number.

    Args:
        path: the file, UTF-8.
        parse_number: see `parse_json`.
        characters_only: see `parse_json`.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                while line and not line.endswith(b"\n"):
                    line = file.readline(LONGEST_LINE)
                size = f"{LONGEST_LINE // 2**20} MiB"
                yield number, ValueError(f"the line is longer than {size}, the most for one line")
            elif line.strip(b" \t\r\n\v\f\xef\xbb\xbf"):  # blank, perhaps with a byte order mark
                try:
                    yield number, parse_json(line.rstrip(b"\r\n"), parse_number, characters_only)
                except ValueError as error:
                    yield number, error


def parse_json(
    data: bytes, parse_number: Callable[[str], Any] = float, characters_only: bool = False
) -> Any:
    """Return the value of JSON in UTF-8, with or without a byte order mark.

    Args:
        data: the JSON.
        parse_number: makes the value of NaN, Infinity and numbers with a fraction or exponent.
        characters_only: refuse the escape of half a surrogate pair, which UTF-8 cannot hold.

    Raises:
        ValueError: it cannot be read. The message is one sentence, with a line only if `data` has
            several.
    """
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text, parse_constant=parse_number, parse_float=parse_number)
        if characters_only and SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False, default=repr).encode("utf-8")
        return value
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise ValueError(
            f"the escape \\u{code:04x} is half of a surrogate pair, and no character"
        ) from error
    except UnicodeDecodeError as error:
        lines = error.object[: error.start].split(b"\n")
        place = _place(data, len(lines), len(lines[-1]) + 1, "byte")
        byte = error.object[error.start]
        raise ValueError(f"0x{byte:02x} at {place} is not UTF-8, which is expected") from error
    except json.JSONDecodeError as error:
        place = _place(data, error.lineno, error.colno, "column")
        reason = error.msg.removesuffix(" at")  # "Invalid control character at"
        raise ValueError(f"not valid JSON: {reason} at {place}") from error
    except RecursionError as error:
        raise ValueError("lists or objects in it are nested too deeply to be read") from error
    except ValueError as error:  # of no other kind: a number that Python refuses to convert
        digits = sys.get_int_max_str_digits()
        raise ValueError(f"a number in it has more than {digits} digits") from error


def _place(data: bytes, line: int, column: int, unit: str) -> str:
    several = b"\n" in data.rstrip(b"\n")
    return f"line {line}, {unit} {column}" if several else f"{unit} {column}"


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, or of all files in a directory with their names.

    Raises:
        OSError: a file cannot be read.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for part in sorted(p for p in path.rglob("*") if p.is_file()):
        name = os.fsencode(part.relative_to(path))
        digest.update(b"%s\0%s\n" % (name, checksum(part).encode()))
    return digest.hexdigest()


def set_aside(path: Path) -> Path:
    """Rename a damaged file or directory to NAME.damaged, or NAME.damaged-2 and so on.

    Returns:
        The new path.
    """
    number = 1
    while True:
        suffix = ".damaged" if number == 1 else f".damaged-{number}"
        target = path.with_name(path.name + suffix)
        if not os.path.lexists(target):
            path.rename(target)
            return target
        number += 1
