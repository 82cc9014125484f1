"""The log against damaged, cut, empty and foreign files, kills between operations, and sheer size.

Whatever stands in the folder, opening and reading it end in sentences, and no byte that was there
is changed or removed.
"""

from __future__ import annotations

import io
import json
import os
import tracemalloc
import zlib

import hypothesis
import hypothesis.strategies as st
import pytest

from prefixrl_jax.corpus import sample_log
from prefixrl_jax.corpus.attempts import LoggedSamples, statistics
from prefixrl_jax.corpus.sample_log import Log
from prefixrl_jax.runtime.parts import Manifest
from prefixrl_jax.runtime.store import AppendingStore, LocalStore
from prefixrl_jax.tasks.task import Problem

HEADER = {"model": "abc"}


def line(value) -> bytes:
    """A line of the log, sound whatever it says."""
    text = (value if isinstance(value, str) else json.dumps(value)).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def sample(i, problem="p", verdict="wrong", **fields):
    record = {"stage": "select", "problem": problem, "sample": i, "verdict": verdict, "tokens": 5}
    return record | fields


def trace(i, tokens):
    return {
        "problem_id": "p",
        "sample_id": i,
        "context_ids": [1],
        "token_ids": [7] * tokens,
        "logprobs": [-0.5] * tokens,
        "finish_reason": "stop",
        "samples": 0,
        "flops": 0.0,
        "source": "sampled",
    }


def files(path):
    return {p.name: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def intact(path, before):
    """Whether the bytes of every file that was there still are, if need be under another name.

    A manifest that is sound may be replaced.
    """
    now = files(path)
    return all(now.get(n) == data or data in now.values() for n, data in before.items())


def precious(path):
    """The files of a log that nobody may change."""
    sound = not Manifest(LocalStore(path.parent), f"{path.name}/{MANIFEST}").damage
    return {n: data for n, data in files(path).items() if n != MANIFEST or not sound}


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk():
    """Hundreds of small logs would wait for it for a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture
def log(tmp_path):
    """A log of two closed parts of two samples each, and one open part with one."""
    for first in (0, 2):
        with Log(tmp_path / "log", HEADER) as log:
            log.append(sample(first))
            log.append(sample(first + 1))
    (tmp_path / "log" / "part-000003.jsonl").write_bytes(line(HEADER) + line(sample(4)))
    return tmp_path / "log"


def replace(name, data):
    def damage(path):
        file = path / name
        file.write_bytes(data(file.read_bytes()) if callable(data) else data)

    return damage


def delete(name):
    return lambda path: (path / name).unlink()


MANIFEST, FIRST, SECOND, OPEN = ("manifest.json", *(f"part-00000{n}.jsonl" for n in (1, 2, 3)))
FOREIGN = b'{"question": "1 + 1"}\n{"question": "2"}\n'
ALL = [0, 1, 2, 3, 4]
# What happens to the folder; the samples that are still known; what is said about it.
DAMAGE = {
    "nothing": (lambda path: None, ALL, None),
    "manifest gone": (delete(MANIFEST), ALL, None),
    "manifest empty": (replace(MANIFEST, b""), ALL, f"{MANIFEST}: not a manifest (the file is emp"),
    "manifest cut": (replace(MANIFEST, lambda data: data[:-40]), ALL, f"{MANIFEST}: not a manif"),
    "manifest changed": (
        replace(MANIFEST, lambda data: data.replace(b'"records": 2', b'"records": 3')),
        ALL,
        f"{MANIFEST}: not a manifest (the checksum differs)",
    ),
    "manifest of bytes": (replace(MANIFEST, b"\xff\xfe\x00"), ALL, f"{MANIFEST}: not a manifest"),
    "manifest a list": (replace(MANIFEST, b"[]"), ALL, "a JSON object is expected"),
    "manifest nested": (replace(MANIFEST, b"[" * 100_000), ALL, f"{MANIFEST}: not a manifest"),
    "closed part gone": (delete(FIRST), [2, 3, 4], f"{FIRST}: missing; its 2 records are lost"),
    "closed part empty": (replace(FIRST, b""), [2, 3, 4], f"{FIRST}: empty"),
    "closed part foreign": (replace(FIRST, FOREIGN), [2, 3, 4], f"{FIRST}, line 1: dropped"),
    "closed part cut": (
        replace(FIRST, lambda data: data[:-9]),
        [0, 2, 3, 4],
        f"{FIRST}: has changed since it was closed; 1 of its 2 records are sound",
    ),
    "closed part short of a line": (
        replace(FIRST, lambda data: data[: data.rindex(b"\n", 0, -1) + 1]),
        [0, 2, 3, 4],
        f"{FIRST}: has changed since it was closed; 1 of its 2 records are sound",
    ),
    "closed part longer": (
        replace(FIRST, lambda data: data + b"\n"),
        ALL,
        f"{FIRST}, line 4: dropped 1 bytes",
    ),
    "closed part of another log": (
        replace(SECOND, line({"model": "xyz"}) + line(sample(9))),
        [0, 1, 4],
        f"{SECOND}, line 1: dropped this part and all its records: it has another log's header",
    ),
    "closed part of zeros": (replace(SECOND, bytes(300)), [0, 1, 4], f"{SECOND}, line 1: dropped"),
    "open part gone": (delete(OPEN), ALL[:4], None),
    "open part empty": (replace(OPEN, b""), ALL[:4], f"{OPEN}: empty; there are no records in it"),
    "open part cut": (replace(OPEN, lambda data: data[:-1]), ALL[:4], f"{OPEN}, line 2: dropped"),
    "open part of zeros": (replace(OPEN, bytes(300)), ALL[:4], f"{OPEN}, line 1: dropped 300 byte"),
    "no JSON": (replace(OPEN, line(HEADER) + line("{")), ALL[:4], f"{OPEN}, line 2: dropped"),
    "a list": (replace(OPEN, line(HEADER) + line([1])), ALL[:4], "a JSON object is expected"),
    "NaN": (replace(OPEN, line(HEADER) + line('{"p":NaN}')), ALL[:4], "NaN is no JSON value"),
    "brackets": (
        replace(OPEN, line(HEADER) + line("[" * 100_000)),
        ALL[:4],
        "brackets are nested too deeply",
    ),
    "digits": (replace(OPEN, line(HEADER) + line("9" * 9_999)), ALL[:4], f"{OPEN}, line 2: drop"),
    "another folder": (lambda path: (path / "part-000009.jsonl").mkdir(), ALL, None),
    "another file": (
        lambda path: (path / "part-9.jsonl").write_bytes(FOREIGN),
        ALL,
        None,
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_told_and_costs_only_what_it_hit(log, name):
    damage, expected, sentence = DAMAGE[name]
    damage(log)
    before = files(log)
    reader = Log(log, HEADER)
    assert [record["sample"] for record in reader.records] == expected
    assert files(log) == before
    if sentence is None:
        assert reader.dropped == []
    else:
        assert any(sentence in told for told in reader.dropped), reader.dropped
    before = precious(log)
    # A writer goes on, changes nothing that was there, and is found again.
    with Log(log, HEADER) as writer:
        writer.append(sample(5))
    assert intact(log, before)
    assert [record["sample"] for record in Log(log, HEADER).records] == [*expected, 5]


# Fields of a record whose line is sound; what is said about it.
NO_SAMPLES = [
    ({"stage": None}, "field 'stage' is None; a text is expected"),
    ({"problem": 3}, "field 'problem' is 3; a text"),
    ({"sample": -1}, "field 'sample' is -1; a whole number from 0"),
    ({"sample": 1.0}, "field 'sample' is 1.0"),
    ({"sample": True}, "field 'sample' is True"),
    ({"sample": 10**30}, "field 'sample' is 1000"),
    ({"tokens": "5"}, "field 'tokens' is '5'"),
    ({"tokens": 10**30}, "field 'tokens' is 1000"),
    ({"verdict": "right"}, "field 'verdict' is 'right'; one of correct, wrong"),
    ({"verdict": ["correct"]}, "field 'verdict' is ['correct']"),
    ({"stage": "collect", "verdict": "correct"}, "field 'trace' is missing"),
    ({"wrong": 5}, "not the record of a sample"),
    ({"wrong": ["a"]}, "not the record of a sample"),
    ({"wrong": [1 << 70]}, "not the record of a sample"),
    ({"trace": []}, "not the record of a"),
    ({"trace": {"a": 1}}, "missing fields"),
    ({"trace": trace(3, 2) | {"logprobs": [0.5]}}, "has 1 logprobs for 2"),
    ({"trace": trace(3, 2) | {"token_ids": [1, None]}}, "field 'token_ids' is"),
    ({"trace": trace(3, 2) | {"token_ids": 5}}, "field 'token_ids' is"),
    ({"trace": trace(3, 2) | {"finish_reason": ["stop"]}}, "finish_reason"),
]


@pytest.mark.parametrize(("fields", "sentence"), NO_SAMPLES)
def test_a_sound_line_that_is_no_sample_is_left_out(tmp_path, fields, sentence):
    with Log(tmp_path / "log", HEADER) as log:
        log.append(sample(0))
        log.append(sample(1) | fields)
        log.append(sample(2))
    (tmp_path / "log" / "manifest.json").unlink()
    logged = LoggedSamples()
    log = Log(tmp_path / "log", HEADER)
    log.read(logged.add)
    (told,) = log.dropped
    assert "part-000001.jsonl, line 3: dropped" in told and sentence in told
    attempts = logged.get("select", Problem("p", {}), 1)
    assert attempts.lengths == {0: 5, 2: 5}


@pytest.mark.parametrize("version", [2, "1", None])
def test_a_later_format_is_refused_and_left_alone(log, version):
    manifest = json.loads((log / MANIFEST).read_text()) | {"format": version}
    del manifest["crc32"]
    checksum = zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
    (log / MANIFEST).write_text(json.dumps({"crc32": f"{checksum:08x}"} | manifest))
    before = files(log)
    with pytest.raises(ValueError, match=rf"{MANIFEST}: format .*, and this version reads 1"):
        Log(log, HEADER)
    assert files(log) == before


@pytest.mark.parametrize("name", ["log/part-000003.jsonl", "log.jsonl"])
def test_a_foreign_file_in_the_place_of_a_part_is_refused(log, name):
    (log.parent / name).write_bytes(FOREIGN)
    with pytest.raises(ValueError, match=rf"{name}, line 1: not the header of a log: .*move the"):
        Log(log, HEADER)
    (log.parent / name).write_bytes(line({"model": "xyz"}) + line(sample(9)))
    with pytest.raises(ValueError, match=rf"{name}: the log was written under another header; mod"):
        Log(log, HEADER)
    assert (log.parent / name).read_bytes().startswith(line({"model": "xyz"}))


def test_thousands_of_damaged_lines_are_told_in_a_few_sentences(tmp_path):
    with Log(tmp_path / "log", HEADER) as log:
        for i in range(5_000):
            log.append(sample(i))
    part = tmp_path / "log" / FIRST
    part.write_bytes(part.read_bytes().replace(b"wrong", b"wrung"))
    log = Log(tmp_path / "log", HEADER)
    assert list(log.records) == []
    assert len(log.dropped) < 15
    assert f"{FIRST}: dropped 5000 lines in all" in log.dropped[-2]


def test_a_file_that_cannot_be_read_is_named_and_nothing_is_concluded(log, monkeypatch):
    class Failing(io.BytesIO):
        def readline(self, *_):
            raise OSError(5, "Input/output error")

    before = files(log)
    reader = Log(log, HEADER)
    monkeypatch.setattr(LocalStore, "open", lambda self, name: Failing())
    with pytest.raises(OSError, match=rf"could not be read, and nothing .*{FIRST}"):
        list(reader.records)
    monkeypatch.undo()
    assert files(log) == before


# --- fuzzing: whatever the bytes of a part are

SOUND = line(HEADER) + b"".join(
    line(sample(i, verdict="correct" if i == 2 else "wrong")) for i in range(4)
)
EDITS = st.lists(
    st.tuples(st.integers(0, len(SOUND)), st.integers(0, 40), st.binary(max_size=20)), max_size=4
)


def edited(edits):
    data = SOUND
    for start, removed, inserted in edits:
        data = data[:start] + inserted + data[start + removed :]
    return data


@hypothesis.settings(max_examples=150, deadline=2_000)
@hypothesis.given(data=st.binary(max_size=200) | st.builds(edited, EDITS), closed=st.booleans())
def test_any_bytes_are_read_or_refused_in_a_sentence(tmp_path_factory, data, closed):
    path = tmp_path_factory.mktemp("fuzz") / "log"
    with Log(path, HEADER) as log:
        for i in range(4):
            log.append(sample(i, verdict="correct" if i == 2 else "wrong"))
    if not closed:
        (path / MANIFEST).unlink()
    (path / FIRST).write_bytes(data)
    try:
        log = Log(path, HEADER)
    except ValueError as error:
        assert "part-000001.jsonl" in str(error) and "\n" not in str(error)
        assert not closed
        return
    logged = LoggedSamples()
    log.read(logged.add)
    whole = set(SOUND.splitlines(keepends=True)[1:])
    kept = [part for part in data.splitlines(keepends=True)[1:] if part in whole]
    attempts = logged.get("select", Problem("p", {}), 1)
    assert len(attempts.outcomes) == len(set(kept))
    if data != SOUND and len(set(kept)) < 4 and closed:
        assert log.dropped
    before = precious(path)
    with Log(path, HEADER) as log:
        log.append(sample(7))
    assert intact(path, before)


@hypothesis.settings(max_examples=100, deadline=2_000)
@hypothesis.given(data=st.data())
def test_any_manifest_is_read_or_set_aside(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "log"
    with Log(path, HEADER) as log:
        log.append(sample(0))
    sound = (path / MANIFEST).read_bytes()
    start = data.draw(st.integers(0, len(sound)))
    end = data.draw(st.integers(start, len(sound)))
    damaged = sound[:start] + data.draw(st.binary(max_size=20)) + sound[end:]
    (path / MANIFEST).write_bytes(damaged)
    with Log(path, HEADER) as log:
        assert [record["sample"] for record in log.records] == [0]
        log.append(sample(1))
    assert [record["sample"] for record in Log(path, HEADER).records] == [0, 1]
    assert damaged in files(path).values() or json.loads(damaged) == json.loads(sound)


# --- kills between any two operations, on a disk and on a store without append, rename and lock


class Killed(BaseException):
    """Nothing of the process runs after this."""


class MemoryStore:
    """An object store: files are put as a whole, and never appended to or renamed."""

    def __init__(self):
        self.objects: dict[str, bytes] = {}

    def place(self, name):
        return f"memory://{name}"

    def list(self, prefix):
        return sorted(name for name in self.objects if name.startswith(prefix))

    def open(self, name):
        if name not in self.objects:
            raise FileNotFoundError(2, "No such object", self.place(name))
        return io.BytesIO(self.objects[name])

    def put(self, name, data):
        self.objects[name] = bytes(data)

    def put_if_absent(self, name, data):
        if name in self.objects:
            raise FileExistsError(17, "Object exists", self.place(name))
        self.objects[name] = bytes(data)


class Mortal:
    """A store whose user is killed before or after an operation that writes."""

    def __init__(self, store, life):
        self._store = store
        self._life = life

    def __getattr__(self, name):
        operation = getattr(self._store, name)
        if name not in ("put", "put_if_absent", "extend", "write", "sync"):
            return operation

        def mortal(*arguments):
            self._spend()
            result = operation(*arguments)
            self._spend()
            if name != "extend":
                return result
            file = Mortal(result, 0)
            file._life = self._life
            file._spend = self._spend
            return file

        return mortal

    def _spend(self):
        if self._life == 0:
            raise Killed
        self._life -= 1


@pytest.mark.parametrize("kind", ["disk", "objects"])
def test_killed_between_any_two_operations_nothing_acknowledged_is_lost(tmp_path, kind):
    """Every life writes records until it is killed; the next one begins with them all."""
    store = LocalStore(tmp_path) if kind == "disk" else MemoryStore()
    assert isinstance(store, AppendingStore) == (kind == "disk")
    acknowledged = 0
    written = 0
    clean = 0
    for life in range(80):
        log = Log("log", HEADER, store=Mortal(store, life % 40), part_bytes=150)
        samples = [record["sample"] for record in log.records]
        assert log.dropped == []
        assert set(range(acknowledged)) <= set(samples) <= set(range(written))
        assert len(samples) == len(set(samples))
        written = acknowledged = max(samples, default=-1) + 1
        try:
            for _ in range(3):
                log.append(sample(written))
                written += 1
                log.flush()
                acknowledged = written
            log.close()
            clean += 1
        except Killed:
            pass
    assert acknowledged > 60
    assert clean
    manifest = json.loads(store.open("log/manifest.json").read())
    listed = {part["name"] for part in manifest["parts"]}
    assert listed <= set(store.list("log/part-"))


def test_two_writers_at_once_do_not_touch_each_others_parts(tmp_path):
    one, two = Log(tmp_path / "log", HEADER), Log(tmp_path / "log", HEADER)
    for i in range(10):
        for writer, number in ((one, 2 * i), (two, 2 * i + 1)):
            writer.append(sample(number))
            writer.flush()
    one.close()
    two.close()
    log = Log(tmp_path / "log", HEADER)
    assert sorted(record["sample"] for record in log.records) == list(range(20))
    assert log.dropped == []


def test_a_sample_that_is_there_twice_counts_once(tmp_path):
    with Log(tmp_path / "log", HEADER) as log:
        for _ in range(2):
            log.append(sample(0, verdict="correct"))
    logged = LoggedSamples()
    Log(tmp_path / "log", HEADER).read(logged.add)
    assert logged.get("select", Problem("p", {}), 1).successes == 1


# --- size


def peak_of_reading(path, count, tokens):
    """Write a log of `count` samples in 20 problems; return the peak memory of a pass, bytes."""
    with Log(path, HEADER, part_bytes=100_000) as log:
        for i in range(count):
            number, problem = divmod(i, 20)
            fields = {"stage": "collect", "tokens": tokens}
            if number % 4 == 1:
                fields |= {"verdict": "correct", "trace": trace(number, tokens)}
            log.append(sample(number, f"p{problem}", **fields))
            log.flush(wait=False)
    tracemalloc.start()
    try:
        logged = LoggedSamples()
        Log(path, HEADER).read(logged.add)
        attempts = [logged.get("collect", Problem(f"p{i}", {}), 1) for i in range(20)]
        totals = statistics({a.problem.id: a for a in attempts})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(t["tokens"] for t in totals.values()) == count * tokens
    assert all(t["first_correct"] == 1 for t in totals.values())
    return peak


def test_memory_does_not_grow_with_the_log(tmp_path, monkeypatch):
    """Ten times the samples cost 32 bytes more for each, whatever their tokens."""
    monkeypatch.setattr(sample_log, "SYNC_SECONDS", 1e9)
    few = peak_of_reading(tmp_path / "few", 200, 300)
    many = peak_of_reading(tmp_path / "many", 2_000, 300)
    assert many - few < 32 * 1_800
