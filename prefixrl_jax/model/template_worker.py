"""The process that renders chat templates: `python -m ...template_worker MEMORY_BYTES`.

It reads JSON lines [template, messages, variables, today, seconds] and writes a line [text, ""] or
[null, what went wrong] for each. templates.py starts it, and kills it when a template does not end.
No jax is imported here.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_NAMESPACE
from transformers.utils import chat_template_utils

from prefixrl_jax.model.templates import MAX_CHARACTERS, READY

# In the text that Python gives an object without one of its own, such as a function.
ADDRESS = re.compile(r" at 0x[0-9a-f]+>")


class Clock(datetime):
    """The clock of transformers' `strftime_now`, which may be stopped.

    Attributes:
        moment: what it shows; None: the time.
    """

    moment: datetime | None = None

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        """Return the moment, or the time."""
        return cls.moment or datetime.now(tz)


def main() -> None:
    """Render what standard input asks for, until it ends."""
    memory = int(sys.argv[1])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    vars(chat_template_utils)["datetime"] = Clock
    # Every environment copies them. A prompt must be the same whenever it is rendered.
    DEFAULT_FILTERS["random"] = _refuse_random
    DEFAULT_NAMESPACE["lipsum"] = _refuse_random
    _limit_memory(memory)
    answers.write(READY + b"\n")
    answers.flush()
    for line in sys.stdin.buffer:
        answers.write(json.dumps(_answer(line)).encode() + b"\n")
        answers.flush()


def _answer(line: bytes) -> tuple[str | None, str]:
    """Return the rendered text, or what went wrong."""
    template, messages, variables, today, seconds = json.loads(line)
    _limit_cpu(seconds)
    Clock.moment = datetime.fromisoformat(today) if today else None
    try:
        rendered: Any = chat_template_utils.render_jinja_template(
            [messages], chat_template=template, **variables
        )
    # A template may raise anything: its own errors, and Python's for what it does to its values.
    except MemoryError:
        return None, "it needs more memory than it may take"
    except Exception as error:
        first_line, *_ = str(error).splitlines() or [""]
        printable = "".join(c if c.isprintable() else " " for c in first_line[:300])
        return None, f"{type(error).__name__}: {printable}"
    texts, _ = rendered  # one text a conversation
    text = texts[0]
    if ADDRESS.search(text) and not ADDRESS.search(line.decode(errors="replace")):
        return None, "it renders the address of an object, which is another in every process"
    if len(text) > MAX_CHARACTERS:
        return None, f"it renders {len(text)} characters; at most {MAX_CHARACTERS} are accepted"
    return text, ""


def _refuse_random(*_arguments: Any, **_options: Any) -> None:
    """Stand for jinja's filter `random` and its function `lipsum`."""
    raise TemplateError(
        "it draws random texts (random, lipsum); a template that renders the same text every time"
        " is accepted"
    )


def _limit_memory(extra: int) -> None:
    """Limit the address space to what it is now and `extra` bytes."""
    try:
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        size = 0
    resource.setrlimit(resource.RLIMIT_AS, (size + extra, size + extra))


def _limit_cpu(seconds: float) -> None:
    """Let the next rendering take so long, should nobody be left to kill this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = usage.ru_utime + usage.ru_stime
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent + seconds) + 2, hard))


if __name__ == "__main__":
    main()
