"""The one log of a run of several processes: any of them appends, process 0 holds the file, and all
know what is in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefixrl_jax.corpus.sample_log import Log
from prefixrl_jax.runtime.processes import joined, on_primary


class SharedLog:
    """See `log.Log`, which it is when there is one process.

    Every process must open, share and close it at the same points.

    Attributes:
      records: the sound records found when the log was opened.
      dropped: one sentence for each damaged or torn line found then.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]):
        """Opens or creates the log; raises what `Log` raises, on every process."""
        self._log: Log | None = None
        self._pending: list[dict[str, Any]] = []
        self.records, self.dropped = on_primary(self._open, path, header)

    def _open(
        self, path: Path, header: Mapping[str, Any]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        self._log = Log(path, header)
        return self._log.records, self._log.dropped

    def append(self, record: dict[str, Any]) -> None:
        """Keeps a record of JSON values for the next `share`."""
        self._pending.append(record)

    def share(self, wait: bool = False) -> list[dict[str, Any]]:
        """Writes what all processes have appended since the last call; returns it, by process.

        wait: until the disk has it; otherwise `Log.flush` says when. Raises OSError on process 0 if
        it cannot be written.
        """
        pending, self._pending = joined(self._pending), []
        if self._log is not None:
            for record in pending:
                self._log.append(record)
            self._log.flush(wait)
        return pending

    def close(self) -> None:
        """Closes the file, once it has what process 0 has not shared yet; what another has not is
        lost.
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
