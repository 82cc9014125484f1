"""Weights are cut over the mesh as the tables of sharding say."""

from abstract_mesh import abstract_mesh
from jax.sharding import PartitionSpec as Spec
from tiny_models import TINY

from prefixrl_jax.model.sharding import param_shardings


def test_weights_are_cut_as_the_tables_say():
    mesh = abstract_mesh(1, 2, 2)
    train, decode = (param_shardings(TINY, mesh, rules) for rules in ("train", "decode"))
    # 37 tokens do not divide by 2: the vocabulary stays whole
    assert train["embed"]["embedding"].spec == Spec(None, "fsdp") and decode["embed"][
        "embedding"
    ].spec == Spec(None, None)
    assert train["layers"]["attn"]["q"]["kernel"].spec == Spec(None, "fsdp", "tensor", None)
    assert decode["layers"]["attn"]["k"]["kernel"].spec == Spec(None, None, "tensor", None)
    assert train["layers"]["attn"]["o"]["kernel"].spec == Spec(None, "tensor", None, "fsdp")
    assert train["layers"]["mlp"]["down"]["kernel"].spec == Spec(None, "tensor", "fsdp")
    assert train["final_norm"]["scale"].spec == Spec(None)


def test_key_heads_that_do_not_divide_stay_whole():
    attn = param_shardings(TINY, abstract_mesh(1, 1, 4), "train")["layers"]["attn"]
    assert attn["q"]["kernel"].spec == Spec(None, "fsdp", "tensor", None)
    assert attn["k"]["kernel"].spec == Spec(None, "fsdp", None, None)
