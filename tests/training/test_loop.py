"""The loop resumes bit for bit, whatever ended it, and compiles its update once."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefixrl_jax.flops import Ledger
from prefixrl_jax.group import Context, Group
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.weights import init_params
from prefixrl_jax.rl.step import (
    OptimizerSettings,
    UpdateSettings,
    abstract_state,
    init_state,
    make_optimizer,
    make_train_step,
)
from prefixrl_jax.rl.surrogate import LossSettings
from prefixrl_jax.runtime import interrupt
from prefixrl_jax.runtime import mesh as meshes
from prefixrl_jax.runtime.checkpoint import Checkpoints
from prefixrl_jax.training.health import Unhealthy
from prefixrl_jax.training.loop import Batch, Diverged, Evaluation, Loop, Saving

CONFIG = ModelConfig(
    vocab_size=11,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=16,
)


def source(poisoned: int | None = None):
    """Return a source of random groups, a pure function of the step.

    The step `poisoned` has a NaN reward. The memory lists the steps done.
    """

    def batch(params, step: int, ledger: Ledger, memory) -> Batch:
        rng = np.random.default_rng(step)
        rewards = rng.integers(0, 2, (4, 2)).astype(np.float32)
        if step == poisoned:
            rewards[0, 0] = np.nan
        group = Group(
            context=Context(jnp.asarray(rng.integers(0, 11, (4, 3)), jnp.int32), jnp.full(4, 3)),
            tokens=jnp.asarray(rng.integers(0, 11, (4, 2, 5)), jnp.int32),
            lengths=jnp.full((4, 2), 5),
            logprobs=jnp.zeros((4, 2, 5)),
            rewards=jnp.asarray(rewards),
        )
        return Batch(
            group=group,
            description=f"of step {step + 1} (problems a, b)",
            tokens=40,
            metrics={"reward/plain": float(np.nanmean(rewards))},
            charge=lambda ledger, update: ledger.add("paper", "train", 1.0),
            memory={"steps": [*memory.get("steps", []), step]},
        )

    return batch


@functools.cache
def training():
    """Return the mesh, the optimizer and the jitted update that all runs share."""
    mesh = meshes.make_mesh()
    optimizer = make_optimizer(OptimizerSettings(learning_rate=1e-2))
    update = make_train_step(CONFIG, optimizer, UpdateSettings(LossSettings()), mesh)
    return mesh, optimizer, update


def fit(directory, steps: int, poisoned: int | None = None, make_source=source, **options):
    """Run the loop in a directory, and return the state at the end and the update."""
    mesh, optimizer, update = training()
    options = {"saving": Saving(every=1)} | options
    with jax.set_mesh(mesh):
        loop = Loop("train", update, make_source(poisoned), steps, directory, **options)
        state = init_state(init_params(CONFIG, 0), CONFIG, optimizer, mesh)
        result = loop.run(state, abstract_state(CONFIG, optimizer, mesh), Ledger())
        return result.state, update


def saved(directory) -> tuple[int, list[np.ndarray], dict]:
    """Return step, leaves of the state, and ledger of the newest checkpoint."""
    mesh, optimizer, _ = training()
    with Checkpoints(directory / "checkpoints") as checkpoints:
        step, state, sidecar = checkpoints.restore(abstract_state(CONFIG, optimizer, mesh))
    return step, leaves(state), sidecar["ledger"]


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def assert_equal(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def read_metrics(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_source_has_the_memory_of_the_last_good_step(tmp_path):
    memories = []

    def recording_source(poisoned):
        make_batch = source(poisoned)

        def batch(params, step, ledger, memory):
            memories.append(memory)
            return make_batch(params, step, ledger, memory)

        return batch

    for steps in (2, 4):  # the second run resumes from the first one's checkpoint
        fit(tmp_path, steps, make_source=recording_source)
    assert memories == [{}, {"steps": [0]}, {"steps": [0, 1]}, {"steps": [0, 1, 2]}]
    with pytest.raises(Diverged):
        fit(tmp_path, 6, poisoned=5, make_source=recording_source)
    fit(tmp_path, 6, make_source=recording_source)
    # The failed step has left nothing in the memory.
    assert memories[-1] == {"steps": [0, 1, 2, 3, 4]}


def test_a_nan_stops_the_run_names_the_batch_and_keeps_the_last_good_state(tmp_path):
    good, _ = fit(tmp_path / "good", 2)
    with pytest.raises(Diverged, match=r"step 3: loss nan.*problems a, b.*saved as step 2"):
        fit(tmp_path / "bad", 5, poisoned=2)
    step, state, _ = saved(tmp_path / "bad")
    assert step == 2
    assert_equal(state, leaves(good))


def test_more_steps_go_on_from_the_last_checkpoint_bit_for_bit(tmp_path):
    whole, _ = fit(tmp_path / "whole", 4)
    fit(tmp_path / "parts", 2)
    parts, _ = fit(tmp_path / "parts", 4)
    assert_equal(leaves(whole), leaves(parts))
    whole_rows = read_metrics(tmp_path / "whole")
    parts_rows = read_metrics(tmp_path / "parts")
    assert [row["step"] for row in parts_rows] == [1, 2, 3, 4]
    assert [row["loss"] for row in parts_rows] == [row["loss"] for row in whole_rows]


def test_sigterm_between_steps_saves_the_step_that_is_done(tmp_path, monkeypatch):
    good, _ = fit(tmp_path / "good", 2)
    answers = iter([False, True])
    monkeypatch.setattr(interrupt, "received", lambda: next(answers))
    with pytest.raises(interrupt.Interrupted):
        fit(tmp_path / "run", 9, saving=Saving())
    step, state, ledger = saved(tmp_path / "run")
    assert step == 2
    assert ledger["paper"]["train"] == 2
    assert_equal(state, leaves(good))


def test_sigterm_while_sampling_abandons_the_step_and_what_it_cost(tmp_path):
    def stopped_source(poisoned):
        make_batch = source(poisoned)

        def batch(params, step, ledger, memory):
            if step == 2:
                ledger.add("paper", "decode", 100.0)
                raise interrupt.Interrupted
            return make_batch(params, step, ledger, memory)

        return batch

    with pytest.raises(interrupt.Interrupted):
        fit(tmp_path / "run", 9, make_source=stopped_source, saving=Saving())
    step, _, ledger = saved(tmp_path / "run")
    assert step == 2
    assert ledger["paper"]["decode"] == 0
    assert ledger["paper"]["train"] == 2
    whole, _ = fit(tmp_path / "whole", 4)
    resumed, _ = fit(tmp_path / "run", 4)
    assert_equal(leaves(whole), leaves(resumed))


def test_an_evaluation_is_not_cut_short(tmp_path, monkeypatch):
    monkeypatch.setattr(interrupt, "_received", True)

    def evaluate(params, step, ledger):
        assert not interrupt.wanted()
        return {"eval/train/avg@1": 0.5}

    with pytest.raises(interrupt.Interrupted):
        fit(tmp_path / "run", 3, evaluation=Evaluation(1, evaluate))
    (row,) = read_metrics(tmp_path / "run")
    assert row["eval/train/avg@1"] == 0.5
    assert saved(tmp_path / "run")[0] == 1


def test_a_failed_health_check_stops_after_the_step_is_saved(tmp_path):
    def check(step, values):
        if step == 2:
            raise Unhealthy(f"step {step}")

    with pytest.raises(Unhealthy, match="step 2"):
        fit(tmp_path / "run", 5, check_health=check, saving=Saving())
    assert saved(tmp_path / "run")[0] == 2
    fit(tmp_path / "run", 5)
    assert saved(tmp_path / "run")[0] == 5


def test_the_update_compiles_once(tmp_path):
    _, update = fit(tmp_path / "run", 3)
    assert update._cache_size() == 1
