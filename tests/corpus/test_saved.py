"""A corpus on disk comes back, and is repaired from its log when the dataset is damaged."""

import shutil

import pytest
from first_token import COST, PROBLEMS, FirstToken, sample

from prefixrl_jax.corpus.attempts import Attempts, first_traces
from prefixrl_jax.corpus.collect import CollectJob
from prefixrl_jax.corpus.sample_log import Log
from prefixrl_jax.corpus.saved import load_corpus, save_corpus
from prefixrl_jax.corpus.traces import read_dataset, write_dataset
from prefixrl_jax.model.tokenizer import fingerprint


@pytest.fixture
def corpus(tmp_path):
    """Return the directory of a complete corpus, dataset and log, and its two traces."""
    task = FirstToken()
    header = {"model": "tiny", "tokenizer": fingerprint(task.tokenizer)}
    with Log(tmp_path / "log", header) as log:
        jobs = [CollectJob(Attempts(p, len(task.render(p))), task, 9, log) for p in PROBLEMS[:2]]
        for job in jobs:
            job.deliver(sample(0, correct=False))
            job.deliver(sample(1, correct=True))
    traces = first_traces({job.name: job.attempts for job in jobs}, COST)
    save_corpus(tmp_path, traces, {**header, "solved": 2})
    return tmp_path, traces


def read(directory):
    return load_corpus(directory, {p.id: p for p in PROBLEMS}, FirstToken(), COST)


def shard(directory):
    (path,) = (directory / "dataset").glob("*array_record*")
    return path


def test_a_sound_corpus_comes_back(corpus, capsys):
    directory, traces = corpus
    assert read(directory) == traces
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: shard(d).unlink(),
        lambda d: shard(d).write_bytes(shard(d).read_bytes()[:-99]),
        lambda d: (d / "dataset" / "dataset_info.json").write_text("{"),
        lambda d: shutil.rmtree(d / "dataset"),
    ],
    ids=["no shard", "shard cut short", "no JSON", "no dataset"],
)
def test_a_damaged_dataset_is_written_anew_from_the_log(corpus, damage, capsys, request):
    directory, traces = corpus
    damage(directory)
    assert read(directory) == traces
    assert "the traces are read from" in capsys.readouterr().out
    # What could not be read is still there, for whoever wants to know why.
    assert len(list(directory.glob("dataset.damaged*"))) == ("no dataset" not in request.node.name)
    assert read_dataset(directory / "dataset") == traces


def test_a_corpus_is_never_silently_smaller(corpus):
    directory, _ = corpus
    shutil.rmtree(directory / "dataset")
    part = directory / "log" / "part-000001.jsonl"
    lines = part.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"correct", b"corrext")
    part.write_bytes(b"".join(lines))
    message = r"2 problems were solved, the log still knows 1 traces .*line 3: dropped .* checksum"
    with pytest.raises(ValueError, match=message):
        read(directory)


@pytest.mark.parametrize(
    "change",
    [lambda traces: traces[:1], lambda traces: [*traces[:1], *traces[:1]]],
    ids=["a trace less", "a trace twice"],
)
def test_a_sound_dataset_of_another_corpus_is_not_taken(corpus, change):
    directory, traces = corpus
    write_dataset(change(traces), directory / "dataset", {})
    assert read(directory) == traces


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "\xff", '{"tokenizer": "x", "model": "y"}', '{"solved": true, "model": "y"}'],
)
def test_a_damaged_summary_is_named_with_what_to_do(corpus, text):
    directory, _ = corpus
    (directory / "summary.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"summary\.json: .*; remove corpus\.json from the stages"):
        read(directory)


def test_a_dataset_that_could_not_be_read_this_time_stays(corpus, monkeypatch):
    directory, _ = corpus

    def fail(*_):
        raise PermissionError(13, "Permission denied", str(directory / "dataset"))

    monkeypatch.setattr("tensorflow_datasets.builder_from_directory", fail)
    with pytest.raises(PermissionError):
        read(directory)
    assert (directory / "dataset").is_dir() and not list(directory.glob("*.damaged*"))
