"""Where problems come from: the task's generator, or a JSONL file that a user brings; and the checks on both."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from prefixrl_jax.tasks.task import Problem, Task


def read_jsonl(task: Task, path: str, field: str = "data.path") -> list[Problem]:
    """Problems from the JSONL file that `field` of the configuration names: one object a line, with an optional "id" (default:
    the line's number).

    Raises ValueError naming file, line and field of a malformed row, of a duplicate id, or for an empty file.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{field}={path!r}: no such file")
    problems: dict[str, Problem] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"{type(row).__name__} found where a JSON object is expected")
            problem = Problem(str(row.get("id", f"{file.stem}-{number}")), task.parse(row))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        if problem.id in problems:
            raise ValueError(f"{path}, line {number}: id {problem.id!r} stands in an earlier line too; ids must differ")
        problems[problem.id] = problem
    if not problems:
        raise ValueError(f"{path}: no problem in the file; one JSON object a line is expected")
    return list(problems.values())


def candidates(task: Task, data, seed: int) -> dict[str, list[Problem]]:
    """{"train": [...], "heldout": [...]}: the problems that select screens, disjoint by id and by content.

    data: the `data` section of the configuration. Without `heldout_path` a file is divided by a hash of the ids, so a
    problem stays on its side when rows are added. Raises ValueError when a problem stands in both sets.
    """
    if not data.path:
        sets = {"train": task.generate("train", data.train_candidates, seed)}
        sets["heldout"] = task.generate("heldout", data.heldout_candidates, seed) if data.heldout_candidates else []
    else:
        rows = read_jsonl(task, data.path)[: data.limit or None]
        if data.heldout_path:
            sets = {"train": rows, "heldout": read_jsonl(task, data.heldout_path, "data.heldout_path")}
        else:
            held = {p.id for p in rows if _unit_hash(p.id) < data.heldout_fraction}
            sets = {"train": [p for p in rows if p.id not in held], "heldout": [p for p in rows if p.id in held]}
            if not sets["train"]:
                raise ValueError(f"data.heldout_fraction={data.heldout_fraction} leaves none of {len(rows)} problems to train on")
    content, ids = {_content(p): p.id for p in sets["train"]}, {p.id for p in sets["train"]}
    for p in sets["heldout"]:
        if p.id in ids:
            raise ValueError(f"id {p.id!r} stands in the training set and in the held-out set; ids must differ")
        if (other := content.get(_content(p))) is not None:
            raise ValueError(f"held-out problem {p.id!r} is training problem {other!r}: the sets must not share problems")
    return sets


def fingerprint(sets: dict[str, list[Problem]]) -> str:
    """16 hex digits that identify the problems of all sets, ids and content, in order."""
    digest = hashlib.sha256()
    for name, problems in sets.items():
        for p in problems:
            digest.update(f"{name} {p.id} {_content(p)}\n".encode())
    return digest.hexdigest()[:16]


def _content(problem: Problem) -> str:
    return json.dumps(problem.data, sort_keys=True)


def _unit_hash(name: str) -> float:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big") / 2**56
