"""A step of reinforcement learning, from its contexts to the batch of the update.

Paper, section 3: the objective is the expected 0/1 reward over the prefixed problems plus that over
the plain problems. A group is the n rollouts of one (problem, prefix); its baseline is its own
mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from prefixrl_jax.flops import Ledger
from prefixrl_jax.group import Group
from prefixrl_jax.model.weights import Params
from prefixrl_jax.prefixes.contexts import ContextStream
from prefixrl_jax.prefixes.schedules import ScheduleMemory, attempt_name
from prefixrl_jax.rl.advantage import advantages
from prefixrl_jax.rl.loss import informative
from prefixrl_jax.rl.surrogate import LossSettings
from prefixrl_jax.runtime import mesh as meshes
from prefixrl_jax.runtime.processes import agree, joined, local_slice
from prefixrl_jax.sampling.job import Sample
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.training.charges import charge_scoring, charge_update
from prefixrl_jax.training.loop import Batch
from prefixrl_jax.training.rollout import Rollouts, RolloutSampler, as_group
from prefixrl_jax.training.rollout_metrics import rollout_metrics, summarise_groups
from prefixrl_jax.training.samples import SampleWriter


@dataclasses.dataclass(frozen=True)
class Objective:
    """How rollouts become a loss.

    Attributes:
        group: n, rollouts a context.
        advantage: kind of the baseline (`rl/advantage.py`). The update computes advantages; here
            they say which groups have a gradient, for dynamic sampling and for the bill.
        loss: the surrogate and its settings.
        mask_truncated: whether rollouts cut by the length limit carry no loss.
        at_plain: whether hinted rollouts are trained as continuations of the plain problem.
        refills: how often groups that are all right or all wrong are replaced by other ones
            (DAPO's dynamic sampling).
    """

    group: int
    advantage: str
    loss: LossSettings
    mask_truncated: bool = False
    at_plain: bool = False
    refills: int = 0


@dataclasses.dataclass(frozen=True)
class Noise:
    """Which random numbers the rollouts get: a pure function of (seed, name, step, attempt)."""

    seed: int
    name: str

    def stream(self, step: int, attempt: int) -> jax.Array:
        """Return the key of a step; attempt > 0 for contexts drawn in place of others."""
        return stream_key(self.seed, attempt_name(self.name, attempt), step)


@dataclasses.dataclass(frozen=True)
class OnPolicy:
    """The source of batches for reinforcement learning: call it once a step.

    Attributes:
        sampler: draws rollouts and has them graded.
        contexts: which contexts each step trains on.
        objective: how rollouts become a loss.
        noise: of the rollouts.
        samples: writes readable samples.
        decode_shardings: where the policy's weights lie while it samples.
        traces: by problem id, the trace that is one of the problem's plain group (off-policy
            methods), or None.
        reference: log-probs of a batch's tokens under the reference model, for the KL divergence,
            or None.
    """

    sampler: RolloutSampler
    contexts: ContextStream
    objective: Objective
    noise: Noise
    samples: SampleWriter
    decode_shardings: Params
    traces: Mapping[str, Sample] | None = None
    reference: Callable[[Group], jax.Array] | None = None

    def __call__(self, params: Params, step: int, ledger: Ledger, memory: dict[str, Any]) -> Batch:
        """Return the batch of `step` (from 0): contexts, rollouts, verdicts, and what is learnt.

        The update that follows (`rl/step.py`) computes advantages from the rewards and changes the
        parameters. Rollouts are a pure function of (params, seed, step, memory).

        Args:
            params: the policy, placed by the "train" rules.
            step: counted from 0.
            ledger: is charged for sampling and scoring now, for the update by `Batch.charge`.
            memory: what the schedule of prefixes has learnt ("schedule"), and the ids of problems
                ever solved without a prefix ("unlocked").
        """
        task = self.sampler.task
        mesh = self.sampler.engine.mesh
        policy = jax.device_put(params, self.decode_shardings)
        schedule_memory = memory.get("schedule", {})

        # Contexts, rollouts, verdicts.
        first = self._rollouts(policy, step, 0, ledger, schedule_memory)
        first_groups = joined(summarise_groups(first, task))
        rollouts, all_groups = first, first_groups
        for attempt in range(1, self.objective.refills + 1):
            if not agree(int((~self._has_gradient(rollouts)).sum()), np.sum):
                break
            fresh = self._rollouts(policy, step, attempt, ledger, schedule_memory)
            rollouts = self._replace_uniform(rollouts, fresh)
            all_groups = all_groups + joined(summarise_groups(fresh, task))

        # Arrays for advantages and update: this process's groups, then those of all on the mesh.
        local = self._arrays(rollouts)
        placed = meshes.to_global(mesh, local)
        if self.reference is not None:
            placed = dataclasses.replace(placed, reference=self.reference(placed))
            charge_scoring(ledger, self.sampler.engine.cost, rollouts, local)

        # Learnt, besides the gradient, and written.
        self.samples.write(rollouts, step)
        solved = {g["problem"] for g in all_groups if g["solved"] and not g["prefix"]}
        unlocked = set(memory.get("unlocked", ())) | solved
        # Metrics are of the first draw: the groups that replaced some were chosen for being mixed.
        metrics = rollout_metrics(first_groups)
        metrics["problems/unlocked"] = float(len(unlocked))
        return Batch(
            group=placed,
            description=f"of step {step + 1} (problems {_some_problems(rollouts)}, ...)",
            tokens=sum(sum(g["lengths"]) for g in all_groups),
            metrics=metrics,
            charge=partial(self._charge, rollouts, local),
            memory={
                "schedule": self.contexts.learn(all_groups, schedule_memory),
                "unlocked": sorted(unlocked),
            },
        )

    def _rollouts(
        self, policy: Params, step: int, attempt: int, ledger: Ledger, memory: ScheduleMemory
    ) -> Rollouts:
        """Sample and grade this process's part of the contexts of a step."""
        prompts = local_slice(self.contexts.at(step, memory, attempt))
        stream = self.noise.stream(step, attempt)
        return self.sampler.sample(
            policy, prompts, self.objective.group, stream, ledger, traces=self.traces
        )

    def _has_gradient(self, rollouts: Rollouts) -> np.ndarray:
        """bool [P]: groups with a nonzero advantage."""
        return np.asarray(informative(advantages(rollouts.rewards, self.objective.advantage)))

    def _replace_uniform(self, rollouts: Rollouts, fresh: Rollouts) -> Rollouts:
        """Replace groups without a gradient by groups of `fresh` that have one, as far as they go.

        Plain groups are replaced by plain ones and prefixed ones by prefixed ones, in order, so
        that their share in the batch stays.
        """
        uniform = ~self._has_gradient(rollouts)
        useful = self._has_gradient(fresh)
        substitutes: dict[int, int] = {}
        for prefixed in (True, False):
            replaced = np.flatnonzero(uniform & (rollouts.prefixed == prefixed)).tolist()
            available = np.flatnonzero(useful & (fresh.prefixed == prefixed)).tolist()
            substitutes |= dict(zip(replaced, available))

        def mixed(old, new) -> list:
            return [new[substitutes[i]] if i in substitutes else x for i, x in enumerate(old)]

        return Rollouts(
            mixed(rollouts.prompts, fresh.prompts),
            mixed(rollouts.samples, fresh.samples),
            mixed(rollouts.verdicts, fresh.verdicts),
            np.stack(mixed(rollouts.off_policy, fresh.off_policy)),
        )

    def _arrays(self, rollouts: Rollouts) -> Group:
        """Pad the rollouts, and add what the loss needs besides."""
        task = self.sampler.task
        sampler = self.sampler
        if self.objective.at_plain:
            contexts = [task.render(prompt.problem) for prompt in rollouts.prompts]
        else:
            contexts = [prompt.context(task) for prompt in rollouts.prompts]
        group = as_group(
            rollouts,
            contexts,
            sampler.engine.buckets,
            sampler.sampling.max_new_tokens,
            self.objective.mask_truncated,
        )
        if self.traces is not None:
            group = dataclasses.replace(group, off_policy=rollouts.off_policy)
        if self.objective.loss.prefix_coef:
            sizes = [0 if p.hinted else len(p.prefix) for p in rollouts.prompts]
            group = dataclasses.replace(group, prefix_lengths=np.array(sizes, np.int32))
        return group

    def _charge(
        self, rollouts: Rollouts, group: Group, ledger: Ledger, update_metrics: dict[str, float]
    ) -> None:
        """Book one update on these rollouts."""
        trained = self._has_gradient(rollouts) | self.objective.loss.every_group
        computed = update_metrics["groups/computed"]
        charge_update(ledger, self.sampler.engine.cost, rollouts, group, trained, computed)


def _some_problems(rollouts: Rollouts) -> str:
    """A few problem ids, for whoever has to find a batch that went wrong."""
    return ", ".join(sorted({prompt.problem.id for prompt in rollouts.prompts})[:8])
