"""From a configuration to the source of RL's batches: which contexts, whose traces, what
reference.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from prefixrl_jax.corpus.traces import Trace
from prefixrl_jax.experiment.build import Settings
from prefixrl_jax.group import Group
from prefixrl_jax.model.weights import Params
from prefixrl_jax.prefixes import cuts as prefixes
from prefixrl_jax.prefixes.schedules import ContextStream, Traces, make_schedule
from prefixrl_jax.rl.loss import token_logprobs
from prefixrl_jax.sampling.refill import Sample
from prefixrl_jax.tasks.task import Problem
from prefixrl_jax.training.on_policy import OnPolicy
from prefixrl_jax.training.rollout import Prompt


@dataclasses.dataclass(frozen=True)
class Materials:
    """What the stages before training have made."""

    hard: dict[str, Problem]
    traces: list[Trace]
    pairs: list[tuple[str, list[int]]]  # (problem id, token ids) that prefixes are cut from
    cuts: Path  # the frozen prefixes
    base_params: Callable[[], Params]
    decode_shardings: Params


def on_policy(s: Settings, m: Materials, samples: Path, stream: str) -> OnPolicy:
    """The source that the fields of `prefix` and `train` describe.

    Raises ValueError if it needs traces and there is none.
    """
    p, t = s.config.prefix, s.config.train
    to_cut = Traces(
        s.task, [(m.hard[problem], trace) for problem, trace in m.pairs], p.place == "user"
    )
    anneal = p.anneal_steps or max(2 * s.schedule_steps // 3, 1)
    frozen = prefixes.read_cuts(m.hard, m.cuts)
    schedule = make_schedule(p.schedule, frozen, to_cut, max(p.band), anneal, t.seed)
    return OnPolicy(
        engine=s.engine,
        decode_shardings=m.decode_shardings,
        task=s.task,
        contexts=ContextStream(
            schedule, [Prompt(x) for x in m.hard.values()], p.share, t.batch, t.seed
        ),
        group=t.group,
        advantage=t.advantage,
        loss=s.loss,
        sampling=s.sampling,
        seed=t.seed,
        stream=stream,
        mask_truncated=t.mask_truncated,
        samples_directory=samples,
        samples_every=s.config.log.samples_every,
        refills=t.refills if t.filter == "refill" else 0,
        at_plain=t.at_plain,
        traces=off_policy_rows(m.traces, t.off_policy, t.behaviour, s.sampling.max_new_tokens),
        reference=reference_logprobs(s, m.base_params()) if t.kl_coef else None,
    )


def off_policy_rows(
    traces: list[Trace], kind: str, behaviour: str, longest: int
) -> dict[str, Sample] | None:
    """None for kind "none"; else traces as rows of their problems' plain groups, with the log-probs
    of the policy they came from.

    behaviour: "sampled", as the base model gave them when it sampled them. "acceptance": rejection
    sampling keeps correct samples alone, so its policy is base(trace) / base(correct); 1 /
    base(correct) is estimated by the samples the first success took and is spread evenly over the
    trace's tokens. longest: tokens a row holds. Raises ValueError when there is no trace, when one
    is longer, or when log-probs are needed and a trace that was brought has none.
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
                f"sampling.max_new_tokens={longest}: the trace of problem {trace.problem_id!r} has "
                f"{len(trace.token_ids)} tokens, and train.off_policy={kind!r} makes it a row"
            )
        logprobs = np.asarray(trace.logprobs, np.float32)
        if kind == "shaped":  # it asks for none
            logprobs = np.zeros(len(trace.token_ids), np.float32)
        elif not len(logprobs):
            raise ValueError(
                f"train.off_policy={kind!r}: the trace of problem {trace.problem_id!r} was brought"
                " without log-probs; sample the corpus here, or use shaped"
            )
        elif behaviour == "acceptance":
            logprobs = logprobs + np.float32(math.log(trace.samples) / len(logprobs))
        tokens = np.asarray(trace.token_ids, np.int32)
        rows[trace.problem_id] = Sample(trace.sample_id, tokens, logprobs, trace.finish_reason)
    return rows


def reference_logprobs(s: Settings, params: Params) -> Callable[[Group], jax.Array]:
    """A jitted function from a global batch to its tokens' log-probs [P, G, T] under fixed
    parameters.
    """
    score = jax.jit(
        lambda params, group: token_logprobs(
            params, s.model, group, s.loss.temperature, s.loss.logprob_chunk
        )
    )
    return lambda group: score(params, group)
