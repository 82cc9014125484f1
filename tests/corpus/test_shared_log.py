"""Two processes write one log, and both know all of it when it is opened again."""

import json
import os
import socket
import subprocess
import sys

import pytest
from runs import ROOT

from prefixrl_jax.corpus.sample_log import Log

pytestmark = pytest.mark.slow

HEADER = {"model": "abc"}

PROCESS = """
import json, sys
from pathlib import Path
from prefixrl_jax.corpus import shared_log
from prefixrl_jax.runtime import processes
from prefixrl_jax.tasks.task import Problem
processes.join()
import jax
shared_log.MESSAGE_BYTES = 300  # several messages
log = shared_log.SharedLog(Path(sys.argv[1]), {"model": "abc"})
lengths = {n: dict(log.records.get("select", Problem(n, {}), 1).lengths) for n in "pqr"}
me = jax.process_index()
for i in range(10):
    log.append({"stage": "select", "problem": "pq"[me], "sample": int(sys.argv[2]) + i,
                "verdict": "wrong", "tokens": i + 1})
shared = log.share(wait=True)
log.close()
print(json.dumps([lengths, log.dropped, [record["problem"] for record in shared]]))
"""


def run_two(path, first):
    """Open the log on two processes, each of which adds ten samples; return what they print."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(path), str(first)],
            cwd=ROOT,
            env=common | {"JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    return [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]


def test_two_processes_know_all_that_either_has_written(tmp_path):
    path = tmp_path / "log"
    both = ["p"] * 10 + ["q"] * 10
    nothing = [{"p": {}, "q": {}, "r": {}}, [], both]
    assert run_two(path, 0) == [nothing, nothing]
    with (path / "part-000001.jsonl").open("ab") as part:
        part.write(b"0badc0de")
    one, two = run_two(path, 10)
    assert one == two
    lengths, dropped, shared = one
    ten = {str(i): i + 1 for i in range(10)}
    assert lengths == {"p": ten, "q": ten, "r": {}}
    assert "part-000001.jsonl, line 22: dropped 8 bytes: the line is torn" in dropped[0]
    assert shared == both
    samples = [(r["problem"], r["sample"]) for r in Log(path, HEADER).records]
    assert sorted(samples) == [(p, i) for p in "pq" for i in range(20)]
