"""How a peer is asked: its process, which runs `server.serve`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any


class Peer:
    """A peer's process; what it prints goes into the file `log`."""

    def __init__(self, python: Path, script: str, folder: Path, log: Path):
        self._log = log
        with log.open("w") as out:
            self._process = subprocess.Popen(
                [str(python), str(Path(__file__).parent / script), str(folder)],
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
            )
        self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            status = self._process.wait()
            last_lines = self._log.read_text().splitlines()[-3:]
            message = f"{self._process.args}: the peer is gone (status {status})"
            raise RuntimeError("\n".join([message, *last_lines]))
        return json.loads(line)

    def ask(self, what: str, case: str) -> dict[str, Any]:
        """Make one call; return its "seconds" and its "result".

        Raises:
            RuntimeError: The call failed; with what the peer says of it.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, case]) + "\n")
        self._process.stdin.flush()
        if "error" in (answer := self._answer()):
            raise RuntimeError(f"{what}, {case}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
