"""The environment of the tests and of the processes they start; imported before jax is."""

import os
import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).parent.parent / ".pytest_cache" / "xla"

os.environ["JAX_PLATFORMS"] = "cpu"
# Many tests compile the same functions, here and in the processes they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# PyTorch's threads would spin while they wait, and there are more workers than cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def cheap_compilation() -> str:
    """Returns XLA_FLAGS for programs that run for a moment.

    Compiling them takes longer than running them: optimising would take half of the time, and
    fusion emitters a quarter. XLA does not promise to keep the flag for these, and ends a process
    that sets a flag it does not know, so it is tried in another process first.
    """
    unoptimised = "--xla_backend_optimization_level=0"
    unfused = f"{unoptimised} --xla_cpu_use_fusion_emitters=false"
    attempt = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"XLA_FLAGS": unfused},
        capture_output=True,
    )
    return unfused if attempt.returncode == 0 else unoptimised


# The workers of xdist and the processes that tests start inherit it from the first process.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = cheap_compilation()
