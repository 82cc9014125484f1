"""The configurations that come along resolve to the objects of a run."""

import importlib

import pytest
from families import words
from runs import ROOT
from tiny_models import TINY, random_params

from prefixrl_jax import config as base
from prefixrl_jax.config import flatten
from prefixrl_jax.configs import countdown, demo, smoke
from prefixrl_jax.experiment.build import resolve
from prefixrl_jax.model.hf import export_hf
from prefixrl_jax.model.tokenizer import word_tokenizer
from prefixrl_jax.tasks.registry import PRETRAINED


@pytest.mark.parametrize("module", [base, demo, smoke, countdown])
def test_the_configurations_that_come_along_resolve(module):
    config = module.get_config()
    resolved = resolve(config)
    assert resolved.engine.rows == config.sampling.rows
    assert resolved.engine.slots == config.sampling.slots
    assert resolved.engine.buckets == tuple(config.sampling.context_buckets)
    assert resolved.model.vocab_size == len(resolved.task.tokenizer)
    assert resolved.sampling.max_new_tokens == config.sampling.max_new_tokens
    assert resolved.loss.constant_length == config.sampling.max_new_tokens
    assert resolved.eval_sampling.temperature == config.eval.temperature
    for section in ("base", "sft", "train"):
        optimizer = resolved.optimizer(section, 7)
        assert optimizer.learning_rate == config[section].learning_rate
        assert optimizer.total_steps == 7


def test_every_configuration_has_the_known_fields_and_resolves(tmp_path):
    """A tiny model stands in for the pretrained ones."""
    tokenizer = word_tokenizer(words(33))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    export_hf(random_params(TINY), TINY, tokenizer, tmp_path)
    files = sorted(set((ROOT / "configs").glob("*.py")) - {ROOT / "configs" / "__init__.py"})
    assert len(files) == 12
    for file in files:
        config = importlib.import_module(f"prefixrl_jax.configs.{file.stem}").get_config()
        assert flatten(config).keys() == flatten(base.get_config()).keys()
        pretrained = config.task.name in PRETRAINED
        config.model.path = str(tmp_path) if pretrained else ""
        hidden_size = TINY.hidden_size if pretrained else config.model.hidden_size
        assert resolve(config).model.hidden_size == hidden_size
        # The longest prefix must leave room for a prompt.
        buckets = config.sampling.context_buckets
        longest_prefix = config.prefix.band[1] * config.sampling.max_new_tokens
        room = max(buckets) - longest_prefix
        assert not config.collect.cap or room >= min(buckets) * 0.9, file
