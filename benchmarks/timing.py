"""Medians of repeated calls, and this machine's float32 matmul ceiling."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp


def median_seconds(call: Callable[[], object], repeats: int = 7) -> float:
    """Median wall seconds of `call`, which must return arrays; the first, compiling call is not counted."""
    jax.block_until_ready(call())
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def paired(first: Callable[[], object], second: Callable[[], object], repeats: int = 7) -> tuple[float, float, float]:
    """Median seconds of each and the median of the ratios second / first, timed in turn A B A B."""
    jax.block_until_ready((first(), second()))
    a, b = [], []
    for _ in range(repeats):
        for call, taken in ((first, a), (second, b)):
            started = time.perf_counter()
            jax.block_until_ready(call())
            taken.append(time.perf_counter() - started)
    return statistics.median(a), statistics.median(b), statistics.median(y / x for x, y in zip(a, b, strict=True))


def matmul_ceiling(sizes: tuple[int, ...] = (1024, 2048)) -> float:
    """The best float32 FLOP/s of a square matmul under jit."""
    best = 0.0
    for n in sizes:
        x = jax.random.normal(jax.random.key(n), (n, n))
        multiply = jax.jit(jnp.matmul)
        best = max(best, 2 * n**3 / median_seconds(lambda x=x, multiply=multiply: multiply(x, x)))
    return best
