"""A bad configuration is refused before any compute, its field named."""

import pytest
from smoke_config import changed

from prefixrl_jax.experiment.build import resolve

ALL_TASKS = "arithmetic, countdown, math, sorting, water_jugs"
NO_CORPUS = (
    r"collect\.cap=0 and no collect\.traces_path: there is no corpus, which prefix\.share=0\.75"
)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task__name": "chess"}, rf"task\.name='chess': .* {ALL_TASKS}"),
        ({"train__loss": "dpo"}, r"train\.loss='dpo': one of reinforce, ppo_clip"),
        (
            {"train__advantage": "gae"},
            r"train\.advantage='gae': one of group_mean, leave_one_out, std_normalised",
        ),
        (
            {"prefix__schedule": "linear"},
            r"prefix\.schedule='linear': one of band, reverse, cosine, adaptive, shortest_solvable",
        ),
        ({"prefix__content": "none"}, r"prefix\.content='none': one of own, unrelated, wrong"),
        ({"prefix__place": "system"}, r"prefix\.place='system': one of assistant, user"),
        ({"train__filter": "all"}, r"train\.filter='all': one of none, drop, refill"),
        ({"train__behaviour": "known"}, r"train\.behaviour='known': one of sampled, acceptance"),
        (
            {"train__at_plain": True},
            r"train\.at_plain needs prefix\.place='user' \(here 'assistant'\)",
        ),
        (
            {"train__prefix_coef": 0.1, "prefix__place": "user"},
            r"train\.prefix_coef=0\.1 with prefix\.place='user'",
        ),
        ({"collect__cap": 0}, NO_CORPUS),
        ({"sft__epochs": 0}, r"sft\.epochs=0: a whole number from 1 to 100,000 is expected"),
        ({"sft__schedule": "step"}, r"sft\.schedule='step': one of"),
        (
            {"train__aggregation": "sum"},
            r"train\.aggregation='sum': one of token_mean, sequence_mean, constant",
        ),
        ({"train__schedule": "step"}, r"train\.schedule='step': one of constant, linear, cosine"),
        ({"base__schedule": "step"}, r"base\.schedule='step': one of constant, linear, cosine"),
        ({"mesh__data": 3}, r"mesh.*=\(3, 1, 1\) does not fill \d+ device"),
        ({"mesh__data": -1, "mesh__fsdp": -1}, r"mesh.*at most one may be -1"),
        ({"train__batch": 0}, r"train\.batch=0"),
        ({"base__batch": 0}, r"base\.batch=0"),
        ({"sampling__rows": -8}, r"sampling\.rows=-8"),
        ({"train__micro_batches": 3}, r"train\.micro_batches=3: train\.batch=8 must be a multiple"),
        ({"train__micro_batches": 0}, r"train\.micro_batches=0"),
        ({"train__group": 1}, r"train\.group=1: a group of one has no baseline; at least 2"),
        ({"train__updates_per_batch": 2}, r"train\.updates_per_batch=2 .*use ppo_clip"),
        ({"train__learning_rate": 0.0}, r"train\.learning_rate=0\.0"),
        ({"train__learning_rate": float("nan")}, r"train\.learning_rate=nan"),
        ({"train__clip_low": 1.5}, r"train\.clip_low=1\.5"),
        ({"train__steps": -1}, r"train\.steps=-1"),
        ({"train__max_logp_diff": -1.0}, r"train\.max_logp_diff=-1\.0"),
        ({"train__min_entropy": -0.1}, r"train\.min_entropy=-0\.1"),
        ({"sampling__top_p": 0.9}, r"sampling\.top_p=0\.9.*top_p=1"),
        ({"sampling__top_k": 5}, r"sampling\.top_k=5"),
        ({"sampling__temperature": 0.0}, r"sampling\.temperature=0\.0"),
        ({"sampling__max_new_tokens": 0}, r"max_new_tokens=0"),
        ({"sampling__slots": 0}, r"sampling\.slots=0"),
        ({"sampling__chunk": 0}, r"sampling\.chunk=0"),
        ({"prefix__band": (0.0, 0.5)}, r"prefix\.band=\(0\.0, 0\.5\)"),
        ({"prefix__band": (0.5, 1.0)}, r"prefix\.band=\(0\.5, 1\.0\)"),
        ({"prefix__band": (0.8, 0.4)}, r"prefix\.band=\(0\.8, 0\.4\).*0 < low <= high < 1"),
        ({"prefix__share": 1.5}, r"prefix\.share=1\.5"),
        ({"prefix__cuts": 0}, r"prefix\.cuts=0"),
        ({"prefix__band": (0.3,)}, r"prefix\.band=\(0\.3,\): two numbers are expected"),
        ({"select__band": (0.1, 0.2, 0.3)}, r"select\.band=.*two numbers are expected"),
        (
            {"sampling__context_buckets": ()},
            r"sampling\.context_buckets=\(\): 1 to 100 values",
        ),
        (
            {"eval__k": (0, -1)},
            r"eval\.k=\(0, -1\): .* each a whole number from 1 to",
        ),
        (
            {"eval__k": ("a",)},
            r"eval\.k=\('a',\): .* each a whole number from 1 to",
        ),
        ({"checkpoint__keep": 0}, r"checkpoint\.keep=0: a whole number from 1"),
        ({"eval__every_samples": 0}, r"eval\.every_samples=0"),
        ({"base__learning_rate": -1.0}, r"base\.learning_rate=-1\.0: a number above 0"),
        ({"select__band": (0.5, 0.2)}, r"select\.band=\(0\.5, 0\.2\)"),
        ({"select__samples": -1}, r"select\.samples=-1"),
        ({"collect__cap": -1}, r"collect\.cap=-1"),
        ({"eval__fractions": (0.5, 1.0)}, r"eval\.fractions=\(0\.5, 1\.0\)"),
        ({"eval__temperature": -0.5}, r"temperature=-0\.5"),
        ({"model__num_kv_heads": 3}, r"model\.num_heads=2.*num_kv_heads=3"),
    ],
)
def test_a_bad_field_is_named_with_its_value_and_what_is_accepted(fields, message):
    with pytest.raises(ValueError, match=message):
        resolve(changed(**fields))


def test_a_group_of_one_is_enough_without_a_baseline():
    assert resolve(changed(train__group=1, train__advantage="none")).config.train.group == 1
