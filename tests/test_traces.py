"""The log loses nothing that was flushed, whatever happens to the file; the dataset opens without TensorFlow."""

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

from prefixrl_jax import traces

HEADER = {"model": "abc", "seed": 1}
RECORDS = [{"id": "a", "tokens": [1, 2, 3]}, {"id": "b", "p": -0.125}, {"id": "c", "text": "naïve\u2028\n"}]


def write_log(path, records=RECORDS, header=HEADER):
    with traces.Log(path, header) as log:
        for record in records:
            log.append(record)
    return path.read_bytes()


def read_log(path):
    with traces.Log(path, HEADER) as log:
        return log.records, log.dropped


def make_trace(i, **changes):
    fields = dict(problem_id=f"problem-{i}", sample_id=i, context_ids=[7, 8, i], token_ids=list(range(i + 1)))
    fields |= dict(logprobs=[-0.5 * i] * (i + 1), finish_reason="stop", samples=i + 3, flops=1e15 / 3)
    return traces.Trace(**(fields | changes))


def run_python(code, *arguments):
    root = pathlib.Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True, text=True)


# --- the log


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
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(st.lists(st.dictionaries(st.text(), JSON_VALUES), max_size=4))
def test_log_returns_any_json(tmp_path_factory, records):
    path = tmp_path_factory.mktemp("log") / "log"
    write_log(path, records)
    assert read_log(path) == (records, [])


def test_flush_waits_for_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "log"
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), synced.append(os.fstat(file).st_size)))
    with traces.Log(path, HEADER) as log:
        for record in RECORDS:
            synced.clear()
            log.append(record)
            assert synced == []
            log.flush()
            assert synced == [path.stat().st_size]


def test_torn_last_record_is_cut_at_every_byte(tmp_path):
    path = tmp_path / "log"
    whole = write_log(path)
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        found, dropped = read_log(path)
        assert found == RECORDS[:-1]
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
    start = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    for at in range(start, whole.index(b"\n", start)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x20
        path.write_bytes(damaged)
        found, dropped = read_log(path)
        assert found == [RECORDS[0], RECORDS[2]]
        assert f"{path}, line 3: " in dropped[0] and "the checksum differs" in dropped[0]
        assert path.read_bytes() == damaged


def test_any_damage_to_the_header_is_refused(tmp_path):
    path = tmp_path / "log"
    whole = write_log(path)
    header_size = whole.index(b"\n") + 1
    for at in range(header_size):
        damaged = bytearray(whole)
        damaged[at] ^= 0x01
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="line 1: not the header of a log"):
            traces.Log(path, HEADER)
        path.write_bytes(whole[:at])
        with pytest.raises(ValueError, match="line 1: not the header of a log"):
            traces.Log(path, HEADER)
        assert path.read_bytes() == whole[:at]


def test_another_header_is_refused_by_its_differing_keys(tmp_path):
    write_log(tmp_path / "log")
    with pytest.raises(ValueError) as error:
        traces.Log(tmp_path / "log", {"seed": 2, "model": "abc", "cap": None})
    assert str(error.value).endswith("cap: '(absent)' in the file, None here; seed: 1 in the file, 2 here")
    traces.Log(tmp_path / "tuple", {"stop": (1, 2)}).close()
    traces.Log(tmp_path / "tuple", {"stop": [1, 2]}).close()


@pytest.mark.parametrize("record", [{"p": float("nan")}, {"p": float("-inf")}, {"token": np.int32(1)}])
def test_what_json_cannot_hold_is_refused(tmp_path, record):
    with traces.Log(tmp_path / "log", HEADER) as log:
        with pytest.raises(ValueError, match="JSON values are accepted"):
            log.append(record)
        log.append(RECORDS[0])
    assert read_log(tmp_path / "log") == (RECORDS[:1], [])
    with pytest.raises(ValueError, match="closed"):
        log.append(RECORDS[0])


def test_full_disk_keeps_what_was_sound_and_a_retry_saves_the_rest(tmp_path, monkeypatch):
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
        log = traces.Log(path, HEADER)
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
    log = traces.Log(path, HEADER)
    log.append({"text": "x" * 5000})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(OSError, match=str(path)):
            log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    records, dropped = read_log(path)
    assert records == [] and "torn" in dropped[0]


def test_failed_creation_leaves_no_log(tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full_disk)
    with pytest.raises(OSError, match="could not be created"):
        traces.Log(tmp_path / "log", HEADER)
    assert not (tmp_path / "log").exists()
    monkeypatch.undo()
    write_log(tmp_path / "log")
    assert read_log(tmp_path / "log") == (RECORDS, [])


KILLED_WRITER = """
import os, sys
from prefixrl_jax import traces
log = traces.Log(sys.argv[1], {"model": "abc", "seed": 1})
for i in range(10**9):
    log.append({"i": i})
    if i % 7 == 6:
        log.flush()
        os.write(1, b"%d\\n" % (i + 1))
"""


def test_killed_writer_loses_at_most_the_unflushed(tmp_path):
    path = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    writer = subprocess.Popen([sys.executable, "-c", KILLED_WRITER, str(path)], env=environment, stdout=subprocess.PIPE)
    first = [writer.stdout.readline() for _ in range(20)]
    writer.send_signal(signal.SIGKILL)
    reported = int((first + writer.stdout.readlines())[-1])
    assert writer.wait() == -signal.SIGKILL
    records, _ = read_log(path)
    assert reported >= 140
    assert reported <= len(records) <= reported + 7
    assert records == [{"i": i} for i in range(len(records))]


def test_this_module_loads_without_jax_or_tfds():
    code = "import sys; from prefixrl_jax import traces; print(sorted({'jax', 'tensorflow_datasets'} & set(sys.modules)))"
    assert run_python(code).stdout == "[]\n"


# --- traces


FLOAT32 = st.floats(max_value=0, allow_nan=False, allow_infinity=False, width=32)
TOKEN = st.integers(0, 2**31 - 1)
TRACES = st.builds(
    lambda rows, **fields: traces.Trace(token_ids=[row[0] for row in rows], logprobs=[row[1] for row in rows], **fields),
    rows=st.lists(st.tuples(TOKEN, FLOAT32), max_size=5),
    problem_id=st.text(),
    sample_id=st.integers(0, 2**62),
    context_ids=st.lists(TOKEN, max_size=4),
    finish_reason=st.sampled_from(traces.FINISH_REASONS),
    samples=st.integers(0, 2**62),
    flops=st.floats(min_value=0, allow_infinity=False),
)


@hypothesis.given(TRACES)
def test_trace_record_round_trip(trace):
    assert traces.Trace.from_record(json.loads(json.dumps(trace.to_record()))) == trace


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.lists(TRACES, min_size=1, max_size=4))
def test_dataset_round_trip(tmp_path_factory, found):
    directory = tmp_path_factory.mktemp("dataset")
    traces.write_dataset(found, directory, {})
    assert traces.read_dataset(directory) == found


def test_record_of_numpy_fields_is_json():
    trace = make_trace(2, token_ids=np.arange(3, dtype=np.int32), logprobs=np.full(3, -1, np.float32), flops=np.float32(2))
    record = json.loads(json.dumps(trace.to_record()))
    assert traces.Trace.from_record(record) == make_trace(2, logprobs=[-1.0, -1.0, -1.0], flops=2.0)


def test_malformed_traces_are_refused():
    record = make_trace(1).to_record()
    del record["samples"]
    with pytest.raises(ValueError, match=r"missing fields \['samples'\], unknown fields \['prompt'\]"):
        traces.Trace.from_record(record | {"prompt": 1})
    with pytest.raises(ValueError, match="finish_reason 'eos' of sample 1 of problem 'problem-1'; accepted: stop, length"):
        make_trace(1, finish_reason="eos")
    with pytest.raises(ValueError, match="has 1 logprobs for 2 token_ids"):
        make_trace(1, logprobs=[0.0])


# --- the dataset

WITHOUT_TENSORFLOW = """
import json, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in ("tensorflow", "torch", "jax") else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
rows = builder.as_data_source("train")
dtypes = {name: str(getattr(value, "dtype", type(value).__name__)) for name, value in rows[0].items()}
print(json.dumps([len(rows), rows[5]["token_ids"].tolist(), float(rows[5]["flops"]), builder.info.metadata, dtypes]))
assert "tensorflow" not in sys.modules
"""


def test_dataset_opens_where_tensorflow_cannot_be_imported(tmp_path):
    metadata = {"model": "f00d", "tokenizer": "beef", "statistics": {"solved": 12, "pass_rate": 0.25}}
    traces.write_dataset((make_trace(i) for i in range(12)), tmp_path / "traces", metadata)
    outcome = run_python(WITHOUT_TENSORFLOW, tmp_path / "traces")
    assert outcome.returncode == 0, outcome.stderr
    count, token_ids, flops, found, dtypes = json.loads(outcome.stdout)
    assert (count, token_ids, flops, found) == (12, [0, 1, 2, 3, 4, 5], 1e15 / 3, metadata)
    integers = {"sample_id": "int", "samples": "int", "context_ids": "int32", "token_ids": "int32"}
    assert dtypes == integers | {"logprobs": "float32", "flops": "float64", "problem_id": "bytes", "finish_reason": "bytes"}


def test_dataset_keeps_order_and_is_replaced_in_silence(tmp_path, capfd):
    ids = [5, 3, 11, 0, 7]
    for changes in ({}, {"flops": 7.0}):
        expected = [make_trace(i, **changes) for i in ids]
        traces.write_dataset(expected, tmp_path / "traces", {})
        assert traces.read_dataset(tmp_path / "traces") == expected
    assert os.listdir(tmp_path) == ["traces"]
    assert capfd.readouterr() == ("", "")


def test_dataset_refuses_what_it_should_not_touch(tmp_path):
    with pytest.raises(ValueError, match="no traces"):
        traces.write_dataset([], tmp_path / "traces", {})
    with pytest.raises(ValueError, match="JSON values are accepted"):
        traces.write_dataset([make_trace(1)], tmp_path / "traces", {"p": float("nan")})
    with pytest.raises(FileNotFoundError, match="no dataset here"):
        traces.read_dataset(tmp_path / "traces")
    (tmp_path / "thesis.tex").write_text("do not delete")
    with pytest.raises(FileExistsError, match="no dataset"):
        traces.write_dataset([make_trace(1)], tmp_path, {})
    assert os.listdir(tmp_path) == ["thesis.tex"]


KILLED_BUILD = """
import os, signal, sys
from prefixrl_jax import traces
trace = traces.Trace("p", 1, [1], [2], [-1.0], "stop", 1, 1.0)
traces._sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)  # the files are built, but not yet renamed
traces.write_dataset([trace], sys.argv[1], {})
"""


def test_killed_build_leaves_the_old_dataset(tmp_path):
    expected = [make_trace(1)]
    for old in ([], expected):
        if old:
            traces.write_dataset(old, tmp_path / "traces", {})
        assert run_python(KILLED_BUILD, tmp_path / "traces").returncode == -signal.SIGKILL
        assert (tmp_path / "traces").exists() == bool(old)
    assert traces.read_dataset(tmp_path / "traces") == expected
    traces.write_dataset([make_trace(2)], tmp_path / "traces", {})
    assert traces.read_dataset(tmp_path / "traces") == [make_trace(2)]
    assert os.listdir(tmp_path) == ["traces"]
