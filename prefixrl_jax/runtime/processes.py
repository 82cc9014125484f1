"""Coordinate the processes of one run: agree on numbers, exchange small values, write once.

JAX's multi-process runtime runs the same program everywhere, and each process holds its own rows of
every batch. All processes must call the functions here in the same order, as they must with
everything jitted over the mesh. With one process these functions cost nothing.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from prefixrl_jax.flops import Ledger

HEARTBEAT = 60  # seconds after which the others notice that a process is gone
SHUTDOWN = 15  # seconds for which a process that stops early waits for the others
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join() -> None:
    """Connect this process to the others of the run; call it before anything else of JAX.

    JAX finds the others itself on Cloud TPU, SLURM, Open MPI and Kubernetes. Elsewhere the
    environment VARIABLES describe them.

    Raises:
        ValueError: neither JAX nor the environment describes the processes.
        RuntimeError: the others cannot be reached.
    """
    address, count, index = (os.environ.get(name) for name in VARIABLES)
    try:
        # Unless the environment sets both, JAX has to find them.
        numbering: dict[str, Any] = {}
        if count and index:
            numbering = {"num_processes": int(count), "process_id": int(index)}
        jax.distributed.initialize(
            address,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
            **numbering,
        )
    except ValueError as error:
        environment = ", ".join(f"{name}={os.environ.get(name, '(not set)')}" for name in VARIABLES)
        raise ValueError(
            f"--multihost: {error} Here {environment}; expected are host:port of process 0, the"
            " number of processes, and this one's number from 0"
        ) from error
    # The runtime aborts a process whose peer is gone, and says so. A Python stack trace on top of
    # that would point at code that is not the cause.
    faulthandler.disable()


def leave(message: str, status: int) -> NoReturn:
    """Print an error and end this process with an exit status.

    It does not wait for the other processes, which may be waiting for it in a computation.
    """
    print(message, file=sys.stderr, flush=True)
    if jax.process_count() == 1:
        sys.exit(status)
    sys.stdout.flush()
    os._exit(status)


def primary() -> bool:
    """Return whether this is process 0, the only one that writes files and prints."""
    return jax.process_index() == 0


def local_slice(items: list) -> list:
    """Return this process's contiguous part of a list that all processes have.

    The parts differ by at most one in length.
    """
    count = jax.process_count()
    index = jax.process_index()
    return items[len(items) * index // count : len(items) * (index + 1) // count]


def agree(value: Any, reduce: Callable) -> Any:
    """Reduce a value over all processes; each gets the same result.

    Args:
        value: an int, or a list of ints that is reduced elementwise.
        reduce: np.max, np.sum or the like.
    """
    if jax.process_count() == 1:
        return value
    return reduce(multihost_utils.process_allgather(np.asarray(value, np.int64)), axis=0)


def gather(value: Any) -> list[Any]:
    """Return the JSON value of every process, in the order of the processes.

    It is meant for counts and verdicts, not for tensors.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(data.size, np.int32))
    # Rows must have equal length; powers of two leave few shapes to compile.
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.ravel(), strict=True)]


def joined(items: list[Any]) -> list[Any]:
    """Concatenate the lists of all processes, in the order in which `local_slice` cuts a list."""
    return [item for part in gather(items) for item in part]


def on_primary(function: Callable, *args: Any) -> Any:
    """Call function(*args) on process 0 while the others wait.

    Returns:
        Its result, a JSON value, on every process.

    Raises:
        Exception: on process 0, whatever the function raises.
        ValueError, OSError: on the others, with the message of process 0's error: ValueError if it
            was one, OSError otherwise.
    """
    if jax.process_count() == 1:
        return function(*args)
    outcome: dict[str, Any] = {}
    failure: Exception | None = None
    if primary():
        try:
            outcome = {"value": function(*args)}
        except Exception as error:
            failure = error
            outcome = {"error": str(error), "refused": isinstance(error, ValueError)}
    outcome = gather(outcome)[0]
    if failure is not None:
        raise failure
    if "error" in outcome:
        error_type = ValueError if outcome["refused"] else OSError
        raise error_type(outcome["error"])
    return outcome["value"]


def share_charges(ledger: Ledger, before: dict[str, dict[str, float]]) -> None:
    """Make the ledger hold the FLOPs that all processes have charged since `before`.

    Args:
        ledger: this process's ledger, changed in place.
        before: the ledger's state at a point where all processes had the same.
    """
    if jax.process_count() == 1:
        return
    charged = {
        accounting: {phase: flops - before[accounting][phase] for phase, flops in phases.items()}
        for accounting, phases in ledger.state.items()
    }
    by_process = gather(charged)
    for accounting, phases in before.items():
        for phase, flops in phases.items():
            charges = sum(part[accounting][phase] for part in by_process)
            ledger.state[accounting][phase] = flops + charges
