"""What the processes of one run do together: agree on numbers, share small values, let one of them
write.

JAX's multi-process runtime runs the same program everywhere: each process holds its own rows of
every batch, and all must call the functions here, like everything jitted over the mesh, in the same
order. With one process they cost nothing.
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

# Seconds. A process that is gone is noticed after the first, and one that stops early waits for the
# others for the second.
HEARTBEAT, SHUTDOWN = 60, 15
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def join() -> None:
    """Joins the run's other processes; call it before anything else of JAX.

    JAX finds them itself on Cloud TPU, SLURM, Open MPI and Kubernetes; elsewhere the environment
    VARIABLES name them. Raises ValueError if neither does, RuntimeError if they cannot be reached.
    """
    address, count, index = (os.environ.get(name) for name in VARIABLES)
    try:
        given: dict[str, Any] = (
            {"num_processes": int(count), "process_id": int(index)} if count and index else {}
        )
        jax.distributed.initialize(
            address, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN, **given
        )
    except ValueError as error:
        found = ", ".join(f"{name}={os.environ.get(name, '(not set)')}" for name in VARIABLES)
        raise ValueError(
            f"--multihost: {error} Here {found}; expected are host:port of process 0, the number of"
            " processes, and this one's number from 0"
        ) from error
    # the runtime ends a process whose peer is gone, and says so; where this one stood is not the
    # cause
    faulthandler.disable()


def leave(message: str, status: int) -> NoReturn:
    """Ends this process with an error.

    It does not wait for the others, which may be waiting for it in a computation.
    """
    print(message, file=sys.stderr, flush=True)
    if jax.process_count() == 1:
        sys.exit(status)
    sys.stdout.flush()
    os._exit(status)


def primary() -> bool:
    """Whether this is process 0, which alone writes files and speaks."""
    return jax.process_index() == 0


def local_slice(items: list) -> list:
    """This process's contiguous part of a list that all have; parts differ by at most one in
    length.
    """
    n, rank = jax.process_count(), jax.process_index()
    return items[len(items) * rank // n : len(items) * (rank + 1) // n]


def agree(value: Any, reduce: Callable) -> Any:
    """reduce (np.max, np.sum) of an int, or elementwise of a list of ints, over all processes; the
    same on each.
    """
    if jax.process_count() == 1:
        return value
    return reduce(multihost_utils.process_allgather(np.asarray(value, np.int64)), axis=0)


def gather(value: Any) -> list[Any]:
    """The JSON value of every process, by process; for counts and verdicts, not for tensors."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(data.size, np.int32))
    # powers of two: few shapes to compile
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes.ravel(), strict=True)]


def joined(items: list[Any]) -> list[Any]:
    """The processes' lists as one, in the order that `local_slice` cut it."""
    return [item for part in gather(items) for item in part]


def on_primary(function: Callable, *args: Any) -> Any:
    """function(*args) on process 0, while the others wait; each gets its JSON value, or the error
    it ended with.
    """
    if jax.process_count() == 1:
        return function(*args)
    outcome: dict[str, Any] = {}
    failure: Exception | None = None
    if primary():
        try:
            outcome = {"value": function(*args)}
        except Exception as error:
            failure, outcome = (
                error,
                {"error": str(error), "refused": isinstance(error, ValueError)},
            )
    outcome = gather(outcome)[0]
    if failure is not None:
        raise failure
    if "error" in outcome:
        raise (ValueError if outcome["refused"] else OSError)(outcome["error"])
    return outcome["value"]


def share_charges(ledger: Ledger, before: dict[str, dict[str, float]]) -> None:
    """Adds to this process's ledger what the others have charged to theirs since the state
    `before`, which all had.
    """
    if jax.process_count() == 1:
        return
    charged = {
        a: {p: flops - before[a][p] for p, flops in phases.items()}
        for a, phases in ledger.state.items()
    }
    everyone = gather(charged)
    for accounting, phases in before.items():
        for phase, flops in phases.items():
            ledger.state[accounting][phase] = flops + sum(
                part[accounting][phase] for part in everyone
            )
