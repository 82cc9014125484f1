"""Medians of repeated calls, and this machine's float32 matmul rate."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

SIZES = (1024, 2048)  # of the square matmuls; the faster one is the ceiling


class Paired(NamedTuple):
    """Median seconds of two calls, and the median of the ratios second / first."""

    first: float
    second: float
    ratio: float


def paired(first: Callable[[], object], second: Callable[[], object], repeats: int = 25) -> Paired:
    """Time two calls in turn, A B A B, so that a slow spell of the machine meets both."""
    jax.block_until_ready((first(), second()))
    first_seconds, second_seconds = [], []
    for _ in range(repeats):
        first_seconds.append(_seconds(first))
        second_seconds.append(_seconds(second))
    ratios = [b / a for a, b in zip(first_seconds, second_seconds, strict=True)]
    return Paired(
        statistics.median(first_seconds),
        statistics.median(second_seconds),
        statistics.median(ratios),
    )


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


@dataclasses.dataclass(frozen=True)
class Share:
    """How much of the machine a call uses: medians over repeated calls.

    Attributes:
        seconds: Wall time.
        rate: FLOP/s.
        of_ceiling: FLOP/s as a share of the matmul rate right before and after the call.
    """

    seconds: float
    rate: float
    of_ceiling: float


def share_of_ceiling(
    call: Callable[[object], object],
    flops: float,
    prepare: Callable[[], object] = lambda: None,
    repeats: int = 9,
) -> Share:
    """Measure how much of the machine `call(prepare())` uses; `prepare` is not timed.

    The matmul rate is taken around every call, since other tenants of a shared machine come and go
    within seconds.
    """
    multiply = max(map(_Matmul, SIZES), key=_Matmul.rate)
    jax.block_until_ready(call(prepare()))
    seconds, shares = [], []
    for _ in range(repeats):
        prepared = jax.block_until_ready(prepare())
        before = multiply.rate()
        started = time.perf_counter()
        jax.block_until_ready(call(prepared))
        seconds.append(time.perf_counter() - started)
        ceiling = (before + multiply.rate()) / 2
        shares.append(flops / seconds[-1] / ceiling)
    median = statistics.median(seconds)
    return Share(median, flops / median, statistics.median(shares))


class _Matmul:
    """A square float32 matmul under jit."""

    def __init__(self, n: int):
        self.x = jax.random.normal(jax.random.key(n), (n, n))
        self.multiply = jax.jit(jnp.matmul)
        self.flops = 2 * n**3
        jax.block_until_ready(self.multiply(self.x, self.x))

    def rate(self, calls: int = 4) -> float:
        """Return FLOP/s over `calls` calls."""
        started = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(self.multiply(self.x, self.x))
        return calls * self.flops / (time.perf_counter() - started)


def matmul_ceiling() -> float:
    """Return the best float32 FLOP/s of a square matmul under jit."""
    return max(
        statistics.median(multiply.rate(1) for _ in range(7)) for multiply in map(_Matmul, SIZES)
    )
