"""The loop: what a non-finite step, a closed gate and a SIGTERM leave behind; it resumes; it never
compiles twice.
"""

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
from prefixrl_jax.training.loop import Batch, Diverged, Loop

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
    """Random groups, a pure function of the step; the poisoned step has a NaN reward."""

    def batch(params, step: int, ledger: Ledger, memory) -> Batch:
        rng = np.random.default_rng(step)
        rewards = rng.integers(0, 2, (4, 2)).astype(np.float32)
        rewards[0, 0] = np.nan if step == poisoned else rewards[0, 0]
        group = Group(
            context=Context(jnp.asarray(rng.integers(0, 11, (4, 3)), jnp.int32), jnp.full(4, 3)),
            tokens=jnp.asarray(rng.integers(0, 11, (4, 2, 5)), jnp.int32),
            lengths=jnp.full((4, 2), 5),
            logprobs=jnp.zeros((4, 2, 5)),
            rewards=jnp.asarray(rewards),
        )
        named, metrics = (
            f"of step {step + 1} (problems a, b)",
            {"reward/plain": float(np.nanmean(rewards))},
        )
        remembered = {"steps": [*memory.get("steps", []), step]}
        return Batch(
            group,
            named,
            40,
            metrics,
            lambda book, update: book.add("paper", "train", 1.0),
            remembered,
        )

    return batch


@functools.cache
def training():
    """Mesh, optimizer and update of all runs here."""
    mesh, optimizer = meshes.make_mesh(), make_optimizer(OptimizerSettings(learning_rate=1e-2))
    return (
        mesh,
        optimizer,
        make_train_step(CONFIG, optimizer, UpdateSettings(LossSettings()), mesh),
    )


def fit(directory, steps: int, poisoned: int | None = None, make_source=source, **options):
    mesh, optimizer, update = training()
    with jax.set_mesh(mesh):
        loop = Loop(
            "train",
            update,
            make_source(poisoned),
            steps,
            directory,
            **({"save_every": 1} | options),
        )
        result = loop.run(
            init_state(init_params(CONFIG, 0), CONFIG, optimizer, mesh),
            abstract_state(CONFIG, optimizer, mesh),
            Ledger(),
        )
        return result.state, update


def test_a_source_finds_its_memory_again(tmp_path):
    seen = []

    def watching(poisoned):
        batches = source(poisoned)
        return lambda params, step, ledger, memory: (
            seen.append(memory) or batches(params, step, ledger, memory)
        )

    for steps in (2, 4):  # the second goes on from the first one's checkpoint
        fit(tmp_path, steps, make_source=watching)
    assert seen == [{}, {"steps": [0]}, {"steps": [0, 1]}, {"steps": [0, 1, 2]}]
    with pytest.raises(Diverged):
        fit(tmp_path, 6, poisoned=5, make_source=watching)
    fit(tmp_path, 6, make_source=watching)
    # what was learnt of the step that failed is gone with it
    assert seen[-1] == {"steps": [0, 1, 2, 3, 4]}


def leaves(tree) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def test_a_nan_stops_the_run_names_the_batch_and_keeps_the_last_good_state(tmp_path):
    good, _ = fit(tmp_path / "good", 2)
    with pytest.raises(Diverged, match=r"step 3: loss nan.*problems a, b.*saved as step 2"):
        fit(tmp_path / "bad", 5, poisoned=2)
    mesh, optimizer = meshes.make_mesh(), make_optimizer(OptimizerSettings(learning_rate=1e-2))
    with Checkpoints(tmp_path / "bad" / "checkpoints") as checkpoints:
        step, state, _ = checkpoints.restore(abstract_state(CONFIG, optimizer, mesh))
    assert step == 2
    for a, b in zip(leaves(state), leaves(good), strict=True):
        np.testing.assert_array_equal(a, b)


def test_more_steps_go_on_from_the_last_checkpoint_bit_for_bit(tmp_path):
    whole, _ = fit(tmp_path / "whole", 4)
    fit(tmp_path / "parts", 2)
    parts, _ = fit(tmp_path / "parts", 4)
    for a, b in zip(leaves(whole), leaves(parts), strict=True):
        np.testing.assert_array_equal(a, b)
    rows = [
        [json.loads(line) for line in (tmp_path / d / "metrics.jsonl").read_text().splitlines()]
        for d in ("whole", "parts")
    ]
    assert [r["step"] for r in rows[1]] == [1, 2, 3, 4]
    assert [r["loss"] for r in rows[0]] == [r["loss"] for r in rows[1]]


def saved(directory) -> tuple[int, list[np.ndarray], dict]:
    """Step, state and ledger of the newest checkpoint."""
    mesh, optimizer = meshes.make_mesh(), make_optimizer(OptimizerSettings(learning_rate=1e-2))
    with Checkpoints(directory / "checkpoints") as checkpoints:
        step, state, sidecar = checkpoints.restore(abstract_state(CONFIG, optimizer, mesh))
    return step, leaves(state), sidecar["ledger"]


def test_sigterm_between_steps_saves_the_step_that_is_done(tmp_path, monkeypatch):
    good, _ = fit(tmp_path / "good", 2)
    asked = iter([False, True])
    monkeypatch.setattr(interrupt, "received", lambda: next(asked))
    with pytest.raises(interrupt.Interrupted):
        fit(tmp_path / "run", 9, save_every=0)
    step, state, ledger = saved(tmp_path / "run")
    assert step == 2 and ledger["paper"]["train"] == 2
    for a, b in zip(state, leaves(good), strict=True):
        np.testing.assert_array_equal(a, b)


def test_sigterm_while_sampling_abandons_the_step_and_what_it_cost(tmp_path):
    def stopped_source(poisoned):
        batches = source(poisoned)

        def batch(params, step, ledger, memory):
            if step == 2:
                ledger.add("paper", "decode", 100.0)
                raise interrupt.Interrupted
            return batches(params, step, ledger, memory)

        return batch

    with pytest.raises(interrupt.Interrupted):
        fit(tmp_path / "run", 9, make_source=stopped_source, save_every=0)
    step, _, ledger = saved(tmp_path / "run")
    assert step == 2 and ledger["paper"]["decode"] == 0 and ledger["paper"]["train"] == 2
    whole, _ = fit(tmp_path / "whole", 4)
    resumed, _ = fit(tmp_path / "run", 4)
    for a, b in zip(leaves(whole), leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_evaluation_is_not_cut_short(tmp_path, monkeypatch):
    monkeypatch.setattr(interrupt, "_received", True)

    def evaluate(params, step, ledger):
        assert not interrupt.wanted()
        return {"eval/train/avg@1": 0.5}

    with pytest.raises(interrupt.Interrupted):
        fit(tmp_path / "run", 3, evaluate=evaluate, evaluate_every=1)
    (row,) = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert row["eval/train/avg@1"] == 0.5 and saved(tmp_path / "run")[0] == 1


def test_a_closed_gate_stops_after_the_step_is_saved(tmp_path):
    def check(step, values):
        if step == 2:
            raise Unhealthy(f"step {step}")

    with pytest.raises(Unhealthy, match="step 2"):
        fit(tmp_path / "run", 5, check_health=check, save_every=0)
    assert saved(tmp_path / "run")[0] == 2
    fit(tmp_path / "run", 5)
    assert saved(tmp_path / "run")[0] == 5


def test_the_update_compiles_once(tmp_path):
    _, update = fit(tmp_path / "run", 3)
    assert update._cache_size() == 1
