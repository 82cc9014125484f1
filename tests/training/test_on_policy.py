"""A step of RL up to the update, over a sampler whose verdicts the test decides."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from prefixrl_jax.flops import Ledger, costs
from prefixrl_jax.prefixes.contexts import ContextStream
from prefixrl_jax.prefixes.schedules import Adaptive, Band, TraceCutter
from prefixrl_jax.rl.surrogate import LossSettings
from prefixrl_jax.runtime.mesh import make_mesh
from prefixrl_jax.sampling.job import Sample
from prefixrl_jax.tasks.prompt import Prompt
from prefixrl_jax.tasks.task import Problem, Verdict
from prefixrl_jax.training.on_policy import Noise, Objective, OnPolicy
from prefixrl_jax.training.rollout import Rollouts
from prefixrl_jax.training.samples import SampleWriter

GROUP = 2


class Task:
    """Prompts are [1, 2], a hint adds its prefix and an end, nothing leaks."""

    def render(self, problem):
        return [1, 2]

    def hint(self, problem, prefix):
        return [1, *prefix, 2]

    def leaks(self, problem, prefix):
        return False

    def text(self, ids):
        return " ".join(map(str, ids))

    def strategies(self, problem, response):
        return {}


@dataclasses.dataclass
class DecidedSampler:
    """Answers with one token a sample; `right(prompt, call)` is how many of a group are correct."""

    right: object
    calls: int = 0
    task: Task = dataclasses.field(default_factory=Task)
    sampling: object = dataclasses.field(default_factory=lambda: SimpleNamespace(max_new_tokens=3))

    @property
    def engine(self):
        return SimpleNamespace(mesh=make_mesh(), cost=costs(1000, 1, 1, 2), buckets=(16,))

    def sample(self, params, prompts, n, stream, ledger, *, traces=None):
        self.calls += 1
        samples, verdicts = [], []
        for prompt in prompts:
            correct = self.right(prompt, self.calls)
            samples.append([self._sample(i) for i in range(n)])
            verdicts.append([Verdict.CORRECT if i < correct else Verdict.WRONG for i in range(n)])
        return Rollouts(list(prompts), samples, verdicts, np.zeros((len(prompts), n), bool))

    def _sample(self, i):
        return Sample(i, np.array([10 * self.calls + i], np.int32), np.zeros(1, np.float32), "stop")


def make_source(right, tmp_path, schedule=None, hinted=False, **objective) -> OnPolicy:
    """A source over two prefixed and two plain contexts a step."""
    prefixed = [Prompt(Problem(f"p{i}", {}), (7, 8, 9), 0, 0.5, hinted) for i in range(2)]
    plain = [Prompt(Problem(f"q{i}", {})) for i in range(2)]
    settings = {"loss": LossSettings()} | objective
    return OnPolicy(
        sampler=DecidedSampler(right),
        contexts=ContextStream(schedule or Band(prefixed, 0), plain, 0.5, 4, 0),
        objective=Objective(GROUP, "group_mean", **settings),
        noise=Noise(0, "rollouts"),
        samples=SampleWriter(tmp_path, Task(), 1),
        decode_shardings=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    )


def step(source, memory=None):
    """The batch of the first step, its groups as numpy, and the ledger."""
    ledger = Ledger()
    with jax.set_mesh(make_mesh()):
        batch = source(jax.numpy.zeros(1), 0, ledger, memory or {})
    return batch, jax.tree.map(np.asarray, batch.group), ledger


def test_contexts_come_prefixed_first_and_rows_carry_what_was_sampled(tmp_path):
    batch, group, _ = step(make_source(lambda prompt, call: 1, tmp_path))
    assert group.context.lengths.tolist() == [5, 5, 2, 2]
    assert group.context.tokens[0, :5].tolist() == [1, 2, 7, 8, 9]
    assert group.tokens[:, :, 0].tolist() == [[10, 11]] * 4
    assert group.lengths.tolist() == [[1, 1]] * 4
    assert group.rewards.tolist() == [[1, 0]] * 4
    assert batch.metrics["reward/plain"] == batch.metrics["reward/prefixed"] == 0.5
    assert (tmp_path / "train-00001.jsonl").exists()


def test_uniform_groups_are_replaced_kind_by_kind_and_metrics_are_of_the_first_draw(tmp_path):
    def right(prompt, call):
        """At first one prefixed group is mixed and no plain one; later all are."""
        return 1 if call > 1 or prompt.problem.id == "p0" else 0

    source = make_source(right, tmp_path, refills=2)
    batch, group, _ = step(source)
    assert source.sampler.calls == 2  # after the first refill every group has a gradient
    assert (group.rewards.sum(axis=1) == 1).all()
    drawn = group.tokens[:, 0, 0] // 10
    assert sorted(drawn[:2].tolist()) == [1, 2] and drawn[2:].tolist() == [2, 2]
    assert group.context.lengths.tolist() == [5, 5, 2, 2]  # the share of prefixes is as before
    assert batch.metrics["groups/mixed"] == 0.25
    assert batch.tokens == 2 * 4 * GROUP  # what was drawn in vain is counted


def test_refilling_ends_when_its_draws_are_used_up(tmp_path):
    source = make_source(lambda prompt, call: 0, tmp_path, refills=2)
    _, group, _ = step(source)
    assert source.sampler.calls == 3 and not group.rewards.any()


def test_a_problem_is_unlocked_by_a_plain_success_alone_and_for_good(tmp_path):
    def right(prompt, call):
        return int(prompt.problem.id in ("p0", "q1"))

    batch, _, _ = step(make_source(right, tmp_path), {"unlocked": ["old"]})
    assert batch.memory["unlocked"] == ["old", "q1"]
    assert batch.metrics["problems/unlocked"] == 2


def test_what_the_schedule_learns_is_in_the_memory_of_the_step(tmp_path):
    traces = TraceCutter(Task(), [(Problem("p0", {}), list(range(10)))])
    source = make_source(lambda prompt, call: GROUP, tmp_path, Adaptive(traces, 0.8, 0, gain=0.4))
    batch, group, _ = step(source)
    assert group.context.lengths.max() == 2 + 8  # 0.8 of 10 tokens behind the prompt
    assert batch.memory["schedule"]["p0"] == pytest.approx(0.8 - 0.2)  # solved: shorter next time


def test_a_hint_may_be_trained_at_the_plain_problem(tmp_path):
    _, hinted, _ = step(make_source(lambda prompt, call: 1, tmp_path, hinted=True))
    assert hinted.context.tokens[0, :5].tolist() == [1, 7, 8, 9, 2]
    source = make_source(lambda prompt, call: 1, tmp_path, hinted=True, at_plain=True)
    _, at_plain, _ = step(source)
    assert at_plain.context.lengths.tolist() == [2] * 4


def test_prefix_lengths_are_there_for_a_likelihood_on_prefixes(tmp_path):
    loss = LossSettings(prefix_coef=0.1)
    _, group, _ = step(make_source(lambda prompt, call: 1, tmp_path, loss=loss))
    assert group.prefix_lengths.tolist() == [3, 3, 0, 0]
    _, hinted, _ = step(make_source(lambda prompt, call: 1, tmp_path, hinted=True, loss=loss))
    assert not hinted.prefix_lengths.any()  # a hint is no part of the answer


def test_an_update_is_charged_for_groups_with_a_gradient(tmp_path):
    def right(prompt, call):
        return 1 if prompt.prefix else 0

    batch, _, ledger = step(make_source(right, tmp_path))
    batch.charge(ledger, {"groups/computed": 4.0})
    cost = costs(1000, 1, 1, 2)
    rows = GROUP * 1
    paper = 2 * cost.tokens(GROUP * 5 + rows, train=True)
    paper += 2 * cost.tokens(GROUP * 2 + rows, train=True)
    assert ledger.state["paper"]["train"] == paper
    # The plain groups are all wrong: they have no gradient and need no computation.
    assert ledger.state["actual"]["train"] == 2 * cost.tokens(4 + rows, train=True)
    assert ledger.state["hardware"]["train"] == cost.trained_positions(4 * (16 + GROUP * 3))
