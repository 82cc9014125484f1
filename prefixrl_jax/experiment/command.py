"""What the commands that run experiments share: their flags, and how a run is begun and ended.

Nothing of JAX is imported before the flags are parsed, so that a typing error costs no time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import config_flags

import prefixrl_jax.configs
from prefixrl_jax import cli
from prefixrl_jax.runtime.streams import printable

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A configuration file, e.g. configs/demo.py. Its fields are set by --config.train.steps=100.",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where everything is written; an interrupted run goes on there."
)
MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Run as one of several processes (docs/hosts.md)."
)


def start(command: Callable[[Path], None], doc: str) -> None:
    """Call a command with the work directory that the flags name; see `cli.start`."""
    cli.start(lambda: _guarded(command), doc, required=("config", "workdir"), rewrite=find_config)


def given_fields() -> Mapping[str, Any]:
    """Return the configuration's fields that the command line sets, by dotted name."""
    return config_flags.get_override_values(flags.FLAGS["config"])


def keep_compilations(workdir: Path) -> None:
    """Keep what is compiled in the work directory, for the next process; call it before a run."""
    import jax

    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(workdir / "xla_cache"))
    jax.config.update("jax_compilation_cache_dir", cache)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def find_config(argument: str) -> str:
    """Return `--config=FILE` as typed if the file exists here, else the installed copy of it.

    Raises OSError, with the configurations there are, for a file that is in neither place.
    """
    name, _, path = argument.partition("=")
    file = Path(path.partition(":")[0])
    if name != "--config" or file.is_file():
        return argument
    folder = Path(prefixrl_jax.configs.__path__[0])
    if file.parent.name == "configs" and (folder / file.name).exists():
        return f"--config={folder / Path(path).name}"
    installed = ", ".join(sorted(f.stem for f in folder.glob("[a-z]*.py")))
    raise OSError(
        f"--config={path}: no such file here, nor among the package's own"
        f" ({installed or 'none is installed'})"
    )


def _guarded(command: Callable[[Path], None]) -> None:
    import jax

    from prefixrl_jax.runtime import interrupt, processes
    from prefixrl_jax.runtime.console import say
    from prefixrl_jax.training.health import Unhealthy
    from prefixrl_jax.training.loop import Diverged

    workdir = Path(str(WORKDIR.value))
    try:
        if MULTIHOST.value:
            processes.join()
            # JAX has installed a handler of its own, and a process that ends without the others
            # leaves them waiting.
            interrupt.listen()
        command(workdir)
    except interrupt.Interrupted:
        say(
            f"stopped as asked; everything finished is in {workdir}, and the same command goes on"
            " from there"
        )
    except ValueError as error:
        processes.leave(printable(f"error: {error}"), 2)
    except (OSError, Diverged, Unhealthy) as error:
        _fail(f"error: {error}")
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        _fail(
            f"error: process {jax.process_index()} has lost another one ({error}); start all again"
            f" with the same command, and the run goes on from what is in {workdir}"
        )


def _fail(message: str) -> NoReturn:
    """Print an error and end this process with status 3, without waiting for any thread.

    After a save that failed, threads of Orbax wait ten minutes for one that is gone, and print
    tracebacks when the interpreter ends below them. What is finished has been saved by now.
    """
    print(printable(message), file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(3)
