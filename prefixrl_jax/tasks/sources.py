"""Where problems come from: the task's generator, or a set that a user brings; and their checks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from prefixrl_jax.runtime.watch import watched
from prefixrl_jax.tasks.rows import count_rows, excerpt, one_line, read_rows
from prefixrl_jax.tasks.task import Problem, Task

BATCH = 1000  # problems rendered at a time
PROBES = 16  # problems whose renderings tell whether remembered sizes still hold


@dataclasses.dataclass(frozen=True)
class Sets:
    """The problems that the select stage screens, and notes on the problems that were left out.

    Attributes:
        problems: {"train": [...], "heldout": [...]}, which share no problem.
        skipped: one sentence for each malformed row that was passed over.
        overlap: one sentence for each held-out problem left out because the training set has it.
    """

    problems: dict[str, list[Problem]]
    skipped: list[str]
    overlap: list[str]


def read_problems(
    task: Task,
    name: str,
    field: str = "data.path",
    split: str = "train",
    id_field: str = "id",
    skipped: list[str] | None = None,
) -> list[tuple[Problem, dict[str, Any]]]:
    """Return the problems of a set, each with its row.

    Args:
        name, split, field: see `rows.read_rows`.
        id_field: the row's field with the problem's id. Without it the id is the row's place.
        skipped: takes a sentence for each malformed row. None: such a row is an error.

    Raises:
        ValueError: a row is malformed or has the id of another one (its place and field are named),
            or the set has no problem.
    """
    problems: dict[str, tuple[Problem, dict[str, Any]]] = {}
    stem = re.sub(r"\.\w+$", "", name.rsplit("/", 1)[-1])
    rows = read_rows(name, split, field)
    for place, row in watched(rows, f"reading {field}", count_rows(name)):
        try:
            if isinstance(row, ValueError):
                raise row
            if not isinstance(row, dict):
                raise ValueError(f"expected a JSON object, found {type(row).__name__}")
            number = place.rsplit(" ", 1)[-1]
            problem = Problem(_id(row, id_field, f"{stem}-{number}"), task.parse(row))
            if problem.id in problems:
                raise ValueError(
                    f"id {excerpt(problem.id)} stands in an earlier row too; ids must differ"
                )
            problems[problem.id] = problem, row
        except ValueError as error:
            sentence = f"{place}: {one_line(error)}"
            if skipped is None:
                raise ValueError(sentence) from error
            skipped.append(sentence)
    if not problems:
        reason = f"; {skipped[0]}" if skipped else ""
        raise ValueError(f"{name}: no problem in it{reason}")
    return list(problems.values())


def _id(row: Mapping[str, Any], field: str, default: str) -> str:
    """Return the id that a row has; null is none, as tables have it in every row."""
    value = row.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float | str) or value == "":
        raise ValueError(
            f"field {field!r}, the problem's id, is {excerpt(value)}; text or a number is expected"
        )
    return str(value)


def candidates(task: Task, data: ConfigDict, seed: int) -> Sets:
    """Return the problems that the select stage screens, disjoint by id and by content.

    Args:
        data: the `data` section of the configuration.
        seed: of the generator.

    Raises:
        ValueError: a problem set cannot be used, or two different problems have the same id.
    """
    skipped: list[str] = []
    if data.path:
        train, heldout = _read_sets(task, data, skipped)
    else:
        train = task.generate("train", data.train_candidates, seed)
        heldout = []
        if data.heldout_candidates:
            heldout = task.generate("heldout", data.heldout_candidates, seed)
    heldout, overlap = _without(heldout, train)
    return Sets({"train": train, "heldout": heldout}, skipped, overlap)


def _read_sets(
    task: Task, data: ConfigDict, skipped: list[str]
) -> tuple[list[Problem], list[Problem]]:
    """Return the training and held-out problems of the sets that the configuration names."""
    options = {"id_field": data.id_field, "skipped": skipped if data.skip_bad else None}
    rows = read_problems(task, data.path, split=data.split, **options)
    problems = _filtered(rows, data)[: data.limit or None]
    if data.heldout_path:
        heldout_rows = read_problems(
            task, data.heldout_path, "data.heldout_path", data.heldout_split, **options
        )
        return problems, [problem for problem, _ in heldout_rows]
    # By a hash of the content, so that a problem stays on its side when rows are added, and one
    # that is there twice is on one side.
    train: list[Problem] = []
    heldout: list[Problem] = []
    for problem in problems:
        if _unit_hash(_content(problem)) < data.heldout_fraction:
            heldout.append(problem)
        else:
            train.append(problem)
    if not train:
        raise ValueError(
            f"data.heldout_fraction={data.heldout_fraction} leaves none of {len(problems)}"
            " problems to train on"
        )
    return train, heldout


def _filtered(rows: list[tuple[Problem, dict[str, Any]]], data: ConfigDict) -> list[Problem]:
    """Return the problems whose `data.filter_field` is a number in `data.filter_band`.

    All problems are returned if the configuration names no such field.
    """
    if not data.filter_field:
        return [problem for problem, _ in rows]
    low, high = data.filter_band
    values: list[float] = []
    for problem, row in rows:
        value = row.get(data.filter_field)
        if isinstance(value, bool) or not isinstance(value, int | float):
            fields = ", ".join(map(repr, row))
            raise ValueError(
                f"data.filter_field={data.filter_field!r}: problem {problem.id!r} has"
                f" {excerpt(value)} there, where a number is expected; its fields are {fields}"
            )
        values.append(value)
    inside = [p for (p, _), value in zip(rows, values, strict=True) if low <= value <= high]
    if not inside:
        raise ValueError(
            f"data.filter_band=({low}, {high}): none of {len(rows)} problems has its"
            f" {data.filter_field!r} inside; they go from {min(values)} to {max(values)}"
        )
    return inside


def _without(heldout: list[Problem], train: list[Problem]) -> tuple[list[Problem], list[str]]:
    """Drop the held-out problems that are trained on too.

    Returns the remaining problems and a sentence for each dropped one. Raises ValueError if two
    different problems have the same id.
    """
    train_ids = {problem.id for problem in train}
    id_by_content = {_content(problem): problem.id for problem in train}
    kept: list[Problem] = []
    overlap: list[str] = []
    for problem in heldout:
        same = id_by_content.get(_content(problem))
        if same is not None:
            overlap.append(f"held-out problem {problem.id!r} is training problem {same!r}")
        elif problem.id in train_ids:
            raise ValueError(
                f"id {problem.id!r} stands in the training set and in the held-out set; ids must"
                " differ"
            )
        else:
            kept.append(problem)
    return kept, overlap


def fingerprint(sets: dict[str, list[Problem]]) -> str:
    """Return 16 hex digits that identify the problems of all sets by ids and content, in order."""
    digest = hashlib.sha256()
    for name, problems in sets.items():
        for problem in problems:
            data = json.dumps(problem.data, sort_keys=True)
            digest.update(f"{name} {problem.id} {data}\n".encode())
    return digest.hexdigest()[:16]


def _content(problem: Problem) -> str:
    """Return a text that is equal for problems that ask the same.

    Differences in capitals and spaces are ignored, and so is the answer.
    """
    question = {
        field: " ".join(value.casefold().split()) if isinstance(value, str) else value
        for field, value in problem.data.items()
        if field != "answer"
    }
    return json.dumps(question, sort_keys=True)


def _unit_hash(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56
