"""Of several processes one owns a directory, until it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from prefixrl_jax.runtime import owner
from prefixrl_jax.runtime.owner import InUse, LostOwnership, Owner, Ownership, owned

# Owns a directory, says so, and waits for a line; "refused" if it cannot.
PROCESS = """
import sys
from pathlib import Path
from prefixrl_jax.runtime import owner
owner.HEARTBEAT = float(sys.argv[2])
try:
    with owner.owned(Path(sys.argv[1]), lambda sentence: print(sentence, flush=True)):
        print("owner", flush=True)
        sys.stdin.readline()
except owner.InUse as refusal:
    print("refused", refusal, flush=True)
"""


def start(directory: Path, heartbeat: float = 10.0) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(directory), str(heartbeat)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen) -> str:
    """Let a process that is the owner end; return what it has said."""
    return process.communicate("\n")[0]


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "owner").iterdir())


def acquire(directory: Path) -> tuple[Ownership, list[str]]:
    """Own a directory; return what it was told, too."""
    sentences: list[str] = []
    ownership = Ownership(directory)
    ownership.acquire(sentences.append)
    return ownership, sentences


def rewrite(directory: Path, **fields: object) -> None:
    """Change what the newest file says of the owner."""
    path = directory / "owner" / files(directory)[-1]
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_a_second_process_is_refused_by_name_and_the_next_one_is_not(tmp_path):
    first = start(tmp_path)
    assert first.stdout.readline() == "owner\n"
    refused = end(start(tmp_path))
    assert refused.startswith(f"refused {tmp_path} is in use by process {first.pid} on ")
    assert end(first) == ""
    assert end(start(tmp_path)) == "owner\n"


def test_the_owner_itself_is_refused_a_second_time(tmp_path):
    with owned(tmp_path, pytest.fail), pytest.raises(InUse), owned(tmp_path, pytest.fail):
        pass
    with owned(tmp_path, pytest.fail):
        assert files(tmp_path) == ["00000002.json"]


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_owner_is_taken_over_at_once(tmp_path, reaped):
    first = start(tmp_path)
    first.stdout.readline()
    first.kill()
    if reaped:
        first.wait()
    else:  # a zombie: it has ended, and its number is still taken
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    _, sentences = acquire(tmp_path)
    assert len(sentences) == 1
    assert f"taken over from process {first.pid} on " in sentences[0]
    first.wait()


def test_another_process_with_the_number_of_the_owner_is_not_the_owner(tmp_path):
    acquire(tmp_path)
    rewrite(tmp_path, process_started="1")
    acquire(tmp_path)


def test_an_owner_elsewhere_is_dead_after_a_minute_by_the_clock_of_the_files(tmp_path):
    acquire(tmp_path)
    rewrite(tmp_path, machine="another", host="far-away")
    path = tmp_path / "owner" / "00000001.json"
    os.utime(path, (time.time() - 61, time.time() - 61))
    _, sentences = acquire(tmp_path)
    assert "taken over from process" in sentences[0] and "far-away" in sentences[0]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(owner, "HEARTBEAT", 0.2)
    monkeypatch.setattr(owner, "DEAD_AFTER", 1.5)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", [None, "", "{", "[1]", '{"pid": 3}'])
def test_an_owner_elsewhere_that_stays_silent_is_waited_for(tmp_path, content):
    acquire(tmp_path)
    if content is None:
        rewrite(tmp_path, machine="another")
    else:  # killed while it wrote its name
        (tmp_path / "owner" / "00000001.json").write_text(content)
    _, sentences = acquire(tmp_path)
    assert "to see whether it is alive" in sentences[0]
    assert "taken over" in sentences[1]


@pytest.mark.usefixtures("quick")
def test_an_owner_elsewhere_that_gives_a_sign_of_life_is_alive(tmp_path):
    ownership, _ = acquire(tmp_path)
    rewrite(tmp_path, machine="another")
    timer = threading.Timer(0.7, ownership.beat)
    timer.start()
    with pytest.raises(InUse):
        acquire(tmp_path)
    timer.join()


@pytest.mark.parametrize("dead_owner", [False, True])
def test_of_many_processes_one_wins(tmp_path, dead_owner):
    if dead_owner:
        acquire(tmp_path)
        rewrite(tmp_path, process_started="1")
    processes = [start(tmp_path) for _ in range(8)]
    first_words = []
    for process in processes:
        line = process.stdout.readline()
        while "taken over" in line:  # whoever tries says so, and one succeeds
            line = process.stdout.readline()
        first_words.append(line.split()[0])
    assert sorted(first_words) == ["owner"] + ["refused"] * 7
    for process in processes:
        end(process)


def test_a_process_that_was_slow_finds_that_others_have_passed(tmp_path):
    """It has seen the first owner dead; meanwhile a second has come, and a third has followed."""
    acquire(tmp_path)
    slow = Ownership(tmp_path)
    rewrite(tmp_path, process_started="1")
    second, _ = acquire(tmp_path)
    assert not slow._create(2)
    second.release()
    acquire(tmp_path)
    assert files(tmp_path) == ["00000003.json"]
    assert not slow._create(2)
    assert files(tmp_path) == ["00000003.json"]


def test_an_owner_that_was_taken_for_dead_ends_at_once(tmp_path):
    halted = start(tmp_path, heartbeat=0.3)
    assert halted.stdout.readline() == "owner\n"
    halted.send_signal(signal.SIGSTOP)
    mine = Owner.this_process(tmp_path)
    content = json.dumps(dataclasses.asdict(mine))
    (tmp_path / "owner" / "00000002.json").write_text(content)
    halted.send_signal(signal.SIGCONT)
    said = halted.stdout.read()
    assert halted.wait() == 3
    assert f"error: {tmp_path} was taken over by process {mine.pid} on" in said
    assert files(tmp_path) == ["00000001.json", "00000002.json"]


def test_signs_of_life_are_for_the_owner_alone(tmp_path):
    first, _ = acquire(tmp_path)
    path = tmp_path / "owner" / "00000001.json"
    os.utime(path, (0, 0))
    first.beat()
    assert path.stat().st_mtime > 1e9
    rewrite(tmp_path, token="another")
    with pytest.raises(LostOwnership):
        first.beat()
    first.release()  # does not release what another owns
    assert "released" not in path.read_text()


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "owner").mkdir()
    for name in ("notes.txt", "1.json", "00000009.json.bak"):
        (tmp_path / "owner" / name).write_text("mine")
    for _ in range(3):
        with owned(tmp_path, pytest.fail):
            pass
    assert files(tmp_path) == ["00000003.json", "00000009.json.bak", "1.json", "notes.txt"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "owner").write_text("a file")
    with pytest.raises(OSError):
        acquire(tmp_path)


def test_a_copy_of_a_directory_in_use_is_not_in_use(tmp_path):
    first = start(tmp_path / "original")
    first.stdout.readline()
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    acquire(tmp_path / "copy")
    assert end(start(tmp_path / "original")).startswith("refused")
    end(first)


@pytest.mark.usefixtures("quick")
def test_a_time_that_is_yet_to_come_does_not_make_an_owner_immortal(tmp_path):
    acquire(tmp_path)
    rewrite(tmp_path, machine="another")
    path = tmp_path / "owner" / "00000001.json"
    os.utime(path, (time.time() + 3600, time.time() + 3600))
    _, sentences = acquire(tmp_path)
    assert "taken over" in sentences[-1]


def test_waiting_can_be_ended(tmp_path):
    acquire(tmp_path)
    rewrite(tmp_path, machine="another")

    def pause(seconds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Ownership(tmp_path).acquire(lambda sentence: None, pause)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fields", [{"pid": "abc"}, {"pid": -5}, {"pid": True}, {"host": None}])
def test_odd_owners_are_waited_for_and_taken_over(tmp_path, fields):
    acquire(tmp_path)
    rewrite(tmp_path, **fields)
    _, sentences = acquire(tmp_path)
    assert "a process that left no name" in sentences[-1]


def test_numbers_go_on_beyond_eight_digits(tmp_path):
    acquire(tmp_path)
    path = tmp_path / "owner" / "00000001.json"
    path.rename(path.with_name("99999999.json"))
    rewrite(tmp_path, process_started="1")
    acquire(tmp_path)
    with pytest.raises(InUse):
        acquire(tmp_path)
