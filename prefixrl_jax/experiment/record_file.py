"""The file of one stage's record, which shows whether it is as it was written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from prefixrl_jax.runtime.files import read_object, write_json

Record = dict[str, Any]
CHECKSUM = "checksum"  # of all other entries; records of version 0.1.0 have none


def write_record(path: Path, record: Record) -> None:
    """Write a record of JSON values with its checksum."""
    # As it will be read: lists for tuples, text for numbers that are keys.
    record = json.loads(json.dumps(record))
    record.pop(CHECKSUM, None)
    write_json(path, {**record, CHECKSUM: _checksum(record)})


def read_record(path: Path, stage: str) -> Record:
    """Return a record; raise ValueError if the file holds none, or not as it was written."""
    try:
        record = read_object(path)
        if not isinstance(record.get("fields"), dict):
            raise ValueError(f"{path}: it has no fields")
        if not isinstance(record.get("complete"), bool):
            raise ValueError(f"{path}: it does not say whether the stage is complete")
        if record.pop(CHECKSUM, None) not in (None, _checksum(record)):
            raise ValueError(f"{path}: its checksum is another")
        return record
    except ValueError as error:
        raise ValueError(
            f"{error}. It should be the record of a stage, as it was written; put it back from a"
            f" copy, or move it away: the {stage} stage then goes on from what it has left"
        ) from error


def _checksum(record: Record) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
