"""One owner a work directory: two processes that write into one would damage each other's files.

The owner's name is in the newest file of DIRECTORY/owner, 00000001.json and so on. A process takes
a directory over by creating the next file, which fails if it exists, so that of two processes one
wins. It needs no more than a store of whole files offers: create if absent, list, read, replace,
and the time of the last write. This module imports no jax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

HEARTBEAT = 10.0  # seconds between two signs of life
DEAD_AFTER = 60.0  # seconds without one, by the clock of the file system
RELEASED = "released"
_NAME = re.compile(r"[0-9]{8,18}\.json")


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that writes into a directory.

    Attributes:
        token: drawn; tells an owner from all others.
        host: name of the machine, for the reader.
        machine: identifies the machine since it was started, and what numbers its processes.
        pid: process id.
        process_started: when its process was, in the system's own words.
        inode: of the directory it owns, which a copy of the directory does not have.
        state: "" while it lives, RELEASED once it has ended in order.
    """

    token: str
    host: str
    machine: str
    pid: int
    process_started: str
    inode: int = 0
    state: str = ""

    @classmethod
    def this_process(cls, directory: Path) -> Owner:
        """Return this process as the owner of a directory."""
        pid, token = os.getpid(), secrets.token_hex(8)
        inode = directory.stat().st_ino
        return cls(token, platform.node(), _machine(), pid, _started(pid), inode)

    @classmethod
    def parse(cls, text: str) -> Owner:
        """Return the owner that a file names; raise ValueError if it names none."""
        fields = json.loads(text)
        owner = cls(**fields) if isinstance(fields, dict) else UNKNOWN
        for field in dataclasses.fields(cls):
            value = getattr(owner, field.name)
            if not isinstance(value, int if field.name in ("pid", "inode") else str):
                raise ValueError(f"{field.name} is {value!r}")
        if not 0 < owner.pid < 2**31 or isinstance(owner.pid, bool):
            raise ValueError(f"pid is {owner.pid}")
        return owner

    def on_this_machine(self) -> bool:
        """Return whether the process ids of the owner are those seen here."""
        return self.machine == _machine()

    def runs(self) -> bool:
        """Return whether the owner's process is alive; it must be on this machine."""
        return bool(self.process_started) and _started(self.pid) == self.process_started


def _started(pid: int) -> str:
    """When a process was started; "" if it has ended."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists():  # in ticks since the machine's start, which no change of its clock moves
            return stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        return f"{process.create_time():.2f}"
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return ""


def _machine() -> str:
    """What must agree for two processes to see each other: machine, its start, pid namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    started = (
        boot.read_text(encoding="utf-8").strip() if boot.exists() else f"{psutil.boot_time():.0f}"
    )
    numbered_in = os.readlink(namespace) if namespace.is_symlink() else ""
    return " ".join(filter(None, (platform.node(), started, numbered_in)))


UNKNOWN = Owner("", "an unknown machine", "", 0, "")


class InUse(ValueError):
    """Another process, which is alive, owns the directory."""


class LostOwnership(OSError):
    """Another process has taken the directory over, taking this one for dead."""


class Ownership:
    """The files that say who owns a directory."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._files = directory / "owner"
        self._own: Owner | None = None
        self._number = 0

    def acquire(
        self, tell: Callable[[str], None], pause: Callable[[float], None] = time.sleep
    ) -> None:
        """Make this process the owner.

        An owner on this machine is taken over once its process has ended, at once; one elsewhere,
        once it has given no sign of life for DEAD_AFTER seconds, for which this waits.

        Args:
            tell: is called with a sentence if this has to wait, or takes over.
            pause: waits for so many seconds; what it raises ends the waiting.

        Raises:
            InUse: the owner is alive; it is named.
            OSError: the directory cannot be written.
        """
        self._files.mkdir(parents=True, exist_ok=True)
        while True:
            number, owner = self._newest()
            if owner is not None and owner.state != RELEASED:
                self._require_dead(number, owner, tell, pause)
                tell(f"{self._directory}: taken over from {_described(owner)}, which has ended")
            if self._create(number + 1):
                return

    def _require_dead(
        self, number: int, owner: Owner, tell: Callable[[str], None], pause: Callable[[float], None]
    ) -> None:
        """Raise InUse if the owner is alive; wait until that is certain."""
        advice = "wait until it has ended, stop it, or use another --workdir"
        if owner.on_this_machine():
            # In a copy of a directory the owner is that of the original.
            of_original = owner.inode not in (0, self._directory.stat().st_ino)
            if owner.runs() and not of_original:
                raise InUse(f"{self._directory} is in use by {_described(owner)}; {advice}")
            return
        silence = self._silence(number)
        if silence >= DEAD_AFTER:
            return
        tell(
            f"{self._directory} may be in use by {_described(owner)}; waiting for up to"
            f" {DEAD_AFTER:.0f} s to see whether it is alive"
        )
        before = self._written(number)
        began = time.monotonic()
        # The second clock is for a file with a time that is yet to come.
        while silence < DEAD_AFTER and time.monotonic() - began < DEAD_AFTER:
            pause(min(1.0, HEARTBEAT / 4))
            if self._newest()[0] != number or self._written(number) != before:
                raise InUse(f"{self._directory} is in use by {_described(owner)}; {advice}")
            silence = self._silence(number)

    def _written(self, number: int) -> float:
        """When the file was written last, by the clock of the file system; 0 if it is gone."""
        try:
            return self._path(number).stat().st_mtime
        except FileNotFoundError:  # another process has taken over
            return 0.0

    def _silence(self, number: int) -> float:
        """Seconds since the owner's last sign of life, by the clock of the file system."""
        probe = self._files / f"clock-{secrets.token_hex(4)}"
        try:
            probe.touch()
            return probe.stat().st_mtime - self._written(number)
        finally:
            probe.unlink(missing_ok=True)

    def _create(self, number: int) -> bool:
        """Create the file of this number for this process; return whether it is the owner now."""
        self._number = number
        self._own = Owner.this_process(self._directory)
        content = json.dumps(dataclasses.asdict(self._own)).encode()
        try:
            file = os.open(self._path(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        try:
            os.write(file, content)
            os.fsync(file)
        except OSError:
            self._path(number).unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        # A process that was slow may create a number that others have passed already.
        if self._newest()[0] != number:
            self._path(number).unlink(missing_ok=True)
            return False
        for earlier in self._numbers():
            if earlier < number:
                self._path(earlier).unlink(missing_ok=True)
        return True

    def beat(self) -> None:
        """Give a sign of life.

        Raises LostOwnership if another process is the owner now.
        """
        number, owner = self._newest()
        if number != self._number or owner is None or owner.token != self._token:
            raise LostOwnership(
                f"{self._directory} was taken over by"
                f" {_described(owner) if owner else 'another process'}, as this process gave no"
                f" sign of life for {DEAD_AFTER:.0f} s; it writes nothing more"
            )
        os.utime(self._path(number))

    @property
    def _token(self) -> str:
        assert self._own is not None
        return self._own.token

    def release(self) -> None:
        """Leave the directory to the next process. The file stays, so that numbers only grow."""
        number, owner = self._newest()
        if owner is None or number != self._number or owner.token != self._token:
            return
        assert self._own is not None
        content = json.dumps(dataclasses.asdict(dataclasses.replace(self._own, state=RELEASED)))
        partial = self._path(number).with_suffix(".partial")
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, self._path(number))

    def _path(self, number: int) -> Path:
        return self._files / f"{number:08d}.json"

    def _numbers(self) -> list[int]:
        names = (path.name for path in self._files.iterdir())
        return sorted(int(name.removesuffix(".json")) for name in names if _NAME.fullmatch(name))

    def _newest(self) -> tuple[int, Owner | None]:
        """The newest file's number and owner; (0, None) if there is none.

        A file that cannot be read as an owner is that of a process which was killed, or is just
        about to write it: it counts as an owner elsewhere.
        """
        numbers = self._numbers()
        if not numbers:
            return 0, None
        try:
            text = self._path(numbers[-1]).read_text(encoding="utf-8")
            return numbers[-1], Owner.parse(text)
        except (FileNotFoundError, ValueError, TypeError, RecursionError):
            return numbers[-1], UNKNOWN


def _described(owner: Owner) -> str:
    return f"process {owner.pid} on {owner.host}" if owner.pid else "a process that left no name"


@contextlib.contextmanager
def owned(
    directory: Path,
    tell: Callable[[str], None],
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Own a directory while the body runs.

    Should another process take it over, which it does only if this one was halted for a minute,
    this process ends at once with status 3.

    Args:
        directory: is created if it does not exist.
        tell, pause: as for `Ownership.acquire`.
    """
    ownership = Ownership(directory)
    ownership.acquire(tell, pause)
    done = threading.Event()

    def give_signs_of_life() -> None:
        while not done.wait(HEARTBEAT):
            try:
                ownership.beat()
            except LostOwnership as error:
                tell(f"error: {error}")
                os._exit(3)
            except OSError as error:  # the next one may succeed; the rule of a minute stands
                tell(f"{directory}: no sign of life could be given: {error}")

    thread = threading.Thread(target=give_signs_of_life, name="owner", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(OSError):  # a full disk: the process ends, and so does its claim
            ownership.release()
