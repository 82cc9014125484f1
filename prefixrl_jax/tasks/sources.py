"""Where problems come from: the task's generator, or a set that a user brings; and the checks on
both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import Any

from prefixrl_jax.tasks.rows import read_rows
from prefixrl_jax.tasks.task import Problem, Task


@dataclasses.dataclass(frozen=True)
class Sets:
    """The problems that select screens, and what became of those that it does not.

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
    """The problems of a set (see `rows.read_rows`), each with its row.

    An id is the row's `id_field`, or its place in the set.

    Raises ValueError naming place and field of a malformed row or of a duplicate id, unless a list
    `skipped` takes the sentence; and for a set without a problem.
    """
    found: dict[str, tuple[Problem, dict[str, Any]]] = {}
    stem = re.sub(r"\.\w+$", "", name.rsplit("/", 1)[-1])
    for where, row in read_rows(name, split, field):
        try:
            if isinstance(row, ValueError):
                raise row
            if not isinstance(row, dict):
                raise ValueError(f"{type(row).__name__} found where a JSON object is expected")
            problem = Problem(
                str(row.get(id_field, f"{stem}-{where.rsplit(' ', 1)[-1]}")), task.parse(row)
            )
            if problem.id in found:
                raise ValueError(f"id {problem.id!r} stands in an earlier row too; ids must differ")
            found[problem.id] = problem, row
        except ValueError as error:
            if skipped is None:
                raise ValueError(f"{where}: {error}") from error
            skipped.append(f"{where}: {error}")
    if not found:
        raise ValueError(f"{name}: no problem in it{'; ' + skipped[0] if skipped else ''}")
    return list(found.values())


def candidates(task: Task, data, seed: int) -> Sets:
    """The problems that select screens, disjoint by id and by content.

    data: the `data` section of the configuration. Without `heldout_path` a set is divided by a hash
    of the problems' content, so a problem stays on its side when rows are added, and one that
    stands there twice is on one side. Raises ValueError when ids of the two sets are equal and the
    problems are not.
    """
    skipped: list[str] = []
    if not data.path:
        sets = {"train": task.generate("train", data.train_candidates, seed)}
        sets["heldout"] = (
            task.generate("heldout", data.heldout_candidates, seed)
            if data.heldout_candidates
            else []
        )
    else:
        options = {"id_field": data.id_field, "skipped": skipped if data.skip_bad else None}
        rows = _filtered(read_problems(task, data.path, split=data.split, **options), data)[
            : data.limit or None
        ]
        if data.heldout_path:
            held = read_problems(
                task, data.heldout_path, "data.heldout_path", data.heldout_split, **options
            )
            sets = {"train": rows, "heldout": [problem for problem, _ in held]}
        else:
            sides = {p.id: _unit_hash(_content(p)) < data.heldout_fraction for p in rows}
            sets = {
                "train": [p for p in rows if not sides[p.id]],
                "heldout": [p for p in rows if sides[p.id]],
            }
            if not sets["train"]:
                raise ValueError(
                    f"data.heldout_fraction={data.heldout_fraction} leaves none of {len(rows)}"
                    " problems to train on"
                )
    sets["heldout"], overlap = _without(sets["heldout"], sets["train"])
    return Sets(sets, skipped, overlap)


def fitting(sets: Sets, task: Task, largest: int, prefix: int, skip_bad: bool) -> Sets:
    """The sets without the problems whose prompt, with a prefix of `prefix` tokens behind it, is
    longer than `largest` tokens.

    Those are refused with a ValueError, or with `skip_bad` listed as skipped.
    """
    skipped, problems = list(sets.skipped), {}
    for name, found in sets.problems.items():
        sizes = [len(task.render(p)) for p in found]
        problems[name] = [p for p, n in zip(found, sizes, strict=True) if n + prefix <= largest]
        for p, n in zip(found, sizes, strict=True):
            if n + prefix > largest:
                sentence = (
                    f"problem {p.id!r} renders to {n} tokens, and a prefix may have {prefix}; the"
                    f" largest of sampling.context_buckets is {largest}"
                )
                if not skip_bad:
                    raise ValueError(sentence)
                skipped.append(sentence)
    if not problems["train"]:
        raise ValueError(f"no problem is left to train on: {skipped[-1]}")
    return Sets(problems, skipped, sets.overlap)


def _filtered(rows: list[tuple[Problem, dict[str, Any]]], data) -> list[Problem]:
    """The problems whose `data.filter_field` is a number in `data.filter_band`; all of them without
    such a field.
    """
    if not data.filter_field:
        return [problem for problem, _ in rows]
    low, high = data.filter_band
    values: list[float] = []
    for problem, row in rows:
        value = row.get(data.filter_field)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(
                f"data.filter_field={data.filter_field!r}: problem {problem.id!r} has {value!r}"
                f" there, where a number is expected; its fields are {', '.join(map(repr, row))}"
            )
        values.append(value)
    if not (
        kept := [p for (p, _), value in zip(rows, values, strict=True) if low <= value <= high]
    ):
        raise ValueError(
            f"data.filter_band=({low}, {high}): none of {len(rows)} problems has its"
            f" {data.filter_field!r} inside; they go from {min(values)} to {max(values)}"
        )
    return kept


def _without(heldout: list[Problem], train: list[Problem]) -> tuple[list[Problem], list[str]]:
    """The held-out problems that are not trained on, and a sentence for each other; capitals and
    spaces make no problem new.
    """
    known, ids = {_content(p): p.id for p in train}, {p.id for p in train}
    kept, overlap = [], []
    for p in heldout:
        if (other := known.get(_content(p))) is not None:
            overlap.append(f"held-out problem {p.id!r} is training problem {other!r}")
        elif p.id in ids:
            raise ValueError(
                f"id {p.id!r} stands in the training set and in the held-out set; ids must differ"
            )
        else:
            kept.append(p)
    return kept, overlap


def fingerprint(sets: dict[str, list[Problem]]) -> str:
    """16 hex digits that identify the problems of all sets, ids and content, in order."""
    digest = hashlib.sha256()
    for name, problems in sets.items():
        for p in problems:
            digest.update(f"{name} {p.id} {json.dumps(p.data, sort_keys=True)}\n".encode())
    return digest.hexdigest()[:16]


def _content(problem: Problem) -> str:
    """What a problem asks, without what only sets apart two writings of it."""
    question = {
        k: " ".join(v.casefold().split()) if isinstance(v, str) else v
        for k, v in problem.data.items()
        if k != "answer"
    }
    return json.dumps(question, sort_keys=True)


def _unit_hash(name: str) -> float:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big") / 2**56
