"""Read the files of a run's records, so that nothing in them can break a report.

Damaged files are named, with what to do; parts that are not of the form that a run writes are left
out, and noted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefixrl_jax.runtime.files import read_json_lines, read_object

# What to do with one of them that is damaged.
REMEDIES = {
    "config.json": "start the run again, which writes it anew",
    "summary.json": (
        "start the run again after removing stages/report.json, which writes it anew, or remove it"
        " to report without it"
    ),
}
# How deep the objects of a part of summary.json lie in each other, which the report relies on.
DEPTHS = {
    "plain_pass_at_1": 2,
    "plain_pass_at_1_interval": 2,
    "pass_at_k": 3,
    "success_by_prefix_fraction": 2,
    "flops": 2,
    "seconds": 1,
    "corpus": 1,
    "hard_set": 1,
    "prefixes": 1,
    "model": 1,
    "left_out": 1,
    "versions": 1,
}
# Parts whose innermost keys are numbers.
CURVES = ("pass_at_k", "success_by_prefix_fraction")
MOST_NOTED = 10  # bad lines of a file that are named one by one
LARGEST_INT = 2**1000  # a larger one is no number of a run, and has no float


def read_record(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file, {} if there is none; an error says what to do."""
    if not path.is_file():
        return {}
    try:
        return _bounded(read_object(path))
    except ValueError as error:
        raise ValueError(f"{error}; {REMEDIES[path.name]}") from error
    except RecursionError as error:
        message = f"{path}: objects in it are nested too deeply; {REMEDIES[path.name]}"
        raise ValueError(message) from error


def _bounded(value: Any) -> Any:
    """Return a JSON value with null in the place of whole numbers that no float can hold."""
    if isinstance(value, dict):
        return {name: _bounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_bounded(part) for part in value]
    return None if isinstance(value, int) and abs(value) > LARGEST_INT else value


def read_summary(path: Path, notes: list[str]) -> dict[str, Any]:
    """Return summary.json without the parts that are not of the form that a run writes."""
    summary = read_record(path)
    for name, depth in DEPTHS.items():
        if name in summary and not _has_depth(summary[name], depth, name in CURVES):
            notes.append(f"{path.name}: {name} is not of the form that a run writes; left out.")
            del summary[name]
    return summary


def _has_depth(value: Any, depth: int, curve: bool) -> bool:
    """Return whether objects lie `depth` deep in each other; null may stand for any of them."""
    if value is None or depth == 0:
        return not isinstance(value, dict) or not curve
    if not isinstance(value, dict):
        return False
    if curve and depth == 1 and not all(map(_is_number, value)):
        return False
    return all(_has_depth(part, depth - 1, curve) for part in value.values())


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def read_lines(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file that has one a line.

    A line that is none, such as a write cut short, is noted and passed over; of many, only the
    first MOST_NOTED are named.
    """
    bad = 0
    for number, value in read_json_lines(path):
        try:
            record = _bounded(value)
        except RecursionError:
            record = None
        if isinstance(record, dict):
            yield record
            continue
        bad += 1
        if bad <= MOST_NOTED:
            notes.append(f"{path.name}, line {number} is not a JSON object and was left out.")
    if bad > MOST_NOTED:
        notes.append(f"{path.name}: {bad - MOST_NOTED:,} more lines are not JSON objects.")
