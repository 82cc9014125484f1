"""What reaches a terminal or a log file: no control characters, on streams that never fail."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

import pytest
from runs import HANGS, PYTHON, ROOT, SMOKE

from prefixrl_jax.report.format import visible
from prefixrl_jax.runtime import console
from prefixrl_jax.runtime.console import Progress, say
from prefixrl_jax.runtime.streams import printable

ESCAPED = [
    ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),  # colour
    ("\x1b]0;title\x07", r"\x1b]0;title\x07"),  # the title of the window
    ("\x9b2J", r"\x9b2J"),  # CSI as one character
    ("error: none\rfine", r"error: none\rfine"),  # would overwrite the line
    ("a\bb\x7f\x00", r"a\x08b\x7f\x00"),
    ("user\u202etxt.exe", r"user\u202etxt.exe"),  # from right to left
    ("\u2066a\u2069\u200f\u061c", r"\u2066a\u2069\u200f\u061c"),
    ("one\u2028two\u0085three", r"one\u2028two\x85three"),
    ("half \ud83d of a pair", r"half \ud83d of a pair"),
]
KEPT = ["two\nlines\tand a tab", "½ √2 − 漢字 한국어 עברית 🙂", "[bold]10 of 12[/bold]", "a\u200db"]


@pytest.mark.parametrize(("raw", "escaped"), ESCAPED)
def test_control_characters_are_escaped_wherever_something_is_shown(raw, escaped, capsys):
    assert printable(raw) == escaped
    assert printable(escaped) == escaped
    say(raw)
    with Progress(raw, 4) as progress:
        progress.update(1, raw, line=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first == escaped
    assert second.startswith(f"{escaped} 1/4  ") and second.endswith(escaped)


@pytest.mark.parametrize("text", KEPT)
def test_other_characters_are_kept(text, capsys):
    say(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_a_live_bar_shows_them_too(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with Progress("[/bold]", 4) as progress:
        progress.update(1, "\x1b]0;title\x07[/red]\u202e")
    shown = terminal.getvalue()
    assert r"\x1b]0;title\x07[/red]\u202e" in shown and "[/bold]" in shown
    assert "\x1b]0;" not in shown and "\u202e" not in shown


def test_a_page_shows_them_as_symbols():
    assert visible("\x1b[31m\x07\n\t\x9b\u202e\x7f") == "␛[31m␇\n\t\\x9b\\u202e\\x7f"


# Everything by which a command tells something, run as a command.
TELL = """
from prefixrl_jax.runtime import startup
startup.begin(startup.UNFINISHED)
import warnings
from absl import logging
from prefixrl_jax import cli

TEXT = "bad \\x1b[2J\\u202e\\ud83d name ½"

def command():
    print("line of a table", flush=True)
    warnings.warn(TEXT)
    logging.warning("model %s", TEXT)
    open("after", "w").write("was here")
    raise ValueError(f"problem {TEXT}")

cli.start(command, "Help.")
"""


def tell(tmp_path, shell: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs TELL in a shell, in which it is called $TELL."""
    (tmp_path / "tell.py").write_text(TELL)
    command = " ".join([*PYTHON, str(tmp_path / "tell.py")])
    return subprocess.run(
        ["bash", "-c", shell.replace("$TELL", command)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        timeout=HANGS,
    )


def test_messages_warnings_and_errors_are_escaped(tmp_path):
    done = tell(tmp_path, "$TELL")
    assert done.returncode == 2
    assert done.stdout == b"line of a table\n"
    text = done.stderr.decode()
    assert text.count(r"bad \x1b[2J\u202e\ud83d name ½") == 3, text
    assert text.splitlines()[-1] == r"error: problem bad \x1b[2J\u202e\ud83d name ½"
    assert "\x1b" not in text and "\u202e" not in text


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONIOENCODING": "latin-1:strict"},
    ],
)
def test_a_terminal_that_lacks_a_character_gets_its_number(environment, tmp_path):
    done = tell(tmp_path, "$TELL", **environment)
    assert done.returncode == 2
    half = b"\xbd" if "latin" in str(environment) else rb"\xbd"
    assert done.stderr.splitlines()[-1] == rb"error: problem bad \x1b[2J\u202e\ud83d name " + half


@pytest.mark.parametrize(
    "redirection", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", ">/dev/full", ">/dev/full 2>&1"]
)
def test_a_stream_that_is_closed_or_full_changes_nothing_else(redirection, tmp_path):
    done = tell(tmp_path, f"$TELL {redirection}")
    assert done.returncode == 2
    assert (tmp_path / "after").read_text() == "was here"
    if "2>" not in redirection:
        assert done.stderr.splitlines()[-1].startswith(b"error: problem bad")
    assert b"Traceback" not in done.stderr and b"Errno" not in done.stderr


@pytest.mark.parametrize("pipe", ["2>&1 | true", "| true", "2>&1 | head -c 1"])
def test_a_reader_that_goes_away_changes_nothing_else(pipe, tmp_path):
    done = tell(tmp_path, f"set -o pipefail; $TELL {pipe}")
    assert done.returncode == 2
    assert (tmp_path / "after").read_text() == "was here"
    assert b"Traceback" not in done.stderr and b"Broken" not in done.stderr


# What is left of coroutines when they are dropped, as a failed save or restore leaves them.
DROPPED = """
import gc
from prefixrl_jax import cli

def command():
    source = '''
async def read():
    try:
        await Suspended()
    finally:
        raise RuntimeError(reason)

class Suspended:
    def __await__(self):
        yield
'''
    for file, reason in (
        ("site-packages/orbax/checkpoint/x.py", "an array"),
        ("asyncio/events.py", "Event loop is closed"),
        ("elsewhere.py", "a fault of ours"),
    ):
        names = {"reason": reason}
        exec(compile(source, file, "exec"), names)
        coroutine = names["read"]()
        coroutine.send(None)
        del coroutine
        gc.collect()

cli.start(command, "Help.")
"""


def test_what_a_failed_save_leaves_behind_is_not_shown_and_other_faults_are(tmp_path):
    (tmp_path / "dropped.py").write_text(DROPPED)
    done = subprocess.run(
        [*PYTHON, str(tmp_path / "dropped.py")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )
    assert done.returncode == 0
    assert done.stderr.count("Traceback") == 1, done.stderr
    assert "a fault of ours" in done.stderr


def test_help_ends_quietly_when_nobody_reads_on(tmp_path):
    command = " ".join(PYTHON)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} -m prefixrl_jax.main --help | head -c 1"],
        cwd=ROOT,
        capture_output=True,
        timeout=HANGS,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_is_still_one_behind_the_streams(tmp_path):
    """The live bar needs to know."""
    code = (
        "from prefixrl_jax.runtime import startup; startup.begin(startup.UNFINISHED);"
        "import sys; print(sys.stdout.isatty(), sys.stdout.fileno(), sys.stderr.isatty())"
    )
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE
    )
    os.close(theirs)
    assert os.read(ours, 1000) == b"True 1 False\r\n"
    os.close(ours)
    assert done.returncode == 0


def test_a_silent_console_does_not_end_a_stage(monkeypatch):
    """In a notebook or a test there may be no stream at all."""
    monkeypatch.setattr(sys, "stdout", None)
    say("nobody hears")
    with console.heartbeat("stage"), Progress("stage", 2) as progress:
        progress.update(1, line=True)


@pytest.mark.slow
@pytest.mark.pipeline
def test_a_run_goes_on_without_its_console(tmp_path):
    """Its first files must not get the numbers of the closed streams."""
    arguments = [f"--config={SMOKE.config}", f"--workdir={tmp_path / 'run'}", "--stage=corpus"]
    command = " ".join([*PYTHON, "-m", "prefixrl_jax.main", *arguments, *SMOKE.flags])
    for redirection in (">&- 2>&- <&-", "2>&1 | head -1"):
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command} {redirection}"], cwd=ROOT, timeout=HANGS
        )
        assert done.returncode == 0
    assert (tmp_path / "run" / "stages" / "corpus.json").exists()
