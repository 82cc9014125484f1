"""Medians of repeated calls, and this machine's float32 matmul ceiling."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

SIZES = (1024, 2048)  # of the square matmuls; the faster one is the ceiling


def paired(
    first: Callable[[], object], second: Callable[[], object], repeats: int = 25
) -> tuple[float, float, float]:
    """Median seconds of each and the median of the ratios second / first, timed in turn A B A B."""
    jax.block_until_ready((first(), second()))
    a, b = [], []
    for _ in range(repeats):
        for call, taken in ((first, a), (second, b)):
            started = time.perf_counter()
            jax.block_until_ready(call())
            taken.append(time.perf_counter() - started)
    return (
        statistics.median(a),
        statistics.median(b),
        statistics.median(y / x for x, y in zip(a, b, strict=True)),
    )


@dataclasses.dataclass(frozen=True)
class Share:
    """Medians over repeated calls: wall seconds, FLOP/s, and FLOP/s as a share of the matmul rate
    right before and after.
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
    """How much of the machine `call(prepare())` uses; `prepare` is not timed.

    The matmul rate is taken around every call, since other tenants of a shared machine come and go
    within seconds.
    """
    multiply = max(map(_Matmul, SIZES), key=_Matmul.rate)
    jax.block_until_ready(call(prepare()))
    seconds, shares = [], []
    for _ in range(repeats):
        given = jax.block_until_ready(prepare())
        before = multiply.rate()
        started = time.perf_counter()
        jax.block_until_ready(call(given))
        seconds.append(time.perf_counter() - started)
        shares.append(flops / seconds[-1] / ((before + multiply.rate()) / 2))
    middle = statistics.median(seconds)
    return Share(middle, flops / middle, statistics.median(shares))


class _Matmul:
    """A square float32 matmul under jit."""

    def __init__(self, n: int):
        self.x, self.multiply, self.flops = (
            jax.random.normal(jax.random.key(n), (n, n)),
            jax.jit(jnp.matmul),
            2 * n**3,
        )
        jax.block_until_ready(self.multiply(self.x, self.x))

    def rate(self, calls: int = 4) -> float:
        """FLOP/s over `calls` calls."""
        started = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(self.multiply(self.x, self.x))
        return calls * self.flops / (time.perf_counter() - started)


def matmul_ceiling() -> float:
    """The best float32 FLOP/s of a square matmul under jit."""
    return max(
        statistics.median(multiply.rate(1) for _ in range(7)) for multiply in map(_Matmul, SIZES)
    )
