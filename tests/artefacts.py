"""The finished files of a work directory: which are gone or damaged, and two runs compared."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from prefixrl_jax.experiment.stages import STAGES
from tests.runs import differences, stage_result

# Half written files, and files that programs rotate or write for themselves.
UNFINISHED = (".partial", "orbax-checkpoint-tmp", "/events/", "/owner/", ".lock")
# What a run may change after it was whole; the rest of a work directory is written once.
APPENDED = re.compile(r"part-\d+\.jsonl|metrics\.jsonl")
REPLACED = (".html", ".png", ".md")
OLD_CHECKPOINT = re.compile(r"checkpoints/\d+$")


def inventory(workdir: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file that is meant to be whole, by its relative path."""
    files = {}
    for directory, _, names in os.walk(workdir):
        for name in names:
            path = Path(directory, name)
            relative = str(path.relative_to(workdir))
            if any(part in f"/{relative}" for part in UNFINISHED):
                continue
            try:
                with io.FileIO(path) as file:
                    files[relative] = hashlib.sha256(file.readall()).hexdigest()
            except FileNotFoundError:  # a thread of Orbax has removed it meanwhile
                continue
    return files


def lost(files: dict[str, str], workdir: Path) -> Iterator[str]:
    """Yields the files that were whole when a call failed and are gone or damaged afterwards."""
    now = inventory(workdir)
    for name, digest in files.items():
        path = workdir / name
        if now.get(name) == digest or _rotated(path):
            continue
        if name not in now:
            yield name
        elif path.suffix == ".json":
            try:
                json.loads(path.read_text())
            except ValueError:
                yield f"{name} (not JSON)"
        elif not APPENDED.fullmatch(path.name) and path.suffix not in REPLACED:
            yield f"{name} (changed)"


def _rotated(path: Path) -> bool:
    """Whether a file is of a checkpoint that newer ones have replaced."""
    for parent in path.parents:
        if parent.parent.name == "checkpoints" and parent.name.isdigit():
            steps = [int(p.name) for p in parent.parent.iterdir() if p.name.isdigit()]
            return not parent.exists() and max(steps, default=0) > int(parent.name)
    return False


def unlike(workdir: Path, expected: Path) -> list[str]:
    """Returns what of a finished run is not as in the run without faults."""
    problems = [f"{name} differs" for name in differences(workdir, expected)]
    for stage in STAGES:
        for kind in ("ledger", "spent"):
            bills = [stage_result(path, stage).get(kind) for path in (workdir, expected)]
            if bills[0] != bills[1]:
                problems.append(f"the {kind} of {stage} differs")
    files = [_names(path) for path in (workdir, expected)]
    problems += [f"{name} is missing" for name in sorted(files[1] - files[0])]
    # An old checkpoint that could not be deleted, after the last one was saved, does no harm.
    left = [name for name in sorted(files[0] - files[1]) if not OLD_CHECKPOINT.search(name)]
    return problems + [f"{name} is left behind" for name in left]


def _names(workdir: Path) -> set[str]:
    """The files of a run, but for those inside checkpoints, and those that every start adds to."""
    names = set()
    for path in workdir.rglob("*"):
        name = str(path.relative_to(workdir))
        inside, _, rest = name.partition("checkpoints/")
        if rest:
            names.add(f"{inside}checkpoints/{rest.split('/')[0]}")
        elif path.is_file() and path.parent.name not in ("events", "log", "owner"):
            names.add(name)
    return names
