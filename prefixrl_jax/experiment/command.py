"""What the commands that run experiments share: their flags, and how a run is begun and ended.

Nothing of JAX is imported before the flags are parsed, so that a typing error costs no time.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
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

# Directories that tell a run, or a comparison, from a folder of someone's own files.
RUN, COMPARISON = "stages", "shared/stages"
MARKS = ("owner", RUN, COMPARISON)
# What runs and comparisons write into their directories.
WRITTEN = (
    "arms",
    "base",
    "checked.json",
    "checkpoints",
    "config.json",
    "corpus",
    "events",
    "figures",
    "hf",
    "left_out.json",
    "metrics.jsonl",
    "prefixes",
    "report.html",
    "samples",
    "sft",
    "shared",
    "summary.json",
    "tuning",
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


@contextlib.contextmanager
def owning(*workdirs: Path) -> Iterator[None]:
    """Own work directories while the body runs; process 0 does so for all.

    Raises ValueError if another run is alive in one of them, or one holds files of the names that a
    run writes and that no run has made.
    """
    from prefixrl_jax.runtime import interrupt
    from prefixrl_jax.runtime.console import say
    from prefixrl_jax.runtime.owner import owned
    from prefixrl_jax.runtime.processes import on_primary

    with contextlib.ExitStack() as stack:

        def pause(seconds: float) -> None:
            time.sleep(seconds)
            if interrupt.wanted():
                raise interrupt.Interrupted

        def own() -> bool:
            """Return whether the run is to go on."""
            try:
                for workdir in workdirs:
                    _refuse_files_of_others(workdir)
                    stack.enter_context(owned(workdir, say, pause))
            except interrupt.Interrupted:
                return False
            return True

        if not on_primary(own):
            raise interrupt.Interrupted
        yield


def refuse_other_kind(workdir: Path, mark: str, kind: str) -> None:
    """Raise ValueError for the directory of a comparison where a run is to be, or the reverse.

    Args:
        workdir: where the command is to write.
        mark: RUN or COMPARISON, which must not be there.
        kind: what such a directory is of, in words.
    """
    if (workdir / mark).is_dir():
        raise ValueError(
            f"--workdir={workdir}: is the directory of {kind}, whose report would be replaced; a"
            " new directory, or one that this command has made, is accepted"
        )


def _refuse_files_of_others(workdir: Path) -> None:
    for ancestor in workdir.absolute().parents:
        if (ancestor / RUN).is_dir() and (ancestor / "config.json").is_file():
            raise ValueError(
                f"--workdir={workdir}: is inside the work directory of the run in {ancestor}; a"
                " directory outside of it is accepted"
            )
    if any((workdir / name).exists() for name in MARKS):
        return
    if others := [name for name in WRITTEN if os.path.lexists(workdir / name)]:
        raise ValueError(
            f"--workdir={workdir}: holds {', '.join(others)}, which no run has made and a run would"
            " replace; a new or an empty directory, or that of a run, is accepted"
        )


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
