"""`python -m benchmarks.run`: how much of this machine sampling and training use.

Also what sharing contexts saves. The ceiling is the float32 matmul rate, measured at the start, at
the end, and around every call that is held against it. FLOPs are those that are computed: 2N (6N) a
token, and attention's products over the full, unmasked shapes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Paired, Share, matmul_ceiling, paired, share_of_ceiling
from prefixrl_jax.configs import demo
from prefixrl_jax.experiment.build import Settings, resolve
from prefixrl_jax.group import Context, Group
from prefixrl_jax.model.transformer import encode_context
from prefixrl_jax.model.weights import init_params
from prefixrl_jax.rl.step import UpdateSettings, init_state, make_optimizer, make_train_step
from prefixrl_jax.sampling import noise, sampler
from prefixrl_jax.sampling.distribution import Sampling

DECODE_STEPS = 24  # of the sampler, in one timed call


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a batch.

    Attributes:
        contexts: P.
        group: G, continuations of each context.
        context: S, tokens of a context.
        columns: T, tokens of a continuation.
    """

    contexts: int
    group: int
    context: int
    columns: int


# Shared and repeated contexts are compared on it.
SHARING = Shape(contexts=8, group=8, context=96, columns=64)


def training_shape(settings: Settings) -> Shape:
    """Return the largest batch that a run trains on."""
    return Shape(
        settings.config.train.batch,
        settings.config.train.group,
        max(settings.engine.buckets),
        settings.sampling.max_new_tokens,
    )


def make_group(settings: Settings, shape: Shape, seed: int = 0) -> Group:
    """Return a full batch of random tokens: it has no padding, so every FLOP counted is needed."""
    rng = np.random.default_rng(seed)
    vocabulary = settings.model.vocab_size
    p, g, s, t = dataclasses.astuple(shape)
    context = jnp.asarray(rng.integers(0, vocabulary, (p, s)), jnp.int32)
    tokens = jnp.asarray(rng.integers(0, vocabulary, (p, g, t)), jnp.int32)
    return Group(
        context=Context(context, jnp.full((p,), s, jnp.int32)),
        tokens=tokens,
        lengths=jnp.full((p, g), t, jnp.int32),
        logprobs=jnp.zeros((p, g, t)),
        # Every other reward is 1, so that no group is left out of the update.
        rewards=jnp.broadcast_to(jnp.arange(g, dtype=jnp.float32) % 2, (p, g)),
    )


def repeat_contexts(group: Group) -> Group:
    """Return the same batch as groups of one, each with its context repeated."""
    p, g, t = group.tokens.shape
    return Group(
        context=jax.tree.map(lambda x: jnp.repeat(x, g, axis=0), group.context),
        tokens=group.tokens.reshape(p * g, 1, t),
        lengths=group.lengths.reshape(p * g, 1),
        logprobs=group.logprobs.reshape(p * g, 1, t),
        rewards=group.rewards.reshape(p * g, 1),
    )


class TrainStep:
    """The demo's update as a call without arguments that advances its own state."""

    def __init__(
        self, settings: Settings, group: Group, micro_batches: int, advantage: str = "group_mean"
    ):
        model, mesh = settings.model, settings.mesh
        optimizer = make_optimizer(settings.optimizer("train", settings.config.train.steps))
        update_settings = UpdateSettings(settings.loss, advantage, micro_batches)
        self.update = make_train_step(model, optimizer, update_settings, mesh)
        self.state = init_state(init_params(model, 0), model, optimizer, mesh)
        self.group = group

    def __call__(self):
        """Update once; return the metrics."""
        self.state, metrics = self.update(self.state, self.group)
        return metrics


def train_flops(settings: Settings, shape: Shape) -> float:
    """Return the FLOPs of one update: weights and full attention, forward and backward."""
    p, g, s, t = dataclasses.astuple(shape)
    tokens = p * (s + g * t)
    pairs = p * (s**2 + g * t * (s + t))
    # The output head is not applied to contexts.
    head = 2 * p * s * settings.model.vocab_size * settings.model.hidden_size
    cost = settings.cost
    return cost.tokens(tokens, train=True) - 3 * head + cost.pairs(pairs, train=True)


def bench_sampler(settings: Settings, context: int) -> tuple[Share, float]:
    """Time decoding with every slot busy; return its share of the ceiling and its tokens/s."""
    p, g = settings.engine.rows, settings.engine.slots
    model = settings.model
    params = init_params(model, 0)
    never_drawn = model.vocab_size  # as the end token, so that every row keeps its full length
    sampling = Sampling(settings.sampling.max_new_tokens, (never_drawn,))
    contexts = make_group(settings, Shape(p, g, context, 1)).context
    every = jnp.ones((p, g), bool)

    def ready():
        columns = sampling.max_new_tokens
        state = sampler.start(params, contexts, config=model, slots=g, columns=columns)
        words, ids = jnp.zeros((p, 2), jnp.uint32), jnp.zeros((p, g), jnp.int32)
        return sampler.assign(state, noise.stream_key(0, "bench"), words, ids, every, every)

    def decode(state):
        return sampler.decode_chunk(
            params, state, config=model, sampling=sampling, steps=DECODE_STEPS
        )

    keys = context + sampling.max_new_tokens
    step_flops = settings.cost.tokens(p * g) + settings.cost.pairs(p * g * keys)
    share = share_of_ceiling(decode, DECODE_STEPS * step_flops, ready)
    return share, DECODE_STEPS * p * g / share.seconds


def bench_sharing(settings: Settings) -> tuple[Paired, Paired]:
    """Time shared against repeated contexts; return it for the train step and for prefill."""
    group = make_group(settings, SHARING)
    repeated = repeat_contexts(group)
    loss = dataclasses.replace(settings.loss, logprob_chunk=SHARING.columns)
    settings = dataclasses.replace(settings, loss=loss)
    train = paired(TrainStep(settings, group, 1, "none"), TrainStep(settings, repeated, 1, "none"))
    params = init_params(settings.model, 0)
    encode = jax.jit(lambda context: encode_context(params, settings.model, context))
    prefill = paired(lambda: encode(group.context), lambda: encode(repeated.context))
    return train, prefill


def main() -> None:
    """Measure everything and print the table."""
    settings = resolve(demo.get_config())
    with jax.set_mesh(settings.mesh):
        before = matmul_ceiling()
        shape = training_shape(settings)
        decode, tokens = bench_sampler(settings, shape.context)
        micro_batches = settings.config.train.micro_batches
        step = TrainStep(settings, make_group(settings, shape), micro_batches)
        trained = share_of_ceiling(lambda _: step(), train_flops(settings, shape))
        train, prefill = bench_sharing(settings)
        after = matmul_ceiling()

    start, end = f"{before / 1e9:8.1f} GFLOP/s at the start", f"{after / 1e9:.1f} at the end"
    print(f"float32 matmul ceiling   {start}, {end}")
    rows = f"{settings.engine.rows} x {settings.engine.slots} rows after {shape.context}"
    rollouts = f"{shape.contexts} x {shape.group} rollouts of {shape.columns} tokens"
    print_share("sampler", decode, f"{tokens:,.0f} tokens/s, {rows}")
    print_share("train step", trained, f"{trained.seconds:.2f} s, {rollouts} after {shape.context}")
    p, g, s, t = dataclasses.astuple(SHARING)
    print(f"shared against repeated contexts, {p} groups of G = {g}, S = {s}, T = {t}:")
    print(
        f"  train step             {train.ratio:8.2f} x faster ({train.first:.3f} s,"
        f" {train.second:.3f} s)"
    )
    print(
        f"  prefill                {prefill.ratio:8.2f} x faster ({prefill.first * 1e3:.1f} ms,"
        f" {prefill.second * 1e3:.1f} ms)"
    )
    compiled = {
        "start": sampler.start,
        "decode_chunk": sampler.decode_chunk,
        "train step": step.update,
    }
    counts = ", ".join(f"{name} {function._cache_size()}" for name, function in compiled.items())
    print(f"compilations             {counts}")


def print_share(name: str, share: Share, note: str) -> None:
    """Print one line of the table."""
    print(
        f"{name:24} {share.rate / 1e9:8.1f} GFLOP/s = {share.of_ceiling:.0%} of the ceiling"
        f" ({note})"
    )


if __name__ == "__main__":
    main()
