"""Files of the local store are there as a whole or not at all, and never replaced by accident."""

import errno
import os

import pytest

from prefixrl_jax.runtime.store import LocalStore


def test_files_come_back_by_name(tmp_path):
    store = LocalStore(tmp_path / "new")
    assert store.list("a/") == []
    store.put("a/b", b"1")
    store.put("a/b", b"2")
    store.put_if_absent("a/c", b"3")
    assert store.list("a/") == ["a/b", "a/c"]
    assert store.list("a/b") == ["a/b"]
    with store.open("a/b") as file:
        assert file.read() == b"2"
    with pytest.raises(FileNotFoundError):
        store.open("a/d")
    assert sorted(os.listdir(tmp_path / "new" / "a")) == ["b", "c"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_is_there_is_not_replaced(tmp_path, monkeypatch, links):
    def no_links(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    store = LocalStore(tmp_path)
    store.put_if_absent("a", b"1")
    with pytest.raises(FileExistsError) as error:
        store.put_if_absent("a", b"2")
    assert error.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("operation", "call"),
    [
        ("put", "pwrite"),
        ("put", "fsync"),
        ("put", "replace"),
        ("put_if_absent", "pwrite"),
        ("put_if_absent", "fsync"),
        ("put_if_absent", "link"),
    ],
)
def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch, operation, call):
    def failing(*_):
        raise OSError(errno.EIO, "Input/output error")

    store = LocalStore(tmp_path)
    if operation == "put":
        store.put("a", b"1")
    before = os.listdir(tmp_path)
    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OSError) as error:
        getattr(store, operation)("a", b"2")
    assert (error.value.errno, error.value.filename) == (errno.EIO, str(tmp_path / "a"))
    assert os.listdir(tmp_path) == before
    if before:
        assert (tmp_path / "a").read_bytes() == b"1"


def test_an_appender_goes_on_at_the_offset_it_is_told(tmp_path):
    store = LocalStore(tmp_path)
    store.put_if_absent("a", b"123")
    file = store.extend("a")
    file.write(b"45", 3)
    file.write(b"678", 3)
    file.sync()
    file.close()
    assert (tmp_path / "a").read_bytes() == b"123678"
