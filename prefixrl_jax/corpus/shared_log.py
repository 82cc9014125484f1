"""One log for all processes of a run: any process appends, process 0 holds the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefixrl_jax.corpus.sample_log import Log
from prefixrl_jax.runtime.processes import joined, on_primary


class SharedLog:
    """A `Log` to which several processes append; with one process it is just that.

    Every process must open, share and close it at the same points.

    Attributes:
        records: the sound records that the log had when it was opened, on every process.
        dropped: one sentence for each damaged or torn line that it had then.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]):
        """Open the log, or create it with this header.

        Raises:
            ValueError, OSError: as `Log` does, on every process.
        """
        self._log: Log | None = None
        self._pending: list[dict[str, Any]] = []
        self.records, self.dropped = on_primary(self._open, path, header)

    def _open(
        self, path: Path, header: Mapping[str, Any]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Open the file and return its records and dropped lines; runs on process 0 only."""
        self._log = Log(path, header)
        return self._log.records, self._log.dropped

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
