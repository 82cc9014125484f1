"""NaN and infinity are found on devices and on the host, and named."""

import jax
import ml_dtypes
import numpy as np
import pytest
from tiny_models import TINY, random_params

from prefixrl_jax.model.finite import finite_leaves, is_finite, nonfinite
from prefixrl_jax.model.sharding import param_shardings
from prefixrl_jax.runtime.mesh import make_mesh


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_leaves_that_are_not_finite_are_named(value):
    params = jax.device_put(random_params(TINY), param_shardings(TINY, make_mesh(), "train"))
    assert nonfinite(params) == []
    attn = params["layers"]["attn"]
    attn["q"]["kernel"] = attn["q"]["kernel"].at[1, 2, 3, 4].set(value)
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[-1].set(value)
    assert nonfinite(params) == ["final_norm.scale", "layers.attn.q.kernel"]
    flags = jax.jit(finite_leaves)(params)
    assert not flags["final_norm"]["scale"] and flags["layers"]["mlp_norm"]["scale"]


def test_what_overflows_the_stored_type_counts():
    params = {"a": np.full(3, 1e5, np.float32), "b": [np.ones(2, np.float32)]}
    assert nonfinite(params, "float16") == ["a"]
    assert nonfinite(params, "bfloat16") == []
    params["b"] = [np.asarray([np.nan], np.float32)]
    assert nonfinite(params) == ["b.0"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16, np.float16])
def test_arrays_on_the_host(dtype):
    values = np.zeros((3, 2**21), dtype)
    assert is_finite(values) and is_finite(values[:0])
    values[2, -1] = np.nan
    assert not is_finite(values)
