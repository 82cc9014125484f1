"""One log for all processes of a run: any process appends, process 0 holds the file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from prefixrl_jax.corpus.attempts import LoggedSamples
from prefixrl_jax.corpus.sample_log import Log
from prefixrl_jax.runtime.processes import joined, on_primary, primary

MESSAGE_BYTES = 1 << 20  # of what one process tells the others at once, or one problem's samples


class SharedLog:
    """A `Log` of samples to which several processes append; with one process it is just that.

    Every process must open, share and close it at the same points.

    Attributes:
        records: what the log had of every problem when it was opened, on every process.
        dropped: one sentence for everything that was damaged or missing then.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]):
        """Open the log with this header; there need not be one yet.

        Raises:
            ValueError, OSError: as `Log` does, on every process.
        """
        self._log: Log | None = None
        self._pending: list[dict[str, Any]] = []
        self.records = LoggedSamples()
        self.dropped: list[str] = on_primary(self._open, path, header)
        self._distribute()

    def _open(self, path: Path, header: Mapping[str, Any]) -> list[str]:
        """Open the files and read them once; runs on process 0 only."""
        self._log = Log(path, header)
        self._log.read(self.records.add)
        return self._log.dropped

    def _distribute(self) -> None:
        """Tell the other processes what process 0 has read, a message of bounded size at a time."""
        if jax.process_count() == 1:
            return
        rows = self.records.rows() if primary() else iter(())
        while batch := on_primary(_batch, rows):
            if not primary():
                for row in batch:
                    self.records.add_row(row)

    def append(self, record: dict[str, Any]) -> None:
        """Keep a record of JSON values in memory until the next `share`."""
        self._pending.append(record)

    def share(self, wait: bool = False) -> list[dict[str, Any]]:
        """Write what all processes have appended since the last call.

        Args:
            wait: whether to wait until the disk has it; see `Log.flush`.

        Returns:
            The records that were written, those of process 0 first.

        Raises:
            OSError: on process 0, if the file cannot be written.
        """
        pending = joined(self._pending)
        self._pending = []
        if self._log is not None:
            for record in pending:
                self._log.append(record)
            self._log.flush(wait)
        return pending

    def close(self) -> None:
        """Write what process 0 has not shared yet, and close the file.

        What another process has appended since the last `share` is lost: closing does not wait for
        the others, which may be gone.
        """
        if self._log is not None:
            for record in self._pending:
                self._log.append(record)
            self._pending = []
            self._log.close()

    def __enter__(self) -> SharedLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _batch(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take as many rows as make a message."""
    batch: list[dict[str, Any]] = []
    size = 0
    while size < MESSAGE_BYTES and (row := next(rows, None)) is not None:
        batch.append(row)
        size += len(json.dumps(row))
    return batch
