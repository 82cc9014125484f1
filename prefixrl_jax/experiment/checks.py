"""Checks of a configuration as a whole, before anything is computed.

What a single field accepts is declared in prefixrl_jax/config.py; here are the fields that must fit
each other, the model and the devices. Every error names the field, its value, and what would be
accepted.
"""

from __future__ import annotations

import operator

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from prefixrl_jax.config import check_fields
from prefixrl_jax.fields import INT32_MAX, shown
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.weights import count_params
from prefixrl_jax.runtime.mesh import batch_divisor

# Ten times the largest models that there are.
PARAMETERS_MAX = 10**13


def check(config: ConfigDict) -> None:
    """Raise ValueError for the first field that is wrong by itself or does not fit the others."""
    check_fields(config)
    _check_sizes(config)
    _check_groups(config)
    _check_measurements(config)
    _check_method(config)
    _check_corpus(config)


def check_model(config: ConfigDict, model: ModelConfig) -> None:
    """Raise ValueError for a model that no machine holds, or of a precision that is switched off.

    config: the configuration that the model was made from.
    """
    parameters = count_params(model)["total"]
    if parameters > PARAMETERS_MAX:
        sizes = ("hidden_size", "num_layers", "num_heads", "head_dim", "intermediate_size")
        named = ", ".join(f"model.{size}={getattr(model, size)}" for size in sizes)
        raise ValueError(
            f"{named}: these make {parameters:.3g} parameters; at most {PARAMETERS_MAX:.0e} are"
            " expected"
        )
    for field in ("model.param_dtype", "model.dtype"):
        value = operator.attrgetter(field)(config)
        if value == "float64" and not jax.config.read("jax_enable_x64"):
            raise ValueError(
                f"{field}={value!r}: JAX would compute in float32; set JAX_ENABLE_X64=1, or use"
                " 'float32' or 'bfloat16'"
            )


def check_batches(config: ConfigDict, mesh: Mesh) -> None:
    """Raise ValueError for a batch that the devices cannot share.

    Groups are not divided, and every device gets as many of them.
    """
    devices = batch_divisor(mesh)
    for field in ("train.batch", "base.batch", "sft.batch", "sampling.rows"):
        value = operator.attrgetter(field)(config)
        if value % devices:
            raise ValueError(
                f"{field}={value}: must be a positive multiple of the mesh's data x fsdp ="
                f" {devices}"
            )
    batch, micro_batches = config.train.batch, config.train.micro_batches
    if batch % (micro_batches * devices):
        raise ValueError(
            f"train.micro_batches={micro_batches}: train.batch={batch} must be a multiple of"
            f" micro_batches x {devices} devices, since groups are not divided"
        )


def _check_sizes(config: ConfigDict) -> None:
    """The tokens of a batch, which int32 counts, and the number of generated problems."""
    sampling, train = config.sampling, config.train
    for rows, samples in (("sampling.rows", "sampling.slots"), ("train.batch", "train.group")):
        sizes = [operator.attrgetter(field)(config) for field in (rows, samples)]
        tokens = sizes[0] * sizes[1] * sampling.max_new_tokens
        if tokens > INT32_MAX:
            raise ValueError(
                f"{rows}={sizes[0]}, {samples}={sizes[1]},"
                f" sampling.max_new_tokens={sampling.max_new_tokens}: a batch of {tokens:,} tokens;"
                f" at most {INT32_MAX:,} are expected"
            )
    if train.steps * train.updates_per_batch > INT32_MAX:
        raise ValueError(
            f"train.steps={train.steps}, train.updates_per_batch={train.updates_per_batch}: more"
            f" than {INT32_MAX:,} updates"
        )
    if not config.data.path and not config.data.train_candidates:
        raise ValueError(
            "data.train_candidates=0 and no data.path: there is no problem to train on; generate"
            " at least 1, or name a set of problems"
        )


def _check_groups(config: ConfigDict) -> None:
    train, sampling = config.train, config.sampling
    if train.group < 2 and train.advantage != "none":
        raise ValueError(
            f"train.group={train.group}: a group of one has no baseline; at least 2 are needed"
        )
    if sampling.top_p != 1.0 or sampling.top_k != 0:
        raise ValueError(
            f"sampling.top_p={sampling.top_p}, sampling.top_k={sampling.top_k}: training samples"
            " from the full distribution (top_p=1, top_k=0), else its gradient is that of another"
            " policy"
        )
    if train.updates_per_batch > 1 and train.loss == "reinforce":
        raise ValueError(
            f"train.updates_per_batch={train.updates_per_batch} with train.loss='reinforce': the"
            " second update is off-policy; use ppo_clip, gspo or cispo"
        )


def _check_measurements(config: ConfigDict) -> None:
    """What is reported at the end must be measured."""
    if min(config.eval.k) > config.eval.samples:
        raise ValueError(
            f"eval.k={shown(config.eval.k)}: pass@k needs k samples, and there are"
            f" eval.samples={config.eval.samples}; at least one k up to that is expected"
        )


def _check_method(config: ConfigDict) -> None:
    """Fields of the method that must fit together."""
    prefix, train = config.prefix, config.train
    if train.at_plain and (prefix.place != "user" or train.loss == "reinforce"):
        raise ValueError(
            f"train.at_plain needs prefix.place='user' (here {prefix.place!r}), whose responses"
            " start from the beginning, and a loss with a ratio (here"
            f" {train.loss!r}): another context gave them"
        )
    if train.prefix_coef and prefix.place != "assistant":
        raise ValueError(
            f"train.prefix_coef={train.prefix_coef} with prefix.place='user': only a prefix inside"
            " the answer has a likelihood to raise"
        )


def _check_corpus(config: ConfigDict) -> None:
    """What is trained on must be in the corpus; an imported one has traces and nothing else."""
    collect, prefix, train = config.collect, config.prefix, config.train
    if needs_corpus(config) and not collect.cap and not collect.traces_path:
        raise ValueError(
            "collect.cap=0 and no collect.traces_path: there is no corpus, which"
            f" prefix.share={prefix.share}, sft.enabled={config.sft.enabled} or"
            f" train.off_policy={train.off_policy!r} needs"
        )
    if not collect.traces_path:
        return
    if prefix.content == "wrong":
        raise ValueError(
            f"prefix.content='wrong' with collect.traces_path={collect.traces_path!r}: a file of"
            " traces has no wrong responses; sample the corpus here, or use own or unrelated"
        )
    if train.steps and train.off_policy == "importance":
        raise ValueError(
            f"train.off_policy='importance' with collect.traces_path={collect.traces_path!r}:"
            " imported traces have no log-probs; sample the corpus here, or use shaped"
        )


def needs_corpus(config: ConfigDict) -> bool:
    """Return whether anything is trained on traces."""
    trains = config.train.steps and (config.prefix.share > 0 or config.train.off_policy != "none")
    return bool(trains or config.sft.enabled)
