"""Traces come back from records and from the dataset, which opens without TensorFlow."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from prefixrl_jax.corpus import traces


def make_trace(i, **changes):
    """Return a trace of i + 1 tokens with some fields changed."""
    fields = dict(
        problem_id=f"problem-{i}",
        sample_id=i,
        context_ids=[7, 8, i],
        token_ids=list(range(i + 1)),
        logprobs=[-0.5 * i] * (i + 1),
        finish_reason="stop",
        samples=i + 3,
        flops=1e15 / 3,
    )
    return traces.Trace(**(fields | changes))


def run_python(code, *arguments):
    root = pathlib.Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
    )


def test_traces_and_their_log_load_without_jax_or_tfds():
    code = (
        "import sys; from prefixrl_jax.corpus import sample_log, traces; "
        "print(sorted({'jax', 'tensorflow_datasets'} & set(sys.modules)))"
    )
    assert run_python(code).stdout == "[]\n"


FLOAT32 = st.floats(max_value=0, allow_nan=False, allow_infinity=False, width=32)
TOKEN = st.integers(0, 2**31 - 1)
TRACES = st.builds(
    lambda rows, **fields: traces.Trace(
        token_ids=[row[0] for row in rows], logprobs=[row[1] for row in rows], **fields
    ),
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


@hypothesis.settings(max_examples=15)
@hypothesis.given(st.lists(TRACES, min_size=1, max_size=4))
def test_dataset_round_trip(tmp_path_factory, written):
    directory = tmp_path_factory.mktemp("dataset")
    traces.write_dataset(written, directory, {})
    assert traces.read_dataset(directory) == written


def test_record_of_numpy_fields_is_json():
    trace = make_trace(
        2,
        token_ids=np.arange(3, dtype=np.int32),
        logprobs=np.full(3, -1, np.float32),
        flops=np.float32(2),
    )
    record = json.loads(json.dumps(trace.to_record()))
    assert traces.Trace.from_record(record) == make_trace(2, logprobs=[-1.0, -1.0, -1.0], flops=2.0)


def test_malformed_traces_are_refused():
    record = make_trace(1).to_record()
    del record["samples"]
    message = r"missing fields \['samples'\], unknown fields \['prompt'\]"
    with pytest.raises(ValueError, match=message):
        traces.Trace.from_record(record | {"prompt": 1})
    message = "finish_reason 'eos' of sample 1 of problem 'problem-1'; accepted: stop, length"
    with pytest.raises(ValueError, match=message):
        make_trace(1, finish_reason="eos")
    with pytest.raises(ValueError, match="has 1 logprobs for 2 token_ids"):
        make_trace(1, logprobs=[0.0])


# Prints what it reads from a dataset while tensorflow, torch and jax cannot be imported.
WITHOUT_TENSORFLOW = """
import json, sys

class WithoutThem:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "torch", "jax"):
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [WithoutThem(finder) for finder in sys.meta_path]
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory(sys.argv[1])
rows = builder.as_data_source("train")
row = rows[5]
dtypes = {k: str(getattr(v, "dtype", type(v).__name__)) for k, v in rows[0].items()}
tokens, flops = row["token_ids"].tolist(), float(row["flops"])
print(json.dumps([len(rows), tokens, flops, builder.info.metadata, dtypes]))
assert "tensorflow" not in sys.modules
"""


def test_dataset_opens_where_tensorflow_cannot_be_imported(tmp_path):
    metadata = {
        "model": "f00d",
        "tokenizer": "beef",
        "statistics": {"solved": 12, "pass_rate": 0.25},
    }
    traces.write_dataset((make_trace(i) for i in range(12)), tmp_path / "traces", metadata)
    outcome = run_python(WITHOUT_TENSORFLOW, tmp_path / "traces")
    assert outcome.returncode == 0, outcome.stderr
    count, token_ids, flops, read_metadata, dtypes = json.loads(outcome.stdout)
    assert count == 12
    assert token_ids == [0, 1, 2, 3, 4, 5]
    assert flops == 1e15 / 3
    assert read_metadata == metadata
    assert dtypes == {
        "problem_id": "bytes",
        "sample_id": "int",
        "context_ids": "int32",
        "token_ids": "int32",
        "logprobs": "float32",
        "finish_reason": "bytes",
        "samples": "int",
        "flops": "float64",
        "source": "bytes",
    }


def test_dataset_keeps_order_and_is_replaced_in_silence(tmp_path, capfd):
    ids = [5, 3, 11, 0, 7]
    for changes in ({}, {"flops": 7.0}):
        expected = [make_trace(i, **changes) for i in ids]
        traces.write_dataset(expected, tmp_path / "traces", {})
        assert traces.read_dataset(tmp_path / "traces") == expected
    assert os.listdir(tmp_path) == ["traces"]
    assert capfd.readouterr() == ("", "")


def test_dataset_refuses_bad_input_and_leaves_other_files_alone(tmp_path):
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


# Is killed when the files are built, but not yet renamed.
KILLED_BUILD = """
import os, signal, sys
from prefixrl_jax.corpus import traces
trace = traces.Trace("p", 1, [1], [2], [-1.0], "stop", 1, 1.0)
traces.sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)
traces.write_dataset([trace], sys.argv[1], {})
"""


def test_killed_build_leaves_the_old_dataset(tmp_path):
    directory = tmp_path / "traces"
    assert run_python(KILLED_BUILD, directory).returncode == -signal.SIGKILL
    assert not directory.exists()

    old = [make_trace(1)]
    traces.write_dataset(old, directory, {})
    assert run_python(KILLED_BUILD, directory).returncode == -signal.SIGKILL
    assert traces.read_dataset(directory) == old

    new = [make_trace(2)]
    traces.write_dataset(new, directory, {})
    assert traces.read_dataset(directory) == new
    assert os.listdir(tmp_path) == ["traces"]
