"""What the commands share: flags, one clear line for a bad input, an orderly stop."""

from __future__ import annotations

import logging as standard_logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags, logging
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A configuration file, e.g. configs/demo.py.", lock_config=True
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where everything is written; an interrupted run goes on there."
)
MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Run as one of several processes; see `prefixrl_jax/runtime/processes.py`."
)


def given_fields() -> Mapping[str, Any]:
    """The configuration's fields that the command line sets, by dotted name."""
    return config_flags.get_override_values(flags.FLAGS["config"])


def guarded(command: Callable[[Path], None]) -> None:
    """Calls `command` with the work directory; a bad input ends with one clear line and exit status
    2.
    """
    # that PyTorch is not there is as it should be
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import jax

    from prefixrl_jax.runtime import interrupt, processes
    from prefixrl_jax.runtime.metrics import say
    from prefixrl_jax.training.health import Unsound
    from prefixrl_jax.training.loop import Diverged

    logging.set_verbosity(logging.WARNING)
    # Of a failed save, which Orbax also raises and which ends in one line here, it and asyncio log
    # every traceback.
    logging.get_absl_logger().addFilter(
        lambda record: "orbax" not in record.pathname or not record.exc_info
    )
    standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")
    workdir = Path(str(WORKDIR.value))
    jax.config.update(
        "jax_compilation_cache_dir",
        os.environ.get("JAX_COMPILATION_CACHE_DIR", str(workdir / "xla_cache")),
    )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    try:
        if MULTIHOST.value:
            processes.join()
        command(workdir)
    except interrupt.Interrupted:
        say(
            f"stopped as asked; everything finished is in {workdir}, and the same command goes on"
            " from there"
        )
    except (ValueError, OSError, Diverged, Unsound) as error:
        logging.debug("refused", exc_info=True)
        processes.leave(f"error: {error}", 2 if isinstance(error, ValueError) else 3)
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        processes.leave(
            f"error: process {jax.process_index()} has lost another one ({error}); start all again"
            f" with the same command, and the run goes on from what is in {workdir}",
            3,
        )


def find_config(argument: str) -> str:
    """`--config=configs/x.py` as typed if that file exists here, else the copy that is installed
    with the package.
    """
    name, _, path = argument.partition("=")
    file = Path(path.partition(":")[0])
    if name != "--config" or file.exists():
        return argument
    if not (installed := Path(__file__).parent / file).exists():
        own = (
            ", ".join(sorted(f.stem for f in (Path(__file__).parent / "configs").glob("[a-z]*.py")))
            or "none is installed"
        )
        raise OSError(f"--config={path}: no such file here, nor among the package's own ({own})")
    return f"--config={installed.parent / Path(path).name}"


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; an unknown or ill-typed field ends with one line that names it and the
    nearest valid name.
    """
    try:
        rest = flags.FLAGS(list(map(find_config, argv)))
        return rest
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        message = str(error).strip("\"'").replace("\\'", "'").replace("\\n", ": ")
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
