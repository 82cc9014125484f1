"""Train state on disk, through Orbax: asynchronous, the newest N and the best kept, one JSON
sidecar beside the arrays.

What is saved with a step is all that the next step reads: parameters, optimizer, step (which is the
data cursor and the seed of the step's noise) and the FLOPs ledger.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

BEST = "score"  # the sidecar metric by which the best checkpoint is kept


class Checkpoints:
    """Checkpoints of one run in `directory`.

    Use as a context manager, or call `close` to wait for the last save.
    """

    def __init__(self, directory: Path, keep: int = 2):
        latest = checkpoint_managers.LatestN(n=keep)
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda m: m[BEST], n=1, keep_checkpoints_without_metrics=False
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([latest, best]),
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)
        self._directory = directory
        self._newest = 0  # the step whose save was begun last

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def save(
        self, step: int, state: Any, sidecar: dict[str, Any], score: float | None = None
    ) -> None:
        """Starts saving `state` (a pytree of arrays) and `sidecar` (JSON values); returns before it
        is on disk.

        Raises OSError, here or at the next call of `save`, `wait` or `close`, when it could not be
        written; JaxRuntimeError when another process is gone.
        """
        if step in self._manager.all_steps():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), sidecar=ocp.args.JsonSave(sidecar)
        )
        metrics = None if score is None or not math.isfinite(score) else {BEST: float(score)}
        with self._naming_failures():
            self._manager.save(step, args=args, metrics=metrics)
        self._newest = step

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def restore(
        self, abstract: Any, step: int | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, sidecar) of `step`, or of the newest checkpoint that can be read; None when
        there is none.

        abstract: the state as ShapeDtypeStructs with shardings, which may be those of another mesh
        than it was saved from. A damaged newest checkpoint is named in a warning and the one before
        it is used; when all are damaged a ValueError says so.
        """
        wanted = self.steps()[::-1] if step is None else [step]
        failure: Exception | None = None
        damaged: list[int] = []
        for candidate in wanted:
            args = ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), sidecar=ocp.args.JsonRestore()
            )
            try:
                found = self._manager.restore(candidate, args=args)
                for bad in damaged:  # else the step could not be saved again
                    self._manager.delete(bad)
                return candidate, found["state"], found["sidecar"]
            except (ValueError, OSError, KeyError) as error:
                logging.warning(
                    "checkpoint %s/%d cannot be read and is dropped: %s",
                    self._directory,
                    candidate,
                    error,
                )
                failure = error
                damaged.append(candidate)
        if failure is not None:
            raise ValueError(
                f"no checkpoint in {self._directory} can be read; the last error was: {failure}"
            ) from failure
        return None

    def wait(self) -> None:
        """Blocks until every save begun is on disk."""
        with self._naming_failures():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and releases the directory."""
        with self._naming_failures():
            self._manager.close()

    @contextlib.contextmanager
    def _naming_failures(self) -> Iterator[None]:
        """Orbax reports what went wrong in the background at a later call, with whatever exception
        it met.

        What JAX itself raises where there are several processes is no matter of the files: one of
        them has gone meanwhile.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
                raise
            raise OSError(
                f"the checkpoint of step {self._newest} could not be written to {self._directory};"
                f" those before it are intact: {error}"
            ) from error
