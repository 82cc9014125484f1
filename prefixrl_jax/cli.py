"""The shell of every command: flags, help, one clear line for a bad input, exit status.

Status 0 is success (or an orderly stop), 2 a bad input, 3 a failure of the machine: a full disk, a
lost process, a run that diverged.
"""

from __future__ import annotations

import logging as standard_logging
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from prefixrl_jax.runtime.locale import use_utf8
from prefixrl_jax.runtime.streams import printable

# What absl and ml_collections raise for a flag or a configuration file that they cannot take.
PARSING_ERRORS = (
    flags.Error,
    ArithmeticError,
    AttributeError,
    KeyError,
    OSError,
    TypeError,
    ValueError,
)

Rewrite = Callable[[str], str]


def start(
    command: Callable[[], None],
    doc: str,
    required: Sequence[str] = (),
    rewrite: Rewrite = lambda argument: argument,
) -> None:
    """Parse the flags of the process and call the command; the process ends with it.

    Args:
        command: does what the flags say; its ValueError, OSError and RuntimeError end the process
            with one line.
        doc: the command's description, shown by --help.
        required: names of flags that must be there.
        rewrite: is applied to every argument before it is parsed; may raise OSError.
    """
    use_utf8()

    def parse(argv: list[str]) -> list[str]:
        if {"--help", "-h", "-help"} & set(argv[1:]):
            print(usage(doc))
            sys.exit(0)
        return _parse([*argv[:1], *map(rewrite_or_leave, argv[1:])])

    def rewrite_or_leave(argument: str) -> str:
        try:
            return rewrite(argument)
        except OSError as error:
            _leave(error, 2)

    def run(argv: list[str]) -> None:
        if len(argv) > 1:
            _leave(f"unexpected arguments {argv[1:]}; flags are written --name=value", 2)
        if missing := [f"--{name}" for name in required if flags.FLAGS[name].value is None]:
            _leave(f"{' and '.join(missing)} must be given; --help shows all flags", 2)
        _quieten_libraries()
        try:
            command()
        except ValueError as error:
            _leave(error, 2)
        except OSError as error:
            _leave(error, 3)

    app.run(run, flags_parser=parse)


def usage(doc: str) -> str:
    """Return the help of a command: its description, and the flags of this program alone."""
    lines = [doc.strip(), "", "Flags:"]
    for module, module_flags in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("prefixrl_jax") or module == sys.argv[0]:
            for flag in module_flags:
                name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
                lines += [f"  {name}", _indented(_help_text(flag))]
    return "\n".join(lines)


def _help_text(flag: flags.Flag) -> str:
    # absl adds the second half to the help of a flag that may be repeated.
    text = " ".join(str(flag.help).split()).partition("; repeat this option")[0]
    if flag.default in (None, []):
        return text
    default = str(flag.default_as_str).strip("'")
    return f"{text} Default: {default}."


def _indented(text: str) -> str:
    return textwrap.indent(textwrap.fill(text, 90), "      ")


def _parse(argv: list[str]) -> list[str]:
    """Parse the flags; an unknown or ill-typed one ends with a line that names the nearest."""
    try:
        return flags.FLAGS(argv)
    except PARSING_ERRORS as error:
        message = str(error)
        if message[:1] in ("'", '"') and message.endswith(message[0]):  # a KeyError quotes its own
            message = message[1:-1]
        message = message.replace("\\'", "'").replace("\\n", ": ")
        if "Traceback" in message:  # of a configuration file: its first and its last line will do
            whole = message.strip().splitlines()
            message = f"{whole[0]} {whole[-1].strip()}"
        _leave(f"{message} (--help shows all flags)", 2)


def _leave(problem: object, status: int) -> NoReturn:
    logging.debug("refused", exc_info=True)
    print(printable(f"error: {problem}"), file=sys.stderr)
    sys.exit(status)


def _quieten_libraries() -> None:
    """Keep libraries from printing what no user can act on."""
    logging.set_verbosity(logging.WARNING)
    # That PyTorch is not there is as it should be.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # Of a failed save, which Orbax also raises and which ends in one line, Orbax and asyncio log
    # every traceback.
    logging.get_absl_logger().addFilter(
        lambda record: "orbax" not in record.pathname or not record.exc_info
    )
    standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")
    sys.unraisablehook = _show_unraisable
    # Messages and warnings quote file names, models and problems.
    standard_logging.setLogRecordFactory(_PrintableRecord)
    format_warning = warnings.formatwarning
    warnings.formatwarning = lambda *args, **kwargs: printable(format_warning(*args, **kwargs))


class _PrintableRecord(standard_logging.LogRecord):
    """A log record whose message has its control characters escaped."""

    def getMessage(self) -> str:
        return printable(super().getMessage())


def _show_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Print what a destructor raises, unless it is what Orbax leaves of a failed save or restore.

    The failure itself is told in one line. Coroutines that were cancelled by it repeat it, one
    traceback each, and those that still wait find their event loop closed.
    """
    code = getattr(unraisable.object, "cr_code", None)
    of_orbax = code is not None and "orbax" in code.co_filename
    if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
