"""The log loses nothing that was flushed, whatever happens to the file."""

import errno
import json
import os
import pathlib
import resource
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
    return path.read_bytes()


def read_log(path):
    with Log(path, HEADER) as log:
        return log.records, log.dropped


def test_log_lines_are_a_crc32_and_its_json(tmp_path):
    lines = write_log(tmp_path / "new" / "log").split(b"\n")
    assert lines.pop() == b""
    assert [json.loads(line[9:]) for line in lines] == [HEADER, *RECORDS]
    assert [int(line[:8], 16) for line in lines] == [zlib.crc32(line[9:]) for line in lines]


def test_log_reopened_goes_on_where_it_ended(tmp_path):
    write_log(tmp_path / "log", RECORDS[:1])
    write_log(tmp_path / "log", RECORDS[1:])
    assert read_log(tmp_path / "log") == (RECORDS, [])
    assert os.listdir(tmp_path) == ["log"]


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
    path = tmp_path / "log"
    synced = []
    fsync = os.fsync

    def recording_fsync(file):
        fsync(file)
        synced.append(os.fstat(file).st_size)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    with Log(path, HEADER) as log:
        for record in RECORDS:
            synced.clear()
            log.append(record)
            assert synced == []
            log.flush()
            assert synced == [path.stat().st_size]


def test_flush_without_waiting_leaves_the_disk_two_seconds(tmp_path, monkeypatch):
    synced = []
    now = [0.0]
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(now[0]))
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Log(tmp_path / "log", HEADER) as log:
        synced.clear()
        for now[0] in (0.5, 1.9, 2.1, 3.0, 4.2):
            log.append(RECORDS[0])
            log.flush(wait=False)
            # The system has the record already, so a kill of the process does not lose it.
            assert (tmp_path / "log").read_bytes().endswith(b'"id":"a","tokens":[1,2,3]}\n')
        assert synced == [2.1, 4.2]
        log.append(RECORDS[1])
        log.flush(wait=False)
    assert synced == [2.1, 4.2, 4.2]  # closing waits for what is left
    assert read_log(tmp_path / "log")[0] == [RECORDS[0]] * 5 + [RECORDS[1]]


def test_torn_last_record_is_cut_at_every_byte(tmp_path):
    path = tmp_path / "log"
    whole = write_log(path)
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        records, dropped = read_log(path)
        assert records == RECORDS[:-1]
        assert path.read_bytes() == whole[:start]
        if end == start:
            assert dropped == []
        else:
            assert dropped == [f"{path}, line 4: dropped {end - start} bytes: the line is torn"]
        write_log(path, RECORDS[-1:])
        assert path.read_bytes() == whole


def test_any_flipped_byte_in_the_middle_loses_that_record_only(tmp_path):
    path = tmp_path / "log"
    whole = write_log(path)
    start = whole.index(b"\n", whole.index(b"\n") + 1) + 1  # of the second record
    for offset in range(start, whole.index(b"\n", start)):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x20
        path.write_bytes(damaged)
        records, dropped = read_log(path)
        assert records == [RECORDS[0], RECORDS[2]]
        assert f"{path}, line 3: " in dropped[0]
        assert "the checksum differs" in dropped[0]
        assert path.read_bytes() == damaged


def test_any_damage_to_the_header_is_refused(tmp_path):
    path = tmp_path / "log"
    whole = write_log(path)
    header_size = whole.index(b"\n") + 1
    for offset in range(header_size):
        damaged = bytearray(whole)
        damaged[offset] ^= 0x01
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="line 1: not the header of a log"):
            Log(path, HEADER)
        path.write_bytes(whole[:offset])
        with pytest.raises(ValueError, match="line 1: not the header of a log"):
            Log(path, HEADER)
        assert path.read_bytes() == whole[:offset]


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
    path = tmp_path / "log"
    pwrite = os.pwrite
    whole = write_log(tmp_path / "reference")
    start = len(write_log(path, RECORDS[:1]))
    for room in range(len(whole) - start):

        def full_disk(file, data, offset, limit=start + room):
            if offset >= limit:
                raise OSError(errno.ENOSPC, "No space left on device")
            return pwrite(file, data[: limit - offset], offset)

        path.write_bytes(whole[:start])
        log = Log(path, HEADER)
        for record in RECORDS[1:]:
            log.append(record)
        monkeypatch.setattr(os, "pwrite", full_disk)
        with pytest.raises(OSError, match="2 records were not saved") as error:
            log.flush()
        assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
        assert path.read_bytes() == whole[: start + room]
        monkeypatch.setattr(os, "pwrite", pwrite)
        log.close()
        assert path.read_bytes() == whole
        path.write_bytes(whole[: start + room])
        assert read_log(path)[0] == RECORDS[: whole[: start + room].count(b"\n") - 1]


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


def test_failed_creation_leaves_no_log(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full_disk)
    with pytest.raises(OSError, match="could not be created"):
        Log(tmp_path / "log", HEADER)
    assert not (tmp_path / "log").exists()
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
