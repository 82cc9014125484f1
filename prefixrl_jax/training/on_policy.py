"""PrefixRL's batches: on-policy rollouts that continue frozen prefixes, beside rollouts of the
plain problems.

Paper, section 3: the objective is the expected 0/1 reward over the prefixed problems plus that over
the plain problems. A group is the n rollouts of one (problem, prefix); its baseline is its own
mean.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prefixrl_jax.flops import Ledger
from prefixrl_jax.group import Group
from prefixrl_jax.model.weights import Params
from prefixrl_jax.prefixes.schedules import ContextStream, Memory
from prefixrl_jax.rl.advantage import advantages
from prefixrl_jax.rl.loss import informative
from prefixrl_jax.rl.surrogate import LossSettings
from prefixrl_jax.runtime import mesh as meshes
from prefixrl_jax.runtime.files import write_text
from prefixrl_jax.runtime.processes import agree, joined, local_slice, primary
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.sampling.refill import Engine, Sample
from prefixrl_jax.sampling.sampler import Sampling
from prefixrl_jax.tasks.task import Task
from prefixrl_jax.training.loop import Batch
from prefixrl_jax.training.rollout import Prompt, Rollouts, as_group, sample_and_grade


@dataclasses.dataclass(frozen=True)
class OnPolicy:
    """The source of RL: contexts of the step -> rollouts by the current parameters -> a batch of
    graded groups.
    """

    engine: Engine
    decode_shardings: Params
    task: Task
    contexts: ContextStream
    group: int
    advantage: str
    loss: LossSettings
    sampling: Sampling
    seed: int
    stream: str  # name of the rollouts' noise
    mask_truncated: bool
    samples_directory: Path
    samples_every: int
    # how often groups that were all right or all wrong are replaced by others (DAPO's dynamic
    # sampling)
    refills: int = 0
    # whether hinted rollouts are trained as continuations of the plain problem
    at_plain: bool = False
    # by problem: the trace that is one of its plain group
    traces: Mapping[str, Sample] | None = None
    # log-probs under the reference model, for the KL divergence
    reference: Callable[[Group], jax.Array] | None = None

    def __call__(self, params: Params, step: int, ledger: Ledger, memory: Memory) -> Batch:
        """The batch of `step`. Rollouts are a pure function of (parameters, seed, step, memory).

        memory: what the schedule has learnt, and the problems that were ever solved without a
        prefix.
        """
        started = time.monotonic()
        decode_params = jax.device_put(params, self.decode_shardings)
        known, unlocked = memory.get("schedule", {}), set(memory.get("unlocked", ()))
        rollouts = self._sample(decode_params, step, 0, ledger, known)
        first = everyone = joined(summaries(rollouts, self.task))
        for attempt in range(1, self.refills + 1):
            if not agree(int((~self._informative(rollouts)).sum()), np.sum):
                break
            fresh = self._sample(decode_params, step, attempt, ledger, known)
            rollouts, everyone = (
                self._refill(rollouts, fresh),
                everyone + joined(summaries(fresh, self.task)),
            )
        group = self._group(rollouts)
        if self.samples_every and (step % self.samples_every == 0) and primary():
            rows = readable_samples(self.task, rollouts, step + 1, per_kind=4)
            write_samples(self.samples_directory / f"train-{step + 1:05d}.jsonl", rows)

        unlocked |= {g["problem"] for g in everyone if g["solved"] and not g["prefix"]}
        # before any group was replaced: the others were chosen for being mixed
        metrics = rollout_metrics(first)
        metrics |= {
            "problems/unlocked": float(len(unlocked)),
            "time/sample": time.monotonic() - started,
        }
        named = ", ".join(sorted({p.problem.id for p in rollouts.prompts})[:8])
        description, tokens = (
            f"of step {step + 1} (problems {named}, ...)",
            sum(sum(g["lengths"]) for g in everyone),
        )
        spread = meshes.to_global(self.engine.mesh, group)
        if self.reference is not None:
            spread = dataclasses.replace(spread, reference=self.reference(spread))
            self._charge_scoring(rollouts, group, ledger)
        after = {"schedule": self.contexts.learn(everyone, known), "unlocked": sorted(unlocked)}
        return Batch(
            spread, description, tokens, metrics, partial(self._charge, rollouts, group), after
        )

    def _sample(
        self, params: Params, step: int, attempt: int, ledger: Ledger, memory: Memory
    ) -> Rollouts:
        """This process's rollouts of a step; attempt > 0: of other contexts, with noise of their
        own.
        """
        prompts = local_slice(self.contexts.at(step, memory, attempt))
        stream = stream_key(
            self.seed, f"{self.stream} again {attempt}" if attempt else self.stream, step
        )
        return sample_and_grade(
            self.engine,
            params,
            self.task,
            prompts,
            self.group,
            self.sampling,
            stream,
            ledger,
            ("prefill", "decode"),
            self.traces,
        )

    def _informative(self, rollouts: Rollouts) -> np.ndarray:
        return np.asarray(informative(advantages(rollouts.rewards, self.advantage)))

    def _refill(self, rollouts: Rollouts, fresh: Rollouts) -> Rollouts:
        """Groups without a gradient replaced by such of `fresh` that have one, plain ones by plain
        ones and prefixed ones by prefixed ones, in order, as far as those go.
        """
        idle, useful = ~self._informative(rollouts), self._informative(fresh)
        chosen: dict[int, int] = {}
        for prefixed in (True, False):

            def kind(r: Rollouts, prefixed: bool = prefixed) -> np.ndarray:
                return np.array([bool(p.prefix) == prefixed for p in r.prompts])

            chosen |= dict(
                zip(
                    np.flatnonzero(idle & kind(rollouts)).tolist(),
                    np.flatnonzero(useful & kind(fresh)).tolist(),
                )
            )
        pick = lambda old, new: [new[chosen[i]] if i in chosen else x for i, x in enumerate(old)]  # noqa: E731
        return Rollouts(
            pick(rollouts.prompts, fresh.prompts),
            pick(rollouts.samples, fresh.samples),
            pick(rollouts.verdicts, fresh.verdicts),
            np.stack(pick(rollouts.off_policy, fresh.off_policy)),
        )

    def _group(self, rollouts: Rollouts) -> Group:
        """The rollouts as arrays, with what the loss needs besides."""
        contexts = [
            self.task.render(p.problem) if self.at_plain else p.context(self.task)
            for p in rollouts.prompts
        ]
        columns = self.sampling.max_new_tokens
        group = as_group(rollouts, contexts, self.engine.buckets, columns, self.mask_truncated)
        if self.traces is not None:
            group = dataclasses.replace(group, off_policy=rollouts.off_policy)
        if self.loss.prefix_coef:
            sizes = [0 if p.hinted else len(p.prefix) for p in rollouts.prompts]
            group = dataclasses.replace(group, prefix_lengths=np.array(sizes, np.int32))
        return group

    def _charge(
        self, rollouts: Rollouts, group: Group, ledger: Ledger, update: dict[str, float]
    ) -> None:
        """Books one update on these rollouts (this process's part of the batch)."""
        trained = self._informative(rollouts) | self.loss.every_group
        for context, row, is_trained in zip(
            group.context.lengths.tolist(), rollouts.samples, trained, strict=True
        ):
            lengths = [len(s.token_ids) for s in row]
            ledger.add_training(self.engine.cost, "train", context, lengths, bool(is_trained))
        # What the device was given: every position of the groups computed, padding included.
        computed = update["groups/computed"] / jax.process_count() * self._positions(group)
        ledger.add("hardware", "train", self.engine.cost.trained_positions(computed))

    def _charge_scoring(self, rollouts: Rollouts, group: Group, ledger: Ledger) -> None:
        """Books the reference model's pass over these rollouts."""
        for context, row in zip(group.context.lengths.tolist(), rollouts.samples, strict=True):
            ledger.add_scoring(self.engine.cost, context, [len(s.token_ids) for s in row])
        ledger.add(
            "hardware",
            "score",
            self.engine.cost.tokens(len(rollouts.prompts) * self._positions(group)),
        )

    @staticmethod
    def _positions(group: Group) -> int:
        """What the device is given for one group: the padded context and the padded rows."""
        return group.context.tokens.shape[-1] + group.tokens[0].size


def summaries(rollouts: Rollouts, task: Task) -> list[dict[str, Any]]:
    """What the metrics and the schedule need of each group, as JSON values; few numbers a rollout,
    so that processes can share them. A trace among the rollouts is left out: it says nothing of the
    policy.
    """
    out = []
    for i, prompt in enumerate(rollouts.prompts):
        own = np.flatnonzero(~rollouts.off_policy[i])
        samples, given = (
            [rollouts.samples[i][j] for j in own],
            [rollouts.verdicts[i][j] for j in own],
        )
        rewards = [v.reward for v in given]
        out.append(
            {
                "problem": prompt.problem.id,
                "prefix": len(prompt.prefix),
                "fraction": prompt.fraction,
                "verdicts": [v.value for v in given],
                "rewards": rewards,
                "solved": float(np.mean(rewards)),
                "lengths": [len(s.token_ids) for s in samples],
                "clipped": [s.finish_reason == "length" for s in samples],
                "logprob": float(sum(s.logprobs.sum(dtype=np.float64) for s in samples)),
                "strategies": {} if prompt.prefix else _mean_strategies(task, prompt, samples),
            }
        )
    return out


def _mean_strategies(task: Task, prompt: Prompt, samples: list[Sample]) -> dict[str, float]:
    found = [task.strategies(prompt.problem, s.token_ids.tolist()) for s in samples]
    return {name: float(np.mean([f[name] for f in found])) for name in found[0]}


def rollout_metrics(groups: list[dict[str, Any]]) -> dict[str, float]:
    """Rewards, groups, lengths and prefix statistics of a batch, from the `summaries` of all its
    groups.
    """
    flat = lambda key: [x for g in groups for x in g[key]]  # noqa: E731
    rewards, lengths, clipped, verdicts = map(flat, ("rewards", "lengths", "clipped", "verdicts"))
    sizes, fractions, solved = (
        np.array([g[k] for g in groups]) for k in ("prefix", "fraction", "solved")
    )
    prefixed = sizes > 0
    out = {
        # Nats a token: the mean of -log p over sampled tokens is an unbiased estimate of it.
        "entropy": -sum(g["logprob"] for g in groups) / sum(lengths),
        "reward/mean": np.mean(rewards),
        "reward/plain": _mean(solved[~prefixed]),
        "reward/prefixed": _mean(solved[prefixed]),
        "reward/frac_zero_std": ((solved == 0) | (solved == 1)).mean(),
        "groups/all_zero": (solved == 0).mean(),
        "groups/all_one": (solved == 1).mean(),
        "groups/mixed": ((solved > 0) & (solved < 1)).mean(),
        "completions/mean_length": np.mean(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": np.mean(clipped),
    }
    if plain := [g["strategies"] for g in groups if g["strategies"]]:
        out |= {f"strategy/{name}": np.mean([s[name] for s in plain]) for name in plain[0]}
    for name in ("timeout", "error", "unparsed"):
        out[f"verify/{name}_rate"] = verdicts.count(name) / len(verdicts)
    if prefixed.any():
        for name, values in (("fraction", fractions[prefixed]), ("length", sizes[prefixed])):
            out |= {
                f"prefix/{name}_mean": values.mean(),
                f"prefix/{name}_p10": np.quantile(values, 0.1),
                f"prefix/{name}_p90": np.quantile(values, 0.9),
            }
    return {k: float(v) for k, v in out.items()}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def readable_samples(
    task: Task, rollouts: Rollouts, step: int, per_kind: int, set_name: str = "train"
) -> list[dict[str, Any]]:
    """Rows a person can read: of each kind (plain, prefixed) the first sample of the first
    contexts.
    """
    rows = []
    for kind in ("plain", "prefixed"):
        chosen = [
            i for i, p in enumerate(rollouts.prompts) if bool(p.prefix) == (kind == "prefixed")
        ][:per_kind]
        rows += [_sample_row(task, rollouts, i, kind, step, set_name) for i in chosen]
    return rows


def write_samples(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a line; a file that a repeated step has written before is replaced."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _sample_row(
    task: Task, rollouts: Rollouts, i: int, kind: str, step: int, set_name: str
) -> dict[str, Any]:
    prompt: Prompt = rollouts.prompts[i]
    # the last: the first may be a trace
    sample, verdict = rollouts.samples[i][-1], rollouts.verdicts[i][-1]
    return {
        "step": step,
        "set": set_name,
        "kind": kind,
        "problem": task.text(task.render(prompt.problem)),
        "prefix": task.text(prompt.prefix) if prompt.prefix else "",
        "hinted": prompt.hinted,
        "continuation": task.text(sample.token_ids.tolist()),
        "verdict": verdict.value,
        "reward": verdict.reward,
        "truncated": sample.finish_reason == "length",
    }
