"""A progress appears when a loop takes long, and not otherwise."""

import pytest

from prefixrl_jax.runtime import watch
from prefixrl_jax.runtime.watch import watched


def test_a_short_loop_is_silent(capsys):
    assert list(watched(range(1000), "reading", 1000)) == list(range(1000))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("total", "line"), [(5, "reading 1/5"), (0, "reading takes a while")])
def test_a_long_loop_shows_where_it_is(capsys, monkeypatch, total, line):
    monkeypatch.setattr(watch, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(watch, "UPDATE_SECONDS", 0.0)
    assert list(watched(range(5), "reading", total)) == list(range(5))
    assert capsys.readouterr().out.count(line) == 1


def test_a_loop_that_is_left_early_ends_its_progress():
    for item in watched(iter(int, 1), "for ever", 0):
        assert item == 0
        break
