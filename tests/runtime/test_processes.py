"""Joining the processes of a run: one process joins itself, and what is missing is named."""

import os
import socket
import subprocess

import pytest
from runs import HANGS, PYTHON, ROOT

from prefixrl_jax.runtime.processes import VARIABLES

ALONE = """
import jax
from prefixrl_jax.runtime import processes
try:
    processes.join()
    print("process", jax.process_index(), "of", jax.process_count())
except ValueError as error:
    print("refused:", error)
"""


def joined(tmp_path, **environment: str) -> str:
    """What a process with these variables says."""
    (tmp_path / "alone.py").write_text(ALONE)
    clean = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    path = os.pathsep.join(filter(None, [str(ROOT), clean.get("PYTHONPATH")]))
    done = subprocess.run(
        [*PYTHON, str(tmp_path / "alone.py")],
        env=clean | environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_process_joins_itself(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    assert (
        joined(tmp_path, **dict(zip(VARIABLES, (address, "1", "0"), strict=True)))
        == "process 0 of 1\n"
    )


@pytest.mark.parametrize("given", [{}, {"JAX_COORDINATOR_ADDRESS": "localhost:1"}])
def test_what_is_missing_is_named(tmp_path, given):
    said = joined(tmp_path, **given)
    assert said.startswith("refused: --multihost:") and all(name in said for name in VARIABLES)
    assert given.get("JAX_COORDINATOR_ADDRESS", "(not set)") in said
