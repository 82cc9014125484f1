"""What a reader sees where there is no terminal: progress lines, and a sign of life in every
stage.
"""

import re
import time

import pytest

from prefixrl_jax.runtime import console
from prefixrl_jax.runtime.console import Progress, heartbeat, say


def test_a_line_has_what_is_done_what_is_left_the_rate_and_a_note(capsys):
    with Progress("train", 10, done=4) as progress:
        progress.update(5, "loss 1.5", line=True)
        progress.update(6, "loss 1.25", line=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"train 5/10  \d+s  loss 1\.5", lines[0])  # compiled, so no rate yet
    assert re.fullmatch(r"train 6/10  \S+/s  eta \d+s  loss 1\.25", lines[1])


def test_unasked_lines_are_rare(capsys, monkeypatch):
    monkeypatch.setattr(console, "PAUSE_SECONDS", 1e6)  # however slow the machine is
    with Progress("select", 100) as progress:
        progress.update(0)  # nothing to say yet
        for done in range(1, 50):
            progress.update(done)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("select 1/100  ")


def wait_for_line(capsys) -> str:
    """The next output; a heartbeat is due after at most some seconds."""
    out = ""
    while not out:
        time.sleep(0.05)
        out = capsys.readouterr().out
    return out


def test_a_silent_stage_gives_a_sign_of_life(capsys, monkeypatch):
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.0)
    with heartbeat("export"):
        assert re.fullmatch(r"(export  \d+s\n)+", wait_for_line(capsys))
        with Progress("evaluate", 8) as progress:
            progress.update(2, "half of a half")
            capsys.readouterr()
            assert re.match(r"evaluate 2/8  \d+s  half of a half\n", wait_for_line(capsys))
        assert wait_for_line(capsys).startswith("export  ")
    capsys.readouterr()
    time.sleep(1.5)
    assert capsys.readouterr().out == ""  # over is over


def test_the_silence_is_broken_before_half_a_minute():
    assert console.QUIET_SECONDS + 1 <= 30


def test_a_message_is_printed_as_it_is(capsys):
    say("[bold]10 of 12[/bold] problems " + "x" * 200)
    assert capsys.readouterr().out == "[bold]10 of 12[/bold] problems " + "x" * 200 + "\n"


def test_an_error_ends_the_heartbeat_too(capsys, monkeypatch):
    monkeypatch.setattr(console, "QUIET_SECONDS", 0.0)
    with pytest.raises(OSError), heartbeat("train"):
        raise OSError
    capsys.readouterr()
    time.sleep(1.5)
    assert capsys.readouterr().out == ""
