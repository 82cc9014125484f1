"""Write an export into a folder, never at the cost of a file that no export wrote.

In an earlier export, files that are as its manifest says are replaced or removed; every other file
is never touched. Where one stands in the way, the folder is refused by name before anything is
computed (see export_target.py).

The new files are first written into the folder STAGING inside the target, then moved to their
places: a manifest that lists the old and the new files, the removal of config.json (no loader reads
a folder without), the files, config.json, the manifest of the new files alone. Whenever a process
is killed, the folder holds the old export, the new one, or one without config.json; the manifest
tells the next export which files it may replace.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefixrl_jax.model.export_target import (
    CONFIG,
    MANIFEST,
    PROGRAM,
    Content,
    check_foreign,
    check_place,
    check_runs,
    content_of,
    entries_of,
    is_inside,
    object_or_empty,
    previous_files,
    refuse_foreign,
)
from prefixrl_jax.runtime.files import write_json

STAGING = ".prefixrl_export.partial"
# Manifests on their way into the folder; write_json makes a file of the second name first.
_JOURNAL, _COMPLETE = "journal.json", "complete.json"
_OF_STAGING = {
    name + suffix for name in (MANIFEST, _JOURNAL, _COMPLETE) for suffix in ("", ".partial")
}
# safetensors writes a file under such a name and renames it.
_OF_SAFETENSORS = re.compile(r"\.tmp\w{6}")


def check_target(directory: str | Path, of_run: bool = False) -> None:
    """Check that an export can be written to a folder; nothing is written.

    Accepted are a folder that is not there yet, one without any of MODEL_FILES, and an earlier
    export whose files are unchanged. It takes the time of reading an earlier export once.

    Args:
        directory: the folder.
        of_run: accept the folder hf/ of a run, which its export stage writes.

    Raises:
        ValueError: `directory` is a file or a symbolic link; it holds a file that is not an earlier
            export's own; it is a run's work directory, in one, or directly above one; or another
            process is writing an export to it.
        OSError: it is not readable or not writable.
    """
    _checked(Path(directory), of_run)


def _checked(directory: Path, of_run: bool) -> dict[str, list[Content]]:
    """Return the files of the earlier export in a folder that passes `check_target`."""
    check_place(directory)
    check_runs(directory.resolve(), of_run)
    if not directory.exists():
        return {}
    previous = previous_files(directory)
    check_foreign(directory, previous)
    _check_leftover(directory / STAGING)
    return previous


class ExportWriter:
    """Writes one export: `begin`, then the files into `staging`, then `commit`.

    The constructor checks the folder as `check_target` does.

    Attributes:
        staging: the folder that takes the new files.
    """

    def __init__(self, directory: str | Path, of_run: bool = False):
        self._directory = Path(directory)
        self.staging = self._directory / STAGING
        self._names: list[str] = []
        self._previous = _checked(self._directory, of_run)
        self._stamps = {name: _stamp(self._directory / name) for name in self._previous}
        self._lock: int | None = None

    def begin(self, names: Iterable[str]) -> None:
        """Make the folder and its staging folder.

        Args:
            names: of the files to come, relative to the folder.

        Raises:
            ValueError: one of them would replace a file that is not an earlier export's own.
        """
        self._names = sorted(names)
        self._check_unclaimed()
        self._directory.mkdir(parents=True, exist_ok=True)
        _remove_staging(self.staging)
        self.staging.mkdir()
        write_json(self.staging / MANIFEST, _manifest({name: [] for name in self._names}))
        self._lock = _lock(self.staging / MANIFEST)
        for name in self._names:
            (self.staging / name).parent.mkdir(exist_ok=True)

    def commit(self) -> None:
        """Move the files to their places; they are an export from then on.

        Raises ValueError if a file that is to be replaced was changed since the folder was checked.
        """
        directory = self._directory
        new = {name: [content_of(self.staging / name)] for name in self._names}
        changed = [
            name for name, stamp in self._stamps.items() if _stamp(directory / name) != stamp
        ]
        if changed:
            raise ValueError(
                f"{directory}: {', '.join(changed)} changed while the export was prepared; export"
                " again when nobody else writes there"
            )
        self._check_unclaimed()
        both = {
            name: self._previous.get(name, []) + new.get(name, [])
            for name in self._previous.keys() | new.keys()
        }
        write_json(self.staging / _JOURNAL, _manifest(both))
        write_json(self.staging / _COMPLETE, _manifest(new))
        os.replace(self.staging / _JOURNAL, directory / MANIFEST)
        for name in sorted(self._previous, key=lambda name: name != CONFIG):
            if name == CONFIG or name not in new:
                _remove_file(directory, name)
        for name in sorted(new, key=lambda name: name == CONFIG):
            (directory / name).parent.mkdir(exist_ok=True)
            os.replace(self.staging / name, directory / name)
        os.replace(self.staging / _COMPLETE, directory / MANIFEST)
        self.discard()

    def discard(self) -> None:
        """Remove the staging folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        # What cannot be removed now, the next export removes.
        with contextlib.suppress(OSError, ValueError):
            _remove_staging(self.staging)

    def _check_unclaimed(self) -> None:
        """Raise ValueError naming the files of others in the places of the new ones."""
        taken = [
            name
            for name in self._names
            if name not in self._previous and os.path.lexists(self._directory / name)
        ]
        refuse_foreign(self._directory, taken)


# What a killed export left


def _check_leftover(staging: Path) -> None:
    """Raise ValueError unless a staging folder is one that a dead export left, or is not there."""
    if not os.path.lexists(staging):
        return
    announced = _announced_names(staging)
    foreign = [name for name in _names_below(staging) if not _is_of_staging(name, announced)]
    if staging.is_symlink() or not staging.is_dir() or foreign:
        raise ValueError(
            f"{staging}: {', '.join(foreign[:10]) or 'it'} was not left by an export; move it away"
        )
    if (staging / MANIFEST).exists():
        os.close(_lock(staging / MANIFEST))


def _is_of_staging(name: str, announced: set[str]) -> bool:
    """Return whether an export may have left a file of this name in its staging folder.

    Args:
        announced: what `_announced_names` returns.
    """
    return name in announced or bool(_OF_SAFETENSORS.fullmatch(name) and MANIFEST in announced)


def _announced_names(staging: Path) -> set[str]:
    """Return the names of the files that the manifest in a staging folder announces."""
    manifest = object_or_empty(staging / MANIFEST)
    files = manifest.get("files")
    if manifest.get("program") != PROGRAM or not isinstance(files, dict):
        return {f"{MANIFEST}.partial"}  # killed before it wrote anything else
    announced = {name for name in files if is_inside(name)}
    folders = {name.partition("/")[0] for name in announced}
    return announced | folders | {f"{name}.partial" for name in announced} | _OF_STAGING


def _names_below(directory: Path) -> list[str]:
    """Return the names of all files in a folder and in those one level below it."""
    names = []
    for entry in entries_of(directory):
        parts = entries_of(Path(entry.path)) if entry.is_dir(follow_symlinks=False) else []
        names += [f"{entry.name}/{part.name}" for part in parts] or [entry.name]
    return names


def _remove_staging(staging: Path) -> None:
    """Remove a staging folder that passes `_check_leftover`, its manifest last."""
    _check_leftover(staging)
    if not staging.exists():
        return
    names = [name for name in _names_below(staging) if name != MANIFEST]
    for name in names:
        path = staging / name
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            _remove_file(staging, name)
    (staging / MANIFEST).unlink(missing_ok=True)
    staging.rmdir()


def _lock(path: Path) -> int:
    """Lock a file for this process and return the descriptor, which holds the lock.

    Raises ValueError if a living process holds it. A file system without locks has none to hold.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(
            f"{path.parent.parent}: another process is writing an export there; wait for it, or"
            " give another folder"
        ) from None
    except OSError:
        pass
    return descriptor


# Files


def _manifest(files: dict[str, list[Content]]) -> dict[str, Any]:
    """Return the content of a manifest.

    Args:
        files: the contents that a file may have; several while an export is being replaced.
    """
    note = "The files of this export. The next export to this folder replaces them and no others."
    return {"program": PROGRAM, "version": 1, "note": note, "files": files}


def _stamp(path: Path) -> tuple[int, ...]:
    """Return what tells whether a file was written since; () if it is gone."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _remove_file(directory: Path, name: str) -> None:
    path = directory / name
    path.unlink(missing_ok=True)
    if path.parent != directory:
        with contextlib.suppress(OSError):  # not empty: others have files in it
            path.parent.rmdir()
