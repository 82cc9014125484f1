"""Read traces from elsewhere: a JSONL file of (problem, trace), or another run's corpus.

A line is {"problem": id or question, "trace": text}, and may have "flops": what the trace has cost,
in paper accounting. A trace in the run's own tokens has "token_ids", and in "tokenizer" the
fingerprint of the tokenizer they are of. Any other is tokenised here, once, and marked foreign: it
is cut by the new ids, which need not be those that the model would write.

The corpus of a run is its folder corpus/dataset; the model may have been another one, the tokenizer
must be the same. Each of its traces costs an equal share of all that run's collecting, the problems
that stayed without one included.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from prefixrl_jax.model import tokenizer as tokenizers
from prefixrl_jax.model.encoding import encode_all
from prefixrl_jax.runtime.files import checksum, read_object
from prefixrl_jax.runtime.memo import Memo, memo_key
from prefixrl_jax.runtime.watch import watched
from prefixrl_jax.tasks.rows import Row, count_rows, excerpt, one_line, read_rows
from prefixrl_jax.tasks.task import Task

FIELD = "collect.traces_path"
BATCH = 1000  # traces tokenised at a time
LARGEST_COST = 1e50  # FLOPs of a line: sums of them stay finite
# Of what `read_lines` makes of a file; to be raised when that changes, so that no memo is believed.
READING = 1


@dataclasses.dataclass(frozen=True)
class ImportedLine:
    """One line of the file.

    Attributes:
        number: of the line, from 1; its sample id in the log.
        problem: id or question of the problem it names.
        token_ids: of the trace, its end included.
        source: "imported" if the ids came with the line, else "foreign".
        flops: what the trace has cost, paper accounting.
    """

    number: int
    problem: str
    token_ids: list[int]
    source: str
    flops: float


class TraceFile:
    """The file or dataset that `collect.traces_path` names."""

    def __init__(self, path: str, task: Task, memo: Memo):
        """Read nothing yet.

        Args:
            path: its name.
            task: its tokenizer makes the token ids.
            memo: knows the fingerprint of the same file from an earlier start.
        """
        self.path = path
        self._task = task
        self._memo = memo
        self._lines: list[ImportedLine] | None = None

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that identify the lines; they are read unless the memo knows them."""
        if not Path(self.path).exists():  # a name on a hub has no checksum
            return lines_fingerprint(self._read())
        key = self._key()
        remembered = self._memo.get("traces", key)
        if remembered is not None:
            return remembered
        fingerprint = lines_fingerprint(self._read())
        # Not if the file was changed meanwhile: the key would be of other lines.
        if self._key() == key:
            self._memo.put("traces", key, fingerprint)
        return fingerprint

    @property
    def lines(self) -> list[ImportedLine]:
        """The lines; raises ValueError if they are not those of the fingerprint any more."""
        if self._lines is None and lines_fingerprint(self._read()) != self.fingerprint:
            raise ValueError(
                f"{FIELD}={self.path!r}: the file was changed while the run was going on; start the"
                " run again with a file that nothing writes to"
            )
        return self._read()

    def _read(self) -> list[ImportedLine]:
        if self._lines is None:
            self._lines = read_lines(self.path, self._task)
        return self._lines

    def _key(self) -> str:
        tokenizer = tokenizers.fingerprint(self._task.tokenizer)
        return memo_key(READING, checksum(Path(self.path)), tokenizer, list(self._task.stop_ids))


def read_lines(path: str, task: Task) -> list[ImportedLine]:
    """Read the lines of the file, or of the dataset.

    Raises ValueError naming line and field of a malformed one.
    """
    tokenizer = tokenizers.fingerprint(task.tokenizer)
    common = _common_to_corpus(Path(path), tokenizer)
    rows = watched(read_rows(path, "train", FIELD), f"reading {FIELD}", count_rows(path))
    lines: list[ImportedLine] = []
    texts: dict[int, str] = {}  # traces that are not tokenised yet, by index in `lines`
    for number, row in enumerate(rows, start=1):
        line, text = _parse(number, row, common, task, tokenizer)
        lines.append(line)
        if text is not None:
            texts[number - 1] = text
        if len(texts) == BATCH:
            _tokenise(lines, texts, task)
    _tokenise(lines, texts, task)
    if not lines:
        raise ValueError(f"{FIELD}={path!r}: no trace in it")
    return lines


def _parse(
    number: int, row: Row, common: dict[str, Any], task: Task, tokenizer: str
) -> tuple[ImportedLine, str | None]:
    """Return a row's line, and its text if its token ids are yet to be had from that."""
    place, fields = row
    try:
        if isinstance(fields, ValueError):
            raise fields
        if not isinstance(fields, dict):
            raise ValueError(f"expected a JSON object, found {type(fields).__name__}")
        if common:
            fields = {"problem": fields.get("problem_id")} | fields | common
        problem = _text(fields, "problem").strip()
        if "token_ids" in fields and fields.get("tokenizer") == tokenizer:
            token_ids = _ended(_token_ids(fields, len(task.tokenizer)), task)
            return ImportedLine(number, problem, token_ids, "imported", _flops(fields)), None
        text = _text(fields, "trace")
        return ImportedLine(number, problem, [], "foreign", _flops(fields)), text
    except ValueError as error:
        raise ValueError(f"{place}: {one_line(error)}") from error


def _tokenise(lines: list[ImportedLine], texts: dict[int, str], task: Task) -> None:
    """Give the lines at these indices the token ids of their texts; empties `texts`."""
    encoded = encode_all(task.tokenizer, list(texts.values()))
    for index, ids in zip(texts, encoded, strict=True):
        lines[index] = dataclasses.replace(lines[index], token_ids=_ended(ids, task))
    texts.clear()


def _ended(ids: list[int], task: Task) -> list[int]:
    """Return token ids with an id that ends the response."""
    return ids if ids and ids[-1] in task.stop_ids else [*ids, task.stop_ids[0]]


def _common_to_corpus(path: Path, tokenizer: str) -> dict[str, Any]:
    """Return the fields that all traces of a run's dataset share; none for any other file."""
    if not (path / "metadata.json").is_file():
        return {}
    metadata = read_object(path / "metadata.json")
    if metadata.get("tokenizer") != tokenizer:
        raise ValueError(
            f"{FIELD}={str(path)!r}: its token ids are of tokenizer"
            f" {str(metadata.get('tokenizer'))[:80]}, and those of this run of {tokenizer}; lines"
            " of {'problem': id or question, 'trace': text} are accepted from any model"
        )
    common: dict[str, Any] = {"tokenizer": tokenizer}
    totals = metadata.get("statistics")
    if isinstance(totals, dict) and "collect_flops" in totals:
        flops, solved = totals["collect_flops"], totals.get("solved")
        if not _is_cost(flops) or type(solved) is not int or solved < 1:
            raise ValueError(
                f"{path / 'metadata.json'}: collect_flops={excerpt(flops)} and"
                f" solved={excerpt(solved)} in its statistics; a number of FLOPs, at least 0, and a"
                " number of traces, at least 1, are expected"
            )
        common["flops"] = flops / solved
    return common


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"field {field!r} is missing, empty or no text; a line is {{'problem': id or question,"
            " 'trace': text}"
        )
    return value


def _flops(row: Mapping[str, Any]) -> float:
    flops = row.get("flops", 0.0)
    if not _is_cost(flops):
        raise ValueError(
            f"field 'flops' is {excerpt(flops)}; a number, at least 0 and at most {LARGEST_COST:g},"
            " is expected"
        )
    return float(flops)


def _is_cost(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= LARGEST_COST


def _token_ids(row: Mapping[str, Any], size: int) -> list[int]:
    """Return the token ids that a row has, of a tokenizer with `size` ids."""
    ids = row["token_ids"]
    # By type, since True is an int too.
    is_list = isinstance(ids, list) and bool(ids)
    if not is_list or not all(type(i) is int and 0 <= i < size for i in ids):
        raise ValueError(f"field 'token_ids': ids from 0 to {size - 1} are expected, at least one")
    return ids


def lines_fingerprint(lines: Sequence[ImportedLine]) -> str:
    """Return 16 hex digits that identify the lines."""
    digest = hashlib.sha256()
    separator = "["
    for line in lines:
        fields = [line.number, line.problem, line.token_ids, line.source, line.flops]
        digest.update(f"{separator}{json.dumps(fields)}".encode())
        separator = ", "
    digest.update(b"]")
    return digest.hexdigest()[:16]
