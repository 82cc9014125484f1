"""What the tests of the model and the sampler share: CPU, tiny models, and log-probs as training
computes them.
"""

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
# Many tests compile the same functions, here and in the processes they start.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Compiling takes longer than running: half the time would go into optimising code that runs for a
# moment.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# PyTorch's threads would spin while they wait, and there are more workers than cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import dataclasses
import shutil
import sys

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prefixrl_jax.experiment.stages import STAGES
from prefixrl_jax.group import Context, pad_rows, row_inputs
from prefixrl_jax.model import transformer
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.weights import abstract_params

# What is drawn is what is tested, not how long a busy machine takes for it.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

PIPELINE = ("test_compare.py", "test_run.py")
SLOW = ("test_kill.py", "test_hosts.py", *PIPELINE, "test_smollm2.py")

# How tests start the command line in a process of its own; `make test` lets the short ones count
# for the coverage.
PYTHON = [sys.executable, *os.environ.get("COVERED", "").split()]

TINY = ModelConfig(
    vocab_size=37,
    hidden_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=40,
)


@pytest.fixture(scope="session", params=[False, True], ids=["scanned", "unrolled"])
def config(request) -> ModelConfig:
    """A tiny float32 model with grouped-query attention, its layers scanned and unrolled."""
    return dataclasses.replace(TINY, unroll_layers=request.param)


@pytest.fixture(scope="session")
def config64(config) -> ModelConfig:
    """The same in float64; to be used under `jax.enable_x64(True)`."""
    return as_float64(config)


@pytest.fixture(scope="session", autouse=True)
def children_without_torch():
    """What runs in a process of its own is what a user runs: without PyTorch, which is there for
    the tests to compare with.
    """
    paths = [
        str(pathlib.Path(__file__).parent / "without_torch"),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def as_float64(config: ModelConfig) -> ModelConfig:
    """The model in float64, weights included."""
    return dataclasses.replace(config, dtype="float64", param_dtype="float64")


def begun(expected: pathlib.Path, workdir: pathlib.Path, stages: int) -> pathlib.Path:
    """A run that has only the first of the stages of one that is finished."""
    names = [
        "config.json",
        *STAGES[:stages],
        *(f"stages/{stage}.json" for stage in STAGES[:stages]),
    ]
    for name in (n for n in names if (expected / n).exists()):  # not every stage has a folder
        copy = shutil.copytree if (expected / name).is_dir() else shutil.copy
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        copy(expected / name, workdir / name)
    return workdir


def random_params(config: ModelConfig, seed: int = 0):
    """Weights far from their initialisation: no scale is one, no bias zero, and the logits are not
    nearly equal.
    """
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        return jnp.asarray(
            (path[-1].key == "scale") + 0.3 * rng.normal(size=shape.shape), shape.dtype
        )

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(config))


def random_contexts(config: ModelConfig, lengths, seed: int = 0) -> list[list[int]]:
    """Contexts of these lengths, as token lists."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, config.vocab_size, n).tolist() for n in lengths]


def as_context(contexts: list[list[int]], size: int | None = None) -> Context:
    """Token lists as a padded Context of int32 arrays."""
    tokens, lengths = pad_rows(contexts, size or max(map(len, contexts)))
    return Context(jnp.asarray(tokens), jnp.asarray(lengths))


def continuation_logprobs(
    params, config: ModelConfig, context: Context, tokens, temperature: float = 1.0
) -> jax.Array:
    """Teacher-forced log-probs [P, G, T] of continuations [P, G, T] over a shared context."""
    kv = transformer.encode_context(params, config, context)
    hidden = transformer.continue_group(params, config, context, kv, row_inputs(context, tokens))
    logprobs = jax.nn.log_softmax(transformer.logits(params, config, hidden) / temperature)
    return jnp.take_along_axis(logprobs, tokens[..., None], axis=-1)[..., 0]


def relative_errors(tree, reference) -> dict[str, float]:
    """Largest error of every leaf relative to the largest entry of the reference's leaf, by the
    leaf's path.
    """

    def error(a, b):
        return float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(np.asarray(b))))

    errors = jax.tree_util.tree_leaves_with_path(jax.tree.map(error, tree, reference))
    return {jax.tree_util.keystr(path): value for path, value in errors}


def pytest_collection_modifyitems(items):
    """The files that take minutes first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in SLOW)
    for item in items:
        if item.path.name in SLOW:
            item.add_marker("slow")
        if item.path.name in PIPELINE:
            item.add_marker("pipeline")
