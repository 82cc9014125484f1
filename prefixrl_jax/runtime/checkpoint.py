"""Save and restore the train state with Orbax, asynchronously.

The newest N checkpoints and the best one are kept. Each holds the arrays of the state and a JSON
sidecar, which together are all that the next step reads: parameters, optimizer state, step (the
data cursor and the seed of the step's noise), and the FLOPs ledger.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from prefixrl_jax.runtime.console import say
from prefixrl_jax.runtime.files import set_aside
from prefixrl_jax.runtime.fingerprint import tree_fingerprint
from prefixrl_jax.runtime.processes import agree, on_primary

CHECKSUM = "checksum"  # of the state, in the sidecar
ATTEMPTS = 2  # to read a checkpoint before it is taken for damaged
STEP = "step"  # likewise
BEST = "score"  # name of the metric by which the best checkpoint is kept


class Damaged(ValueError):
    """A checkpoint all of whose files can be read, but not as what they should be."""


def check_path(path: Path) -> None:
    """Raise ValueError for a path at which Orbax would read or write other files, or none.

    It takes the characters * ? [ ] and \\ for patterns, and a part that ends in a colon for the
    name of an object store.
    """
    whole = str(path.absolute())
    wrong = sorted(set("*?[]\\") & set(whole))
    parts = [part for part in path.absolute().parts if part.endswith(":")]
    if not whole.isprintable():
        wrong.append("a character that cannot be printed")
    if wrong or parts:
        raise ValueError(
            f"{whole!r}: checkpoints cannot be kept in a path with {' '.join([*wrong, *parts])};"
            " use a directory, on a local or a mounted disk, with another name"
        )


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _first_unreadable(directory: Path) -> str:
    """The error of the first file that the system cannot read; "" if it can read all."""

    def stop(error: OSError) -> None:
        raise error

    try:
        for folder, _, names in os.walk(directory, onerror=stop):
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    while file.read(1 << 24):
                        pass
    except FileNotFoundError:  # is no more there, and so no reading error
        return ""
    except OSError as error:
        return str(error)
    return ""


class Checkpoints:
    """The checkpoints of one run.

    Use as a context manager, or call `close` to wait for the last save.
    """

    def __init__(self, directory: Path, keep: int = 2, read_only: bool = False):
        """Open the checkpoints in `directory`; it is created if it does not exist.

        Args:
            directory: holds one subdirectory a step.
            keep: how many of the newest checkpoints to keep, besides the best.
            read_only: whether nothing is created, renamed or removed, whatever is there.

        Raises ValueError for a path that Orbax would misread.
        """
        check_path(directory)
        latest = checkpoint_managers.LatestN(n=keep)
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics[BEST],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        with _without_warnings():  # Orbax warns that what is read only is read only
            options = ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy([latest, best]),
                enable_async_checkpointing=True,
                create=not read_only,
                read_only=read_only,
            )
            self._manager = ocp.CheckpointManager(directory.absolute(), options=options)
        self._directory = directory
        self._read_only = read_only
        self._last_step = 0  # of the save that was started last

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def save(
        self, step: int, state: Any, sidecar: dict[str, Any], score: float | None = None
    ) -> None:
        """Start saving a step, and return before it is on disk.

        A step that already has a checkpoint is not saved again.

        Args:
            step: number of steps done.
            state: a pytree of arrays.
            sidecar: JSON values.
            score: the higher, the better; a checkpoint whose score is None or not finite is never
                the best.

        Raises:
            OSError: the checkpoint could not be written. As saving is asynchronous, the error may
                come only at the next call of `save`, `wait` or `close`.
            JaxRuntimeError: another process of the run is gone.
        """
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            sidecar=ocp.args.JsonSave({**sidecar, CHECKSUM: tree_fingerprint(state), STEP: step}),
        )
        metrics = None
        if score is not None and math.isfinite(score):
            metrics = {BEST: float(score)}
        with self._failures_as_oserror():
            self._manager.save(step, args=args, metrics=metrics)
        self._last_step = step

    def steps(self) -> list[int]:
        """Return the steps that have a finished checkpoint, in ascending order.

        Raises OSError if the directory cannot be read now.
        """
        names = os.listdir(self._directory) if self._directory.exists() else []
        if {int(name) for name in names if name.isdigit()} - set(self._manager.all_steps()):
            self._manager.reload()  # Orbax leaves out what it could not read when it was opened
        return sorted(self._manager.all_steps())

    def restore(
        self, abstract: Any, step: int | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Load the checkpoint of `step`, or the newest one that is sound.

        Nothing is deleted. A checkpoint that is damaged is passed over, and once an older one has
        been loaded it is renamed to STEP.damaged and named on the console: its step is made again.

        Args:
            abstract: the state as ShapeDtypeStructs with shardings. The mesh may differ from the
                one on which the state was saved.
            step: the step to load; None for the newest.

        Returns:
            (step, state, sidecar), or None if there is no checkpoint.

        Raises:
            ValueError: `step` is not there or damaged, or, without a step, all checkpoints are.
            OSError: a file cannot be read, which says nothing about the checkpoint.
        """
        steps = self.steps()
        if step is not None and step not in steps:
            kept = ", ".join(map(str, steps)) or "none"
            raise ValueError(f"{self._directory}: no checkpoint of step {step}; kept are {kept}")
        candidates = steps[::-1] if step is None else [step]
        damage: dict[int, str] = {}
        for candidate in candidates:
            try:
                restored = self._restore(candidate, abstract)
            except Damaged as error:
                damage[candidate] = str(error)
                continue
            for damaged_step in damage:
                self._set_aside(damaged_step, damage[damaged_step])
            return candidate, *restored
        if damage:
            first = next(iter(damage))
            which = f"checkpoint {first}" if step is not None else "every checkpoint"
            raise ValueError(
                f"{self._directory}: {which} is damaged; nothing was deleted ({damage[first]})"
            )
        return None

    def read_back(self, step: int, abstract: Any) -> Any:
        """Wait for the checkpoint of a step, and return its state.

        Orbax may take a directory whose arrays it could not write for finished. A damaged one is
        renamed, so that the step is made again.

        Raises OSError if it cannot be read back.
        """
        self.wait()
        try:
            state, _ = self._restore(step, abstract)
            return state
        except Damaged as error:
            self._set_aside(step, str(error))
            raise OSError(
                f"the checkpoint of step {step} was not written to {self._directory} as it should"
                f" be; those before it are intact: {error}"
            ) from error

    def _restore(self, step: int, abstract: Any) -> tuple[Any, dict[str, Any]]:
        """State and sidecar of one checkpoint, which is tried twice.

        Raises:
            Damaged: all its files can be read, but not as what they should be.
            OSError: one cannot be read now.
        """
        for _ in range(ATTEMPTS):
            content, failure = self._attempt(step, abstract)
            if content is not None:
                return content
            unreadable = on_primary(_first_unreadable, self._directory / str(step))
            if unreadable:
                break
        # A failure of the system in one process is one of all.
        passing = isinstance(failure, OSError) and not isinstance(failure, FileNotFoundError)
        if unreadable or agree(int(passing), np.max):
            raise OSError(
                f"checkpoint {step} cannot be read now, nothing was changed; the same command goes"
                f" on once it can be: {unreadable or failure}"
            )
        raise Damaged(" ".join(str(failure).split())[:200])

    def _attempt(
        self, step: int, abstract: Any
    ) -> tuple[tuple[Any, dict[str, Any]] | None, BaseException]:
        """State and sidecar of one checkpoint, or None and what went wrong."""
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), sidecar=ocp.args.JsonRestore()
        )
        failure: BaseException = ValueError("another process could not read it")
        restored = None
        try:
            restored = self._manager.restore(step, args=args)
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # Orbax raises whatever its threads meet, some as Exception
            failure = error.__cause__ or error
        # A failure of one process is one of all.
        if not agree(int(restored is not None), np.min):
            return None, failure
        assert restored is not None
        state, sidecar = restored["state"], restored["sidecar"]
        # Checkpoints of version 0.1.0 have neither.
        if sidecar.pop(STEP, step) != step:
            return None, ValueError("it is of another step")
        if sidecar.pop(CHECKSUM, None) not in (None, tree_fingerprint(state)):
            return None, ValueError("its values are not those that were saved")
        return (state, sidecar), failure

    def _set_aside(self, step: int, reason: str) -> None:
        """Rename a damaged checkpoint, which `save` would otherwise take for one that is there."""
        source = self._directory / str(step)

        def rename() -> str:
            return str(set_aside(source))

        if source.exists() and not self._read_only:
            target = on_primary(rename)
            self._manager.reload()
            say(f"checkpoint {source} is damaged and is now {target}: {reason}")

    def wait(self) -> None:
        """Block until every save that was started is on disk."""
        with self._failures_as_oserror():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save and release the directory."""
        with self._failures_as_oserror():
            self._manager.close()

    @contextlib.contextmanager
    def _failures_as_oserror(self) -> Iterator[None]:
        """Raise an OSError that names step and directory for any failure of Orbax.

        Orbax reports a failure of its background thread at a later call, and with whatever
        exception that thread met.
        """
        try:
            yield
        except Exception as error:
            # With several processes, an error of JAX itself means that one of them is gone. That
            # says nothing about the files.
            if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
                raise
            raise OSError(
                f"the checkpoint of step {self._last_step} could not be written to"
                f" {self._directory}; those before it are intact: {error}"
            ) from error
