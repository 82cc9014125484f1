"""Checkpoints come back bit for bit, the right ones are kept, and a damaged one is passed over."""

import errno
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefixrl_jax.runtime import checkpoint
from prefixrl_jax.runtime.checkpoint import Checkpoints


def make_state(seed: int):
    rng = np.random.default_rng(seed)
    odd = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
    return {
        "params": {"w": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32), "odd": jnp.asarray(odd)},
        "moments": [jnp.asarray(rng.normal(size=7), jnp.bfloat16)],
        "step": jnp.int32(seed),
    }


def abstract(state):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def same_bits(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and bits(a) == bits(b)


def bits(tree):
    return [(x.dtype, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def save(directory, scores, keep=2, first=1):
    """Save `make_state(step)` for each score, at consecutive steps; return the steps kept."""
    with Checkpoints(directory, keep) as checkpoints:
        for step, score in enumerate(scores, start=first):
            checkpoints.save(step, make_state(step), {"ledger": {"step": step}}, score)
            checkpoints.wait()
        return checkpoints.steps()


def test_a_state_comes_back_bit_for_bit_with_its_sidecar(tmp_path):
    sidecar = {"ledger": {"paper": {"train": 1 / 3}}, "note": "ü"}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, make_state(4), sidecar)
    with Checkpoints(tmp_path) as checkpoints:
        step, state, restored_sidecar = checkpoints.restore(abstract(make_state(0)))
    assert step == 4
    assert restored_sidecar == sidecar
    assert same_bits(state, make_state(4))
    assert not same_bits(state, make_state(5))


def test_the_newest_and_the_best_are_kept(tmp_path):
    assert save(tmp_path, [0.1, 0.9, 0.2, 0.3, 0.4], keep=2) == [2, 4, 5]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0)))[0] == 5
        step, state, _ = checkpoints.restore(abstract(make_state(0)), step=2)
    assert step == 2
    assert same_bits(state, make_state(2))


@pytest.mark.parametrize("score", [None, float("nan")])
def test_without_a_score_the_newest_are_kept(tmp_path, score):
    assert save(tmp_path, [score] * 4, keep=2) == [3, 4]


def test_an_empty_directory_has_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.steps() == []
        assert checkpoints.restore(abstract(make_state(0))) is None


def content(directory):
    """Return the bytes of every file below a directory."""
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def damage(directory, part):
    """Truncate the files of one part of a checkpoint to half."""
    files = [p for p in (directory / part).rglob("*") if p.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("part", ["state", "sidecar"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_set_aside(tmp_path, capsys, part):
    save(tmp_path, [None, None, None], keep=3)
    damage(tmp_path / "3", part)
    damaged = content(tmp_path / "3")
    with Checkpoints(tmp_path, 3) as checkpoints:
        step, state, sidecar = checkpoints.restore(abstract(make_state(0)))
    assert step == 2
    assert same_bits(state, make_state(2))
    assert sidecar == {"ledger": {"step": 2}}
    assert content(tmp_path / "3.damaged") == damaged
    assert f"{tmp_path}/3 is damaged and is now {tmp_path}/3.damaged" in capsys.readouterr().out


def test_a_step_done_again_replaces_its_damaged_checkpoint(tmp_path):
    save(tmp_path, [None, None], keep=3)
    damage(tmp_path / "2", "state")
    with Checkpoints(tmp_path, 3) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0)))[0] == 1
        checkpoints.save(2, make_state(2), {"ledger": {"step": 2}})
    with Checkpoints(tmp_path, 3) as checkpoints:
        step, state, _ = checkpoints.restore(abstract(make_state(0)))
    assert step == 2
    assert same_bits(state, make_state(2))


def test_all_damaged_is_an_error_that_names_the_directory(tmp_path):
    save(tmp_path, [None])
    damage(tmp_path / "1", "state")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=rf"{tmp_path}: every checkpoint is damaged; nothing"),
    ):
        checkpoints.restore(abstract(make_state(0)))
    assert (tmp_path / "1").is_dir()


def test_a_value_that_was_changed_is_noticed(tmp_path):
    """Compression has no checksum of its own: a flipped bit may decode to other numbers."""
    save(tmp_path, [None, None], keep=3)
    with Checkpoints(tmp_path / "other", 3) as checkpoints:
        checkpoints.save(2, make_state(3), {"ledger": {"step": 2}})
    shutil.rmtree(tmp_path / "2" / "state")
    shutil.copytree(tmp_path / "other" / "2" / "state", tmp_path / "2" / "state")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match="its values are not those that were saved"),
    ):
        checkpoints.restore(abstract(make_state(0)), 2)


def test_a_reading_error_that_may_pass_leaves_everything_as_it_is(tmp_path, monkeypatch):
    save(tmp_path, [None, None], keep=3)
    before = content(tmp_path)

    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error", "a file")

    with Checkpoints(tmp_path, 3) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "restore", fail)
        monkeypatch.setattr(checkpoint.os, "walk", fail)
        with pytest.raises(OSError, match="checkpoint 2 cannot be read now, nothing was changed"):
            checkpoints.restore(abstract(make_state(0)))
    assert content(tmp_path) == before


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), Exception("a thread")])
def test_a_reading_error_that_has_passed_is_none(tmp_path, monkeypatch, error):
    save(tmp_path, [None, None], keep=3)
    with Checkpoints(tmp_path, 3) as checkpoints:
        restore = checkpoints._manager.restore
        failures = [error]

        def fail_once(*args, **options):
            if failures:
                raise failures.pop()
            return restore(*args, **options)

        monkeypatch.setattr(checkpoints._manager, "restore", fail_once)
        assert checkpoints.restore(abstract(make_state(0)))[0] == 2
    assert not list(tmp_path.glob("*.damaged"))


def test_an_error_of_the_system_that_stays_is_no_damage(tmp_path, monkeypatch):
    save(tmp_path, [None, None], keep=3)

    def fail(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with Checkpoints(tmp_path, 3) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "restore", fail)
        with pytest.raises(OSError, match=r"cannot be read now, nothing was changed.*denied"):
            checkpoints.restore(abstract(make_state(0)))


def test_a_checkpoint_that_was_written_without_its_arrays_is_noticed_and_set_aside(tmp_path):
    save(tmp_path, [None, None], keep=3)
    with Checkpoints(tmp_path, 3) as checkpoints:
        assert same_bits(checkpoints.read_back(2, abstract(make_state(0))), make_state(2))
        shutil.rmtree(tmp_path / "2" / "state" / "d")
        with pytest.raises(OSError, match=r"step 2 was not written .* those before it are intact"):
            checkpoints.read_back(2, abstract(make_state(0)))
        assert checkpoints.restore(abstract(make_state(0)))[0] == 1


def test_read_only_changes_nothing(tmp_path):
    save(tmp_path, [None, None], keep=3)
    damage(tmp_path / "2", "state")
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()  # another process is about to save it
    (tmp_path / "3.orbax-checkpoint-tmp" / "file").write_text("half")
    before = content(tmp_path)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0)))[0] == 1
    assert content(tmp_path) == before
    with Checkpoints(tmp_path / "none", read_only=True) as checkpoints:
        assert checkpoints.steps() == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "name", ["a[b]", "a*", "what?", "back\\slash", "gs:", "s3:/bucket", "line\nbreak", "a]b[c"]
)
def test_a_path_that_the_store_would_misread_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="checkpoints cannot be kept in a path with"):
        Checkpoints(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a b", "été 日本", "a{b}", "100%", "#1", "a'b", "a:b", "~x"])
def test_any_other_path_is_fine(tmp_path, name):
    save(tmp_path / name, [None])
    with Checkpoints(tmp_path / name) as checkpoints:
        assert checkpoints.restore(abstract(make_state(0)))[0] == 1


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {"ledger": {}})
        checkpoints.wait()
        checkpoints.save(1, make_state(2), {"ledger": {}})
        checkpoints.wait()
        assert same_bits(checkpoints.restore(abstract(make_state(0)))[1], make_state(1))


def test_a_process_that_is_gone_is_not_reported_as_a_failed_write(tmp_path, monkeypatch):
    connection_lost = jax.errors.JaxRuntimeError(
        "UNKNOWN: Gloo AllGather failed: Connection reset by peer"
    )

    def failing_save(*_, **__):
        raise connection_lost

    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "save", failing_save)
        with pytest.raises(OSError, match="the checkpoint of step 0 could not be written"):
            checkpoints.save(1, make_state(1), {"ledger": {}})
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(jax.errors.JaxRuntimeError, match="Connection reset by peer"):
            checkpoints.save(1, make_state(1), {"ledger": {}})
        monkeypatch.undo()
