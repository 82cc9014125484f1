"""Save and restore the train state with Orbax, asynchronously.

The newest N checkpoints and the best one are kept. Each holds the arrays of the state and a JSON
sidecar, which together are all that the next step reads: parameters, optimizer state, step (the
data cursor and the seed of the step's noise), and the FLOPs ledger.
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

BEST = "score"  # name of the metric by which the best checkpoint is kept


class Checkpoints:
    """The checkpoints of one run.

    Use as a context manager, or call `close` to wait for the last save.
    """

    def __init__(self, directory: Path, keep: int = 2):
        """Open the checkpoints in `directory`; it is created if it does not exist.

        Args:
            directory: holds one subdirectory a step.
            keep: how many of the newest checkpoints to keep, besides the best.
        """
        latest = checkpoint_managers.LatestN(n=keep)
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics[BEST],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy([latest, best]),
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)
        self._directory = directory
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
            state=ocp.args.StandardSave(state), sidecar=ocp.args.JsonSave(sidecar)
        )
        metrics = None
        if score is not None and math.isfinite(score):
            metrics = {BEST: float(score)}
        with self._failures_as_oserror():
            self._manager.save(step, args=args, metrics=metrics)
        self._last_step = step

    def steps(self) -> list[int]:
        """Return the steps that have a finished checkpoint, in ascending order."""
        return sorted(self._manager.all_steps())

    def restore(
        self, abstract: Any, step: int | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Load the checkpoint of `step`, or the newest one that can be read.

        A damaged checkpoint is named in a warning, and the one before it is tried.

        Args:
            abstract: the state as ShapeDtypeStructs with shardings. The mesh may differ from the
                one on which the state was saved.
            step: the step to load; None for the newest.

        Returns:
            (step, state, sidecar), or None if there is no checkpoint.

        Raises:
            ValueError: `step` cannot be read, or, without a step, none of the checkpoints can.
        """
        candidates = self.steps()[::-1] if step is None else [step]
        failure: Exception | None = None
        damaged: list[int] = []
        for candidate in candidates:
            args = ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), sidecar=ocp.args.JsonRestore()
            )
            try:
                restored = self._manager.restore(candidate, args=args)
                # `save` skips a step that has a checkpoint, so a damaged one would stay forever.
                for damaged_step in damaged:
                    self._manager.delete(damaged_step)
                return candidate, restored["state"], restored["sidecar"]
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
