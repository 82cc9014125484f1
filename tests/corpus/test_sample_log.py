"""The log loses nothing that was flushed, whatever happens to the file."""

import errno
import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from prefixrl_jax.corpus.sample_log import Log

HEADER = {"model": "abc", "seed": 1}
RECORDS = [
    {"id": "a", "tokens": [1, 2, 3]},
    {"id": "b", "p": -0.125},
    {"id": "c", "text": "naïve\u2028\n"},
]


def write_log(path, records=RECORDS, header=HEADER):
    with Log(path, header) as log:
        for record in records:
            log.append(record)
    return last_part(path).read_bytes() if records else b""


def read_log(path):
    with Log(path, HEADER) as log:
        return list(log.records), log.dropped


def last_part(path):
    return max(path.glob("part-*.jsonl"))


def open_part(path, data):
    """Make the log one part with these bytes, which was not closed."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    part = path / "part-000001.jsonl"
    part.write_bytes(data)
    return part


def encoded(value):
    text = json.dumps(value, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def test_log_lines_are_a_crc32_and_its_json(tmp_path):
    lines = write_log(tmp_path / "new" / "log").split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line[9:]) for line in lines] == [HEADER, *RECORDS]
    assert [int(line[:8], 16) for line in lines] == [zlib.crc32(line[9:]) for line in lines]


def test_the_manifest_lists_closed_parts_with_their_checksums(tmp_path):
    first = write_log(tmp_path / "log", RECORDS[:1])
    second = write_log(tmp_path / "log", RECORDS[1:])
    assert read_log(tmp_path / "log") == (RECORDS, [])
    assert sorted(os.listdir(tmp_path / "log")) == [
        "manifest.json",
        "part-000001.jsonl",
        "part-000002.jsonl",
    ]
    manifest = json.loads((tmp_path / "log" / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["header"] == HEADER
    assert manifest["parts"] == [
        {
            "name": f"log/part-{number:06d}.jsonl",
            "records": count,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        for number, count, data in ((1, 1, first), (2, 2, second))
    ]


def test_opening_and_reading_write_nothing(tmp_path):
    assert read_log(tmp_path / "log") == ([], [])
    assert os.listdir(tmp_path) == []
    data = write_log(tmp_path / "log")
    part = open_part(tmp_path / "log", data[:-5])
    assert read_log(tmp_path / "log")[0] == RECORDS[:2]
    assert os.listdir(tmp_path / "log") == [part.name]
    assert part.read_bytes() == data[:-5]


def test_a_part_is_closed_when_it_is_large(tmp_path):
    records = [{"i": i} for i in range(48)]
    log = Log(tmp_path / "log", HEADER, part_bytes=200)
    for record in records:
        log.append(record)
        log.flush(wait=False)
    manifest = json.loads((tmp_path / "log" / "manifest.json").read_text())
    parts = sorted((tmp_path / "log").glob("part-*"))
    assert len(parts) - 1 == len(manifest["parts"]) > 3  # the last is open
    assert all(200 <= part["bytes"] < 240 for part in manifest["parts"])
    log.close()
    assert read_log(tmp_path / "log") == (records, [])
    assert list(log.records) == []  # it had none when it was opened


def test_the_one_file_of_earlier_versions_is_the_first_part(tmp_path):
    """It is read, gone on with, and stays as it is."""
    earlier = b"".join(map(encoded, [HEADER, *RECORDS[:2]])) + b"0badc0de {"
    (tmp_path / "log.jsonl").write_bytes(earlier)
    records, dropped = read_log(tmp_path / "log.jsonl")
    assert records == RECORDS[:2]
    assert dropped == [f"{tmp_path}/log.jsonl, line 4: dropped 10 bytes: the line is torn"]
    write_log(tmp_path / "log", RECORDS[2:])
    assert (tmp_path / "log.jsonl").read_bytes() == earlier
    assert read_log(tmp_path / "log") == (RECORDS, [])  # the torn line is known
    (tmp_path / "log.jsonl").write_bytes(earlier.replace(b"-0.125", b"-0.126"))
    records, dropped = read_log(tmp_path / "log")
    assert records == [RECORDS[0], RECORDS[2]]
    assert "log.jsonl, line 3: dropped" in dropped[0]
    assert "has changed since it was closed; 1 of its 2 records" in dropped[-1]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.lists(st.dictionaries(st.text(), JSON_VALUES), max_size=4))
def test_log_returns_any_json(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("log") / "log"
    write_log(path, records)
    assert read_log(path) == (records, [])


def test_flush_waits_for_the_disk(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync

    def recording_fsync(file):
        fsync(file)
        synced.append(os.fstat(file).st_size)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    with Log(tmp_path / "log", HEADER) as log:
        for record in RECORDS:
            synced.clear()
            log.append(record)
            assert synced == []
            log.flush()
            assert synced[-1] == last_part(tmp_path / "log").stat().st_size


def test_flush_without_waiting_leaves_the_disk_two_seconds(tmp_path, monkeypatch):
    synced = []
    now = [0.0, 2]  # the time, and the records that are expected
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(now[0]))
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Log(tmp_path / "log", HEADER) as log:
        log.append(RECORDS[0])
        log.flush()  # begins the part
        synced.clear()
        for now[0] in (0.5, 1.9, 2.1, 3.0, 4.2):
            log.append(RECORDS[0])
            log.flush(wait=False)
            # The system has the record already, so a kill of the process does not lose it.
            assert last_part(tmp_path / "log").read_bytes().count(b'"tokens":[1,2,3]}\n') == now[1]
            now[1] += 1
        assert synced == [2.1, 4.2]
        log.append(RECORDS[1])
        log.flush(wait=False)
    assert synced[:3] == [2.1, 4.2, 4.2]  # closing waits for what is left
    assert read_log(tmp_path / "log")[0] == [RECORDS[0]] * 6 + [RECORDS[1]]


def test_a_record_torn_at_any_byte_is_left_where_it_is(tmp_path):
    """The part is closed as it is, and another one begun."""
    path = tmp_path / "log"
    whole = write_log(path)
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        part = open_part(path, whole[:end])
        records, dropped = read_log(path)
        assert records == RECORDS[:-1]
        if end == start:
            assert dropped == []
        else:
            assert dropped == [f"{part}, line 4: dropped {end - start} bytes: the line is torn"]
        write_log(path, RECORDS[-1:])
        assert part.read_bytes() == whole[:end]
        assert read_log(path) == (RECORDS, [])


@pytest.mark.parametrize("closed", [False, True])
def test_any_flipped_byte_in_the_middle_loses_that_record_only(tmp_path, closed):
    path = tmp_path / "log"
    whole = write_log(path)
    start = whole.index(b"\n", whole.index(b"\n") + 1) + 1  # of the second record
    for offset in range(start, whole.index(b"\n", start)):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x20
        part = path / "part-000001.jsonl"
        if closed:
            part.write_bytes(damaged)
        else:
            open_part(path, damaged)
        records, dropped = read_log(path)
        assert records == [RECORDS[0], RECORDS[2]]
        assert f"{part}, line 3: " in dropped[0]
        assert "the checksum differs" in dropped[0]
        changed = f"{part}: has changed since it was closed; 2 of its 3 records are sound"
        assert dropped[1:] == ([changed] if closed else [])
        assert part.read_bytes() == damaged


def test_a_part_that_no_manifest_lists_must_have_its_header(tmp_path):
    path = tmp_path / "log"
    whole = write_log(path)
    header_size = whole.index(b"\n") + 1
    for offset in range(header_size):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x01
        part = open_part(path, damaged)
        with pytest.raises(ValueError, match=f"{part}, line 1: not the header of a log: .*move"):
            Log(path, HEADER)
        # A kill may have ended the writer before the header was whole.
        part = open_part(path, whole[:offset])
        records, dropped = read_log(path)
        assert records == []
        assert len(dropped) == 1 and str(part) in dropped[0]
        write_log(path)
        assert part.read_bytes() == whole[:offset]
        assert read_log(path) == (RECORDS, [])


def test_the_records_of_a_closed_part_survive_a_damaged_header(tmp_path):
    path = tmp_path / "log"
    whole = write_log(path)
    last_part(path).write_bytes(b"#" + whole[1:])
    records, dropped = read_log(path)
    assert records == RECORDS
    assert "line 1: dropped" in dropped[0]


def test_another_header_is_refused_by_its_differing_keys(tmp_path):
    write_log(tmp_path / "log")
    with pytest.raises(ValueError) as error:
        Log(tmp_path / "log", {"seed": 2, "model": "abc", "cap": None})
    assert str(error.value).endswith(
        "cap: '(absent)' in the file, None here; seed: 1 in the file, 2 here"
    )

    # A tuple comes back from JSON as a list, which is no difference.
    Log(tmp_path / "tuple", {"stop": (1, 2)}).close()
    Log(tmp_path / "tuple", {"stop": [1, 2]}).close()


@pytest.mark.parametrize(
    "record", [{"p": float("nan")}, {"p": float("-inf")}, {"token": np.int32(1)}]
)
def test_a_record_that_json_cannot_hold_is_refused(tmp_path, record):
    with Log(tmp_path / "log", HEADER) as log:
        with pytest.raises(ValueError, match="JSON values are accepted"):
            log.append(record)
        log.append(RECORDS[0])
    assert read_log(tmp_path / "log") == (RECORDS[:1], [])
    with pytest.raises(ValueError, match="closed"):
        log.append(RECORDS[0])


def test_full_disk_keeps_the_sound_records_and_a_retry_saves_the_rest(tmp_path, monkeypatch):
    pwrite = os.pwrite
    whole = write_log(tmp_path / "reference")
    start = len(write_log(tmp_path / "short", RECORDS[:1]))
    for room in range(len(whole) - start):

        def full_disk(file, data, offset, limit=start + room):
            if offset >= limit:
                raise OSError(errno.ENOSPC, "No space left on device")
            return pwrite(file, data[: limit - offset], offset)

        path = tmp_path / f"log {room}"
        log = Log(path, HEADER)
        log.append(RECORDS[0])
        log.flush()
        for record in RECORDS[1:]:
            log.append(record)
        monkeypatch.setattr(os, "pwrite", full_disk)
        with pytest.raises(OSError, match="2 records were not saved") as error:
            log.flush()
        part = path / "part-000001.jsonl"
        assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(part))
        assert part.read_bytes() == whole[: start + room]
        # The process may end now,
        assert read_log(path)[0] == RECORDS[: whole[: start + room].count(b"\n") - 1]
        # or go on once there is room.
        monkeypatch.setattr(os, "pwrite", pwrite)
        log.close()
        assert part.read_bytes() == whole
        assert read_log(path) == (RECORDS, [])


def test_a_size_limit_of_the_system_is_reported(tmp_path):
    path = tmp_path / "log"
    log = Log(path, HEADER)
    log.append({"text": "x" * 5000})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(OSError, match=str(path)):
            log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    records, dropped = read_log(path)
    assert records == []
    assert "torn" in dropped[0]


def test_failed_creation_leaves_no_part(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    log = Log(tmp_path / "log", HEADER)
    log.append(RECORDS[0])
    monkeypatch.setattr(os, "pwrite", full_disk)
    with pytest.raises(OSError, match="1 records were not saved"):
        log.flush()
    assert os.listdir(tmp_path / "log") == []
    monkeypatch.undo()
    write_log(tmp_path / "log")
    assert read_log(tmp_path / "log") == (RECORDS, [])


KILLED_WRITER = """
import os, sys
from prefixrl_jax.corpus.sample_log import Log
log = Log(sys.argv[1], {"model": "abc", "seed": 1})
for i in range(10**9):
    log.append({"i": i})
    if i % 7 == 6:
        log.flush(wait=False)
        os.write(1, b"%d\\n" % (i + 1))
"""


def test_killed_writer_loses_at_most_the_unflushed_records(tmp_path):
    path = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(path)], env=environment, stdout=subprocess.PIPE
    )
    counts = [writer.stdout.readline() for _ in range(20)]
    writer.send_signal(signal.SIGKILL)
    counts += writer.stdout.readlines()
    reported = int(counts[-1])
    assert writer.wait() == -signal.SIGKILL
    records, _ = read_log(path)
    assert reported >= 140
    assert reported <= len(records) <= reported + 7
    assert records == [{"i": i} for i in range(len(records))]
