"""Render chat templates, which come with models and are programs, in bounded time and memory.

Jinja's sandbox keeps a template from running code, but neither from looping for ever nor from
filling memory. So templates are compiled and rendered in a process of its own
(template_worker.py), which is killed when it takes too long. The result is that of transformers'
`apply_chat_template(..., tokenize=False)`.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

STARTUP = 120.0  # seconds the process may take to import jinja and transformers
SECONDS = 10.0  # that a conversation may take
MEMORY = 2 * 2**30  # bytes of address space that the process may take on top of its imports
MAX_CHARACTERS = 16 * 2**20  # of a rendered conversation
READY = b"ready"


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any] | None = None,
    today: str | None = None,
    seconds: float = SECONDS,
) -> str:
    """Return a conversation as a chat template renders it.

    Args:
        template: the template's text.
        messages: the conversation; JSON values.
        variables: what else the template may read, such as `add_generation_prompt` and the special
            tokens; JSON values.
        today: what `strftime_now` tells, an ISO 8601 date or time; None: the clock.
        seconds: that the rendering may take.

    Raises:
        ValueError: the template is not valid, raises an exception, takes longer, needs more memory,
            or renders more than MAX_CHARACTERS; or a message is no JSON value.
    """
    if not isinstance(template, str):
        raise ValueError(f"the chat template is {type(template).__name__}; a text is accepted")
    try:
        question = json.dumps([template, list(messages), dict(variables or {}), today, seconds])
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the messages cannot be rendered ({error}); dictionaries of texts are accepted"
        ) from error
    return _RENDERER.ask(question.encode(), seconds)


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    today: str | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """Return a conversation as the tokenizer's chat template renders it; see `render`.

    It stands for `tokenizer.apply_chat_template(messages, tokenize=False, ...)`. Its token ids are
    those of `tokenizer.encode(text, add_special_tokens=False)`.
    """
    # As in transformers: many templates handle a field that is absent, and print one that is None.
    without_none = [
        {name: value for name, value in message.items() if value is not None}
        for message in messages
    ]
    special = {
        name: [str(part) for part in token] if isinstance(token, list) else str(token)
        for name, token in tokenizer.special_tokens_map.items()
    }
    variables = {**special, "add_generation_prompt": add_generation_prompt}
    return render(tokenizer.get_chat_template(), without_none, variables, today)


class _Renderer:
    """The process that renders, started when it is first asked and after it had to be killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()  # one conversation at a time

    def ask(self, question: bytes, seconds: float) -> str:
        """Return the answer to one question; raises the ValueErrors of `render`."""
        with self._turn:
            process = self._process or self._start()
            try:
                answer = self._exchange(process, question, seconds)
            except TimeoutError:
                self.kill()
                raise ValueError(
                    f"the chat template did not end within {seconds:g} s; a template that ends is"
                    " accepted"
                ) from None
            except (OSError, EOFError):
                self.kill()
                raise ValueError(
                    "the chat template ended the process that renders it, for want of"
                    f" {MEMORY >> 20} MiB or stack; a template that needs less is accepted"
                ) from None
            except BaseException:  # an interrupt: the answer to come would be that to the next one
                self.kill()
                raise
        text, problem = json.loads(answer)
        if problem:
            raise ValueError(f"the chat template failed: {problem}")
        return str(text)

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefixrl_jax.model.template_worker", str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        self._process = process
        try:
            line = self._exchange(process, b"", STARTUP)
        except (OSError, EOFError) as error:
            self.kill()
            raise OSError("the process that renders chat templates does not start") from error
        assert line == READY
        return process

    def _exchange(self, process: subprocess.Popen[bytes], question: bytes, seconds: float) -> bytes:
        """Send a question (none if empty) and return the line that comes back.

        Raises TimeoutError, or EOFError if the process is gone.
        """
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + seconds
        to_send = memoryview(question + b"\n" if question else b"")
        received = bytearray()
        while not received.endswith(b"\n"):
            left = max(deadline - time.monotonic(), 0)
            writers = [process.stdin] if to_send else []
            readable, writable, _ = select.select([process.stdout], writers, [], left)
            if not readable and not writable:
                raise TimeoutError
            if writable:
                to_send = to_send[os.write(process.stdin.fileno(), to_send[:65536]) :]
            if readable:
                part = os.read(process.stdout.fileno(), 65536)
                if not part:
                    raise EOFError("the process that renders is gone")
                received += part
        return bytes(received[:-1])

    def kill(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.communicate()  # closes the pipes


_RENDERER = _Renderer()
atexit.register(_RENDERER.kill)
