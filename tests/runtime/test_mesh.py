"""The mesh, and that eight devices compute what one computes.

Run as a script it is the eight-device half.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from abstract_mesh import abstract_mesh
from jax.sharding import PartitionSpec as Spec
from runs import HANGS, ROOT
from tiny_models import (
    TINY,
    as_context,
    as_float64,
    continuation_logprobs,
    random_contexts,
    random_params,
)

from prefixrl_jax.group import Context, Group
from prefixrl_jax.model.sharding import param_shardings
from prefixrl_jax.rl.step import (
    OptimizerSettings,
    UpdateSettings,
    init_state,
    make_optimizer,
    make_train_step,
)
from prefixrl_jax.rl.surrogate import LossSettings
from prefixrl_jax.runtime import mesh as meshes
from prefixrl_jax.runtime.fingerprint import tree_fingerprint
from prefixrl_jax.sampling import noise, sampler

LENGTHS = [5, 1, 8, 3, 2, 7, 6, 4]


def sample(mesh) -> dict[str, np.ndarray]:
    """Tokens and log-probs of 8 contexts x 2 samples under the "decode" rules, drawn again after
    the last one is replaced.
    """
    contexts = as_context(random_contexts(TINY, LENGTHS), 8)
    sampling = sampler.Sampling(max_new_tokens=6, stop_ids=(3, 11))
    blocks = meshes.batch_divisor(mesh)
    index = np.full((blocks, 1), len(LENGTHS), np.int32)
    # the last row of the last block; the other blocks keep theirs
    index[-1] = len(LENGTHS) // blocks - 1
    new = as_context(random_contexts(TINY, [4] * blocks, seed=1), 8)
    # the same context however many blocks
    new = Context(jnp.broadcast_to(new.tokens[:1], new.tokens.shape), new.lengths)
    words = np.stack([noise.words(f"context {i}") for i in range(len(LENGTHS))])
    ids, every, out = (
        np.tile(np.arange(2, dtype=np.int32), (len(LENGTHS), 1)),
        np.ones((len(LENGTHS), 2), bool),
        {},
    )
    with jax.set_mesh(mesh):
        params = jax.device_put(random_params(TINY), param_shardings(TINY, mesh, "decode"))
        state = sampler.start(
            params, meshes.to_global(mesh, contexts), config=TINY, slots=2, columns=6
        )
        assert all(
            x.addressable_shards[0].data.size * mesh.size == x.size
            for x in jax.tree.leaves(state.row_kv)
        )
        placements = []
        for turn in range(2):
            given = meshes.to_global(mesh, (words, ids, every, every))
            state = sampler.assign(state, noise.stream_key(0, "rollout"), *given)
            placements.append(jax.tree.map(lambda x: x.sharding, state))
            state = sampler.decode_chunk(params, state, config=TINY, sampling=sampling, steps=6)
            rings = sampler.unroll_rings(
                *(meshes.to_local(x) for x in (state.begin, state.tokens, state.logprobs))
            )
            seen = np.arange(6) < meshes.to_local(state.age)[..., None]
            out |= {
                f"tokens{turn}": np.where(seen, rings[0], -1),
                f"logprobs{turn}": np.where(seen, rings[1], 0),
            }
            state = sampler.replace_contexts(
                params, state, *meshes.to_global(mesh, (index, new)), config=TINY
            )
    assert placements[0] == placements[1]  # else the second chunk would be compiled anew
    return out


def gradients(mesh) -> dict[str, np.ndarray]:
    """Loss and gradient leaves in float64 under the "train" rules."""
    config = as_float64(TINY)
    with jax.enable_x64(True), jax.set_mesh(mesh):
        shardings = param_shardings(config, mesh, "train")
        params = jax.device_put(random_params(config), shardings)
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, config.vocab_size, (len(LENGTHS), 2, 6)).astype(np.int32)
        batch = meshes.to_global(
            mesh,
            (
                as_context(random_contexts(config, LENGTHS), 8),
                tokens,
                rng.normal(size=tokens.shape),
            ),
        )

        def loss(params, context, tokens, weights):
            return -(weights * continuation_logprobs(params, config, context, tokens)).sum()

        step = jax.jit(jax.value_and_grad(loss), out_shardings=(meshes.replicated(mesh), shardings))
        value, grads = step(params, *batch)
        leaves = jax.tree_util.tree_leaves_with_path(grads)
        return {"loss": np.asarray(value)} | {
            jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves
        }


def update(mesh) -> dict[str, np.ndarray]:
    """Weights after one update in float64, of groups of which some teach nothing, in two
    micro-batches.
    """
    config, settings = (
        as_float64(TINY),
        OptimizerSettings(learning_rate=1e-2, eps=1e-1),
    )  # a large eps: the step shows the gradient
    optimizer, rng = make_optimizer(settings), np.random.default_rng(0)
    rewards = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [0, 0], [1, 1], [0, 0], [1, 0]])
    shape = (len(LENGTHS), 2, 6)
    with jax.enable_x64(True), jax.set_mesh(mesh):
        state = init_state(random_params(config), config, optimizer, mesh)
        context = as_context(random_contexts(config, LENGTHS), 8)
        tokens = rng.integers(0, config.vocab_size, shape).astype(np.int32)
        lengths = rng.integers(1, 7, shape[:2]).astype(np.int32)
        group = Group(context, tokens, lengths, rng.normal(size=shape), rewards.astype(np.float64))
        step = make_train_step(
            config, optimizer, UpdateSettings(LossSettings(), micro_batches=2), mesh
        )
        state, metrics = step(state, meshes.to_global(mesh, group))
        leaves = jax.tree_util.tree_leaves_with_path(state.params)
        # 0, 1 and 7 differ: one micro-batch of four, or both if the first pair lies on one of four
        # devices.
        assert int(metrics["groups/computed"]) == (8 if meshes.batch_divisor(mesh) == 4 else 4)
        return {f"updated {jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in leaves}


def fingerprint(mesh) -> np.ndarray:
    """Of weights whose float sums depend on the order of addition."""
    params = jax.device_put(random_params(TINY), param_shardings(TINY, mesh, "train"))
    return np.frombuffer(tree_fingerprint(params).encode(), np.uint8)


def test_eight_devices_compute_what_one_does(tmp_path):
    """2 x 2 x 2: tokens are equal, log-probs to rounding, the loss and every gradient leaf in
    float64 to 1e-9.
    """
    xla_flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    path = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"XLA_FLAGS": xla_flags, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    command = [
        sys.executable,
        "-W",
        "error::DeprecationWarning:__main__",
        __file__,
        str(tmp_path / "eight.npz"),
    ]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        mesh = meshes.make_mesh(1, 1, 1, devices=jax.devices()[:1])
        one = sample(mesh) | gradients(mesh) | update(mesh) | {"fingerprint": fingerprint(mesh)}
        output = child.communicate(timeout=HANGS)[0]
    assert child.returncode == 0, output
    eight = dict(np.load(tmp_path / "eight.npz"))
    assert eight.keys() == one.keys() and len(one) == 4 + 1 + 2 * 11 + 1
    for name, value in one.items():
        if name.startswith(("tokens", "fingerprint")):
            np.testing.assert_array_equal(eight[name], value, err_msg=name)
        else:
            tolerance = 1e-4 if name.startswith("logprobs") else 1e-9 * np.abs(value).max()
            np.testing.assert_allclose(eight[name], value, rtol=0, atol=tolerance, err_msg=name)
    changed = np.any(one["tokens0"] != one["tokens1"], axis=(1, 2))
    # the noise is that of the first time, the last context is not
    assert changed.tolist() == [False] * 7 + [True]


@pytest.mark.parametrize(
    "sizes", [(2, 1, 1), (-1, 2, 1), (-1, -1, 1), (0, 1, 1), (-1, 0, 1), (1, 1, -2)]
)
def test_a_mesh_that_does_not_fill_the_devices_is_refused(sizes):
    with pytest.raises(
        ValueError, match=r"mesh\.data x mesh\.fsdp x mesh\.tensor=.*does not fill 1 device"
    ):
        meshes.make_mesh(*sizes, devices=jax.devices()[:1])


def test_one_size_may_be_whatever_is_left():
    for sizes in ((-1, 1, 1), (1, -1, 1), (1, 1, -1), (1, 1, 1)):
        mesh = meshes.make_mesh(*sizes, devices=jax.devices()[:1])
        assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
        assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


def test_every_process_must_have_rows_of_its_own(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(
        ValueError, match=r"mesh\.data x mesh\.fsdp = 1: must be a multiple of the 2 processes"
    ):
        meshes.make_mesh(devices=jax.devices()[:1])


def test_batches_go_to_devices_and_back():
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    rows = np.arange(12).reshape(4, 3)
    placed = meshes.to_global(mesh, {"x": rows})["x"]
    assert placed.sharding == meshes.batch_sharding(mesh) and placed.sharding.spec == Spec(
        ("data", "fsdp")
    )
    np.testing.assert_array_equal(meshes.to_local(placed), rows)
    assert meshes.batch_divisor(mesh) == 1
    assert meshes.batch_divisor(abstract_mesh(2, 4, 2)) == 8


def run_on_eight_devices(path: str) -> None:
    """Writes what `sample`, `gradients` and `update` give on a 2x2x2 mesh, after checking that the
    work is really spread.
    """
    mesh = meshes.make_mesh(-1, 2, 2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    shardings = param_shardings(TINY, mesh, "train")
    kernel = jax.device_put(jnp.zeros((2, 24, 40)), shardings["layers"]["mlp"]["gate"]["kernel"])
    assert {s.data.shape for s in kernel.addressable_shards} == {(2, 12, 20)}
    rows = meshes.to_global(mesh, np.arange(16).reshape(8, 2))
    assert {s.data.shape for s in rows.addressable_shards} == {(2, 2)}
    np.testing.assert_array_equal(meshes.to_local(rows), np.arange(16).reshape(8, 2))
    np.savez(path, **sample(mesh), **gradients(mesh), **update(mesh), fingerprint=fingerprint(mesh))


if __name__ == "__main__":
    run_on_eight_devices(sys.argv[1])
