"""Rollouts come back in their order, whenever they are graded."""

from first_token import CONFIG, PROBLEMS, SAMPLING, Aside, FirstToken, make_engine
from tiny_models import random_params

from prefixrl_jax.flops import Ledger
from prefixrl_jax.sampling.noise import stream_key
from prefixrl_jax.tasks.prompt import Prompt
from prefixrl_jax.training.rollout import RolloutSampler


def test_rollouts_are_graded_in_their_order_whenever_the_verdicts_come():
    params = random_params(CONFIG)
    prompts = [Prompt(p) for p in PROBLEMS[:3]]

    def sample_rollouts(task):
        sampler = RolloutSampler(make_engine(), task, SAMPLING, ("eval", "eval"))
        return sampler.sample(params, prompts, 4, stream_key(0, "r"), Ledger())

    at_once = sample_rollouts(FirstToken(9))
    aside = sample_rollouts(Aside(9))
    assert at_once.verdicts == aside.verdicts
    assert 0 < at_once.rewards.mean() < 1
