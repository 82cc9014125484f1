"""`python -m benchmarks.run`: how much of this machine the sampler and the train step use, and what
sharing contexts saves.

The ceiling is the float32 matmul rate, measured at the start, at the end, and around every call
that is held against it. FLOPs are those actually computed: 2N (6N) per token and attention's
products over the full, unmasked shapes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Share, matmul_ceiling, paired, share_of_ceiling
from configs import demo
from prefixrl_jax.experiment.build import Settings, resolve
from prefixrl_jax.group import Context, Group
from prefixrl_jax.model.transformer import encode_context
from prefixrl_jax.model.weights import init_params
from prefixrl_jax.rl.step import UpdateSettings, init_state, make_optimizer, make_train_step
from prefixrl_jax.sampling import noise, sampler
from prefixrl_jax.sampling.distribution import Sampling


def make_group(s: Settings, p: int, g: int, context: int, columns: int, seed: int = 0) -> Group:
    """A full batch of random tokens: no padding, so every FLOP counted is needed."""
    rng = np.random.default_rng(seed)
    tokens = lambda *shape: jnp.asarray(rng.integers(0, s.model.vocab_size, shape), jnp.int32)  # noqa: E731
    return Group(
        context=Context(tokens(p, context), jnp.full((p,), context, jnp.int32)),
        tokens=tokens(p, g, columns),
        lengths=jnp.full((p, g), columns, jnp.int32),
        logprobs=jnp.zeros((p, g, columns)),
        # every group has something to teach
        rewards=jnp.broadcast_to(jnp.arange(g, dtype=jnp.float32) % 2, (p, g)),
    )


def repeat_contexts(group: Group) -> Group:
    """The same batch with every context repeated for every row: groups of one."""
    p, g, _ = group.tokens.shape
    context = jax.tree.map(lambda x: jnp.repeat(x, g, axis=0), group.context)
    flat = {
        name: getattr(group, name).reshape(p * g, 1, *getattr(group, name).shape[2:])
        for name in ("tokens", "logprobs")
    }
    return Group(
        context=context,
        lengths=group.lengths.reshape(p * g, 1),
        rewards=group.rewards.reshape(p * g, 1),
        **flat,
    )


class TrainStep:
    """The demo's update as a call without arguments that advances its own state."""

    def __init__(
        self, s: Settings, group: Group, micro_batches: int, advantage: str = "group_mean"
    ):
        optimizer = make_optimizer(s.optimizer("train", s.config.train.steps))
        settings = UpdateSettings(s.loss, advantage, micro_batches)
        self.update = make_train_step(s.model, optimizer, settings, s.mesh)
        self.state = init_state(init_params(s.model, 0), s.model, optimizer, s.mesh)
        self.group = group

    def __call__(self):
        """One update."""
        self.state, metrics = self.update(self.state, self.group)
        return metrics


def train_flops(s: Settings, p: int, g: int, context: int, columns: int) -> float:
    """FLOPs of one update: weights and full attention, forward and backward."""
    tokens = p * (context + g * columns)
    pairs = p * (context**2 + g * columns * (context + columns))
    # the head is not applied to contexts
    head = 2 * p * context * s.model.vocab_size * s.model.hidden_size
    return s.cost.tokens(tokens, train=True) - 3 * head + s.cost.pairs(pairs, train=True)


def bench_sampler(s: Settings, context: int, steps: int = 24) -> tuple[Share, float]:
    """Decoding with every slot busy, and its tokens/s."""
    p, g = s.engine.rows, s.engine.slots
    params = init_params(s.model, 0)
    # an id that is never drawn
    sampling = Sampling(s.sampling.max_new_tokens, (s.model.vocab_size,))
    contexts = make_group(s, p, g, context, 1).context
    every = jnp.ones((p, g), bool)

    def ready():
        state = sampler.start(
            params, contexts, config=s.model, slots=g, columns=sampling.max_new_tokens
        )
        words, ids = jnp.zeros((p, 2), jnp.uint32), jnp.zeros((p, g), jnp.int32)
        return sampler.assign(state, noise.stream_key(0, "bench"), words, ids, every, every)

    def decode(state):
        return sampler.decode_chunk(params, state, config=s.model, sampling=sampling, steps=steps)

    columns = context + sampling.max_new_tokens
    share = share_of_ceiling(
        decode, steps * (s.cost.tokens(p * g) + s.cost.pairs(p * g * columns)), ready
    )
    return share, steps * p * g / share.seconds


def main() -> None:
    """Prints the table."""
    s = resolve(demo.get_config())
    with jax.set_mesh(s.mesh):
        before = matmul_ceiling()
        p, g, context, columns = (
            s.config.train.batch,
            s.config.train.group,
            max(s.engine.buckets),
            s.sampling.max_new_tokens,
        )
        decode, tokens = bench_sampler(s, context)
        step = TrainStep(s, make_group(s, p, g, context, columns), s.config.train.micro_batches)
        trained = share_of_ceiling(lambda _: step(), train_flops(s, p, g, context, columns))

        group = make_group(s, 8, 8, 96, 64)
        s = dataclasses.replace(s, loss=dataclasses.replace(s.loss, logprob_chunk=64))
        shared, repeated = (
            TrainStep(s, group, 1, "none"),
            TrainStep(s, repeat_contexts(group), 1, "none"),
        )
        train_shared, train_repeated, train_ratio = paired(shared, repeated)
        params, many = init_params(s.model, 0), repeat_contexts(group).context
        encode = jax.jit(lambda c: encode_context(params, s.model, c))
        prefill_shared, prefill_repeated, prefill_ratio = paired(
            lambda: encode(group.context), lambda: encode(many)
        )
        after = matmul_ceiling()

    print(
        f"float32 matmul ceiling   {before / 1e9:8.1f} GFLOP/s at the start, {after / 1e9:.1f} at"
        " the end"
    )
    for name, share, what in (
        (
            "sampler",
            decode,
            f"{tokens:,.0f} tokens/s, {s.engine.rows} x {s.engine.slots} rows after {context}",
        ),
        (
            "train step",
            trained,
            f"{trained.seconds:.2f} s, {p} x {g} rollouts of {columns} tokens after {context}",
        ),
    ):
        print(
            f"{name:24} {share.rate / 1e9:8.1f} GFLOP/s = {share.of_ceiling:.0%} of the ceiling"
            f" ({what})"
        )
    print("shared against repeated contexts, 8 groups of G = 8, S = 96, T = 64:")
    print(
        f"  train step             {train_ratio:8.2f} x faster ({train_shared:.3f} s,"
        f" {train_repeated:.3f} s)"
    )
    print(
        f"  prefill                {prefill_ratio:8.2f} x faster ({prefill_shared * 1e3:.1f} ms,"
        f" {prefill_repeated * 1e3:.1f} ms)"
    )
    compiled = {
        "start": sampler.start,
        "decode_chunk": sampler.decode_chunk,
        "train step": step.update,
    }
    print(
        "compilations             "
        + ", ".join(f"{name} {f._cache_size()}" for name, f in compiled.items())
    )


if __name__ == "__main__":
    main()
