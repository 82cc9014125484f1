"""The weight table against published sizes and against the same models in torch."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import TINY

from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.hf_config import hf_config
from prefixrl_jax.model.tokenizer import word_tokenizer
from prefixrl_jax.model.weights import (
    abstract_params,
    count_params,
    init_params,
    leaf_of,
    weight_table,
)
from prefixrl_jax.runtime.fingerprint import tree_fingerprint

TINY_SETTINGS = {
    "llama_tied": TINY,
    "llama_untied": dataclasses.replace(TINY, tie_embeddings=False),
    "qwen2": dataclasses.replace(TINY, attention_bias=True),
    "qwen3": dataclasses.replace(TINY, qk_norm=True, head_dim=12, tie_embeddings=False),
}


def sizes(vocab, hidden, layers, heads, kv_heads, head_dim, mlp, **fields) -> ModelConfig:
    """A ModelConfig from the numbers of a model card."""
    return ModelConfig(vocab, hidden, layers, heads, kv_heads, head_dim, mlp, **fields)


# Numbers of parameters as counted from the published checkpoints.
PUBLISHED = {
    "SmolLM2-135M": (sizes(49152, 576, 30, 9, 3, 64, 1536), 134_515_008),
    "Llama-3.2-1B": (sizes(128256, 2048, 16, 32, 8, 64, 8192), 1_235_814_400),
    "Llama-3.1-8B": (
        sizes(128256, 4096, 32, 32, 8, 128, 14336, tie_embeddings=False),
        8_030_261_248,
    ),
    "Qwen2.5-0.5B": (sizes(151936, 896, 24, 14, 2, 64, 4864, attention_bias=True), 494_032_768),
    "Qwen3-0.6B": (sizes(151936, 1024, 28, 16, 8, 128, 3072, qk_norm=True), 596_049_920),
}


def torch_model(config: ModelConfig) -> torch.nn.Module:
    """The same model as transformers builds it, without storage."""
    fields = hf_config(config, word_tokenizer(["a"]))
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**fields)
        )


@pytest.mark.parametrize("name", PUBLISHED)
def test_total_is_the_published_number_of_parameters(name):
    config, published = PUBLISHED[name]
    assert count_params(config)["total"] == published


@pytest.mark.parametrize("config", TINY_SETTINGS.values(), ids=TINY_SETTINGS)
def test_counts_are_those_of_the_torch_model(config):
    model = torch_model(config)
    # the tied head is a Linear too
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert count_params(config) == {
        "total": sum(p.numel() for p in model.parameters()),
        "matmul": linear,
    }


@pytest.mark.parametrize("config", TINY_SETTINGS.values(), ids=TINY_SETTINGS)
def test_names_and_shapes_are_those_of_the_torch_model(config):
    ours = {}
    for w in weight_table(config):
        value = w.to_hf(np.zeros(w.shape))
        ours |= {
            w.hf.format(layer): value.shape
            for layer in range(config.num_layers if w.stacked else 1)
        }
    theirs = {name: tuple(p.shape) for name, p in torch_model(config).named_parameters()}
    assert ours == theirs


def test_matmul_count_by_formula():
    c = sizes(1000, 48, 5, 6, 2, 10, 70, qk_norm=True, tie_embeddings=False)
    attention = 48 * 6 * 10 + 2 * 48 * 2 * 10 + 6 * 10 * 48
    assert count_params(c)["matmul"] == 5 * (attention + 3 * 48 * 70) + 48 * 1000
    assert (
        count_params(c)["total"]
        == count_params(c)["matmul"] + 48 * 1000 + 5 * (2 * 48 + 2 * 10) + 48
    )


@pytest.mark.parametrize("config", TINY_SETTINGS.values(), ids=TINY_SETTINGS)
def test_hugging_face_layout_gives_the_same_product_and_goes_back(config):
    rng = np.random.default_rng(0)
    for w in weight_table(config):
        value = rng.normal(size=w.shape)
        stored = w.to_hf(value)
        assert np.array_equal(w.from_hf(stored), value)
        if w.linear:
            x = rng.normal(size=(3, *w.shape[: w.inputs]))
            ours = np.tensordot(x, value, axes=w.inputs).reshape(3, -1)
            theirs = torch.nn.functional.linear(
                torch.tensor(x.reshape(3, -1)), torch.tensor(stored)
            ).numpy()
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_tensor_of_another_shape_is_refused_by_name():
    for w in weight_table(TINY):
        stored = w.to_hf(np.zeros(w.shape))
        with pytest.raises(ValueError, match=r"shape .* the configuration asks for") as caught:
            w.from_hf(np.zeros((*stored.shape[:-1], stored.shape[-1] + 1)))
        assert w.hf in str(caught.value)


@pytest.mark.parametrize("config", TINY_SETTINGS.values(), ids=TINY_SETTINGS)
def test_every_leaf_is_declared_once_with_an_axis_for_each_dimension(config):
    table = weight_table(config)
    assert len({w.path for w in table}) == len({w.hf for w in table}) == len(table)
    for w in table:
        assert len(w.full_axes()) == len(w.full_shape(config))
    params = jax.eval_shape(lambda: init_params(config, 0))
    assert len(jax.tree.leaves(params)) == len(table)
    assert all(leaf_of(params, w).shape == w.full_shape(config) for w in table)


def test_abstract_params_are_the_shapes_and_dtypes_of_the_initial_ones():
    config = dataclasses.replace(TINY_SETTINGS["qwen2"], param_dtype="bfloat16")
    assert jax.eval_shape(lambda: init_params(config, 0)) == abstract_params(config)
    assert {x.dtype for x in jax.tree.leaves(abstract_params(config))} == {jnp.dtype("bfloat16")}


def test_initial_scales():
    config = sizes(500, 128, 2, 8, 4, 16, 256, attention_bias=True, tie_embeddings=False)
    params = init_params(config, seed=3)
    residual = 1 / math.sqrt(2 * config.num_layers)
    expected = {"q": 128**-0.5, "k": 128**-0.5, "v": 128**-0.5, "o": 128**-0.5 * residual}
    for name, std in expected.items():
        assert float(params["layers"]["attn"][name]["kernel"].std()) == pytest.approx(
            std, rel=0.02
        ), name
    for name, std in {"gate": 128**-0.5, "up": 128**-0.5, "down": 256**-0.5 * residual}.items():
        assert float(params["layers"]["mlp"][name]["kernel"].std()) == pytest.approx(
            std, rel=0.02
        ), name
    assert float(params["embed"]["embedding"].std()) == pytest.approx(0.02, rel=0.02)
    assert float(params["head"]["kernel"].std()) == pytest.approx(128**-0.5, rel=0.02)
    assert all((params["layers"][norm]["scale"] == 1).all() for norm in ("attn_norm", "mlp_norm"))
    assert (params["layers"]["attn"]["q"]["bias"] == 0).all()


def test_initial_weights_depend_on_the_seed_and_the_leaf_alone():
    first, again, other = (init_params(TINY, seed)["layers"]["attn"] for seed in (0, 0, 1))
    assert jnp.array_equal(first["q"]["kernel"], again["q"]["kernel"])
    assert not jnp.array_equal(first["q"]["kernel"], other["q"]["kernel"])
    assert not jnp.array_equal(first["k"]["kernel"], first["v"]["kernel"])
    assert not jnp.array_equal(first["q"]["kernel"][0], first["q"]["kernel"][1])


@functools.cache
def printed():
    """Weights that may be written to, and their fingerprint."""
    params = jax.tree.map(np.array, init_params(TINY, 0))
    return params, tree_fingerprint(params)


@given(st.integers(0, 10), st.integers(0, 2**31 - 1), st.integers(0, 30))
@settings(max_examples=40)
def test_a_fingerprint_sees_every_bit_of_every_weight(leaf, place, bit):
    params, same = printed()
    leaves = jax.tree.leaves(params)
    flat = leaves[leaf % len(leaves)].reshape(-1).view(np.uint32)
    flat[place % flat.size] ^= np.uint32(1 << bit)
    assert tree_fingerprint(params) != same
    flat[place % flat.size] ^= np.uint32(1 << bit)
    assert tree_fingerprint(params) == same and re.fullmatch("[0-9a-f]{16}", same)


def test_a_fingerprint_sees_where_a_weight_is():
    params = jax.tree.map(np.array, init_params(TINY, 0))
    same, kernel = tree_fingerprint(params), params["layers"]["mlp"]["gate"]["kernel"]
    kernel[0, [0, 1]] = kernel[0, [1, 0]]
    assert tree_fingerprint(params) != same
