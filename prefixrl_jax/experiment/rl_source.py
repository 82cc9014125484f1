"""From a configuration to the source of RL's batches: contexts, off-policy traces, reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import numpy as np

from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.experiment.build import Settings
from prefixrl_jax.experiment.workdir import Workdir
from prefixrl_jax.group import Group
from prefixrl_jax.model.weights import Params
from prefixrl_jax.prefixes.contexts import ContextStream
from prefixrl_jax.prefixes.cuts import read_cuts
from prefixrl_jax.prefixes.schedules import ScheduleSettings, TraceCutter, make_schedule
from prefixrl_jax.rl.loss import token_logprobs
from prefixrl_jax.sampling.job import Sample
from prefixrl_jax.tasks.prompt import Prompt
from prefixrl_jax.training.on_policy import Noise, Objective, OnPolicy
from prefixrl_jax.training.rollout import RolloutSampler
from prefixrl_jax.training.samples import SampleWriter


def on_policy(workdir: Workdir) -> OnPolicy:
    """Return the source that the fields of `prefix` and `train` describe.

    Raises ValueError if it needs traces and there is none.
    """
    settings = workdir.settings
    train = workdir.config.train
    samples_every = workdir.config.log.samples_every
    reference = None
    if train.kl_coef:
        reference = reference_logprobs(settings, workdir.base_params())
    return OnPolicy(
        sampler=RolloutSampler(settings.engine, settings.task, settings.sampling),
        contexts=context_stream(workdir),
        objective=Objective(
            group=train.group,
            advantage=train.advantage,
            loss=settings.loss,
            mask_truncated=train.mask_truncated,
            at_plain=train.at_plain,
            refills=train.refills if train.filter == "refill" else 0,
        ),
        noise=Noise(train.seed, workdir.noise_name("rollouts")),
        samples=SampleWriter(workdir.path / "samples", settings.task, samples_every),
        decode_shardings=settings.shardings("decode"),
        traces=off_policy_rows(
            workdir.traces(), train.off_policy, train.behaviour, settings.sampling.max_new_tokens
        ),
        reference=reference,
    )


def context_stream(workdir: Workdir) -> ContextStream:
    """Return the contexts of every step: prefixes by the schedule, and the plain hard problems."""
    settings = workdir.settings
    prefix = workdir.config.prefix
    train = workdir.config.train
    hard = workdir.hard("train")
    pairs = [(hard[problem], trace) for problem, trace in workdir.cut_sources()]
    anneal_steps = prefix.anneal_steps or max(2 * settings.schedule_steps // 3, 1)
    schedule = make_schedule(
        ScheduleSettings(prefix.schedule, max(prefix.band), anneal_steps, train.seed),
        read_cuts(hard, workdir.prefixes_path),
        TraceCutter(settings.task, pairs, hinted=prefix.place == "user"),
    )
    plain = [Prompt(problem) for problem in hard.values()]
    return ContextStream(schedule, plain, prefix.share, train.batch, train.seed)


def off_policy_rows(
    traces: list[Trace], kind: str, behaviour: str, longest: int
) -> dict[str, Sample] | None:
    """Return traces as rows of their problems' plain groups, by problem id; None for kind "none".

    Args:
        traces: of the corpus.
        kind: `train.off_policy`.
        behaviour: which log-probs the rows carry. "sampled": as the base model gave them when it
            sampled them. "acceptance": rejection sampling keeps correct samples alone, so its
            policy is base(trace) / base(correct); 1 / base(correct) is estimated by the samples
            that the first success took, and is spread evenly over the trace's tokens.
        longest: tokens that a row holds.

    Raises:
        ValueError: there is no trace, one is longer, or log-probs are needed and an imported trace
            has none.
    """
    if kind == "none":
        return None
    if not traces:
        raise ValueError(
            f"train.off_policy={kind!r}: the corpus has no trace (raise collect.cap, or choose"
            " easier problems)"
        )
    rows = {}
    for trace in traces:
        if len(trace.token_ids) > longest:
            raise ValueError(
                f"sampling.max_new_tokens={longest}: the trace of problem {trace.problem_id!r} has"
                f" {len(trace.token_ids)} tokens, and train.off_policy={kind!r} makes it a row"
            )
        tokens = np.asarray(trace.token_ids, np.int32)
        logprobs = _behaviour_logprobs(trace, kind, behaviour)
        sample = Sample(trace.sample_id, tokens, logprobs, trace.finish_reason)
        rows[trace.problem_id] = sample
    return rows


def _behaviour_logprobs(trace: Trace, kind: str, behaviour: str) -> np.ndarray:
    """float32 [tokens]: log-probs of the policy that made the trace."""
    if kind == "shaped":  # that loss uses none
        return np.zeros(len(trace.token_ids), np.float32)
    logprobs = np.asarray(trace.logprobs, np.float32)
    if not len(logprobs):
        raise ValueError(
            f"train.off_policy={kind!r}: the trace of problem {trace.problem_id!r} was imported"
            " without log-probs; sample the corpus here, or use shaped"
        )
    if behaviour == "acceptance":
        return logprobs + np.float32(math.log(trace.samples) / len(logprobs))
    return logprobs


def reference_logprobs(settings: Settings, params: Params) -> Callable[[Group], jax.Array]:
    """Return a function from a batch to its tokens' log-probs [P, G, T] under fixed parameters."""
    loss = settings.loss

    @jax.jit
    def score(params: Params, group: Group) -> jax.Array:
        return token_logprobs(
            params, settings.model, group, loss.temperature, loss.logprob_chunk, loss.absent_ids
        )

    return lambda group: score(params, group)
