"""The forward pass: pure functions of (params, arrays), with one layer function for prefill, decode
and training.

`encode_context` turns contexts into per-layer keys and values; `continue_group` runs whole
continuations over them (the train step); `decode_token` runs one token of every row over them (the
sampler). A token's logits always come from the row that holds its predecessor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prefixrl_jax.group import Array, Context, length_mask
from prefixrl_jax.model.attention import causal_attention, shared_attention
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.weights import Params
from prefixrl_jax.runtime import mesh

# Keys and values of every layer, head-major. Stacked arrays [L, ...] when the layers are scanned,
# else a tuple of L pairs: an unrolled loop then updates each layer's buffer in place.
KV = Any


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square norm over the last axis, statistics in float32."""
    x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(x32.dtype)).astype(x.dtype)


def rope_angles(config: ModelConfig, positions: Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin, float32 [..., D/2], of rotary embeddings at integer positions [...] (with Llama
    3.1's scaling if set).
    """
    half = config.head_dim // 2
    freq = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if s := config.rope_scaling:
        turns = s.original_max_position * freq / (2 * math.pi)
        smooth = jnp.clip(
            (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0, 1
        )
        freq = freq * (smooth + (1 - smooth) / s.factor)
    angle = positions[..., None].astype(jnp.float32) * freq
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the two halves of each head.

    x: [..., heads, D]; cos, sin: [..., D/2] without the heads axis.
    """
    cos = jnp.concatenate([cos, cos], axis=-1)[..., None, :].astype(x.dtype)
    sin = jnp.concatenate([-sin, sin], axis=-1)[..., None, :].astype(x.dtype)
    return x * cos + jnp.roll(x, x.shape[-1] // 2, axis=-1) * sin


def _dense(x: jax.Array, w: Params, out_dims: int) -> jax.Array:
    """x [..., inputs] times a kernel whose last `out_dims` axes are outputs, in x's dtype."""
    kernel = w["kernel"].astype(x.dtype)
    inputs, outputs = kernel.shape[:-out_dims], kernel.shape[-out_dims:]
    rows = x.shape[: x.ndim - len(inputs)]
    # Flattened by hand: with several row axes XLA's CPU backend transposes the activations for the
    # weight gradient.
    out = x.reshape(math.prod(rows), -1) @ kernel.reshape(math.prod(inputs), -1)
    out = out.reshape(*rows, *outputs)
    return out + w["bias"].astype(x.dtype) if "bias" in w else out


def layer(
    x: jax.Array, w: Params, config: ModelConfig, cos, sin, attend: Callable
) -> tuple[jax.Array, Any]:
    """One block.

    x: [..., d]; `attend(q, k, v) -> (out, kept)` gets [..., heads, D] and decides what is attended
    to and kept.
    """
    y = rms_norm(x, w["attn_norm"]["scale"], config.norm_eps)
    q, k, v = (_dense(y, w["attn"][name], 2) for name in ("q", "k", "v"))
    if config.qk_norm:
        q = rms_norm(q, w["attn"]["q_norm"]["scale"], config.norm_eps)
        k = rms_norm(k, w["attn"]["k_norm"]["scale"], config.norm_eps)
    out, kept = attend(apply_rope(q, cos, sin), apply_rope(k, cos, sin), v)
    x = mesh.constrain_batch(x + _dense(out, w["attn"]["o"], 1))
    y = rms_norm(x, w["mlp_norm"]["scale"], config.norm_eps)
    gate, up = _dense(y, w["mlp"]["gate"], 1), _dense(y, w["mlp"]["up"], 1)
    return mesh.constrain_batch(x + _dense(jax.nn.silu(gate) * up, w["mlp"]["down"], 1)), kept


def _run_layers(
    body: Callable, x: jax.Array, weights: Params, per_layer: Any, config: ModelConfig
) -> tuple[jax.Array, KV]:
    """Applies `body(x, (layer weights, layer input)) -> (x, layer output)` to every layer in
    order.
    """
    if config.remat:
        body = jax.checkpoint(body)
    if not config.unroll_layers:
        return jax.lax.scan(body, x, (weights, per_layer))
    kept = []
    for i in range(config.num_layers):
        x, out = body(
            x,
            (
                jax.tree.map(lambda p, i=i: p[i], weights),
                None if per_layer is None else per_layer[i],
            ),
        )
        kept.append(out)
    return x, tuple(kept)


def embed(params: Params, config: ModelConfig, tokens: Array) -> jax.Array:
    """Token embeddings [..., d] in the compute dtype."""
    table = mesh.constrain_table(params["embed"]["embedding"])
    return mesh.constrain_batch(table[tokens].astype(config.compute_dtype))


def logits(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Output head: hidden [..., d] (after the last layer) to float32 logits [..., V]."""
    x = rms_norm(hidden, params["final_norm"]["scale"], config.norm_eps)
    head = params["embed"]["embedding"].T if config.tie_embeddings else params["head"]["kernel"]
    return jnp.tensordot(
        x,
        head.astype(x.dtype),
        axes=1,
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )


def encode_context(params: Params, config: ModelConfig, context: Context) -> KV:
    """Keys and values of every context position, each context once.

    Per layer: k [P, K, D, S], v [P, K, S, D].
    """
    return encode(params, config, context)[1]


def encode(params: Params, config: ModelConfig, context: Context) -> tuple[jax.Array, KV]:
    """Hidden states [P, S, d] of every context position, before the final norm, and its keys and
    values.
    """
    cos, sin = rope_angles(config, jnp.arange(context.tokens.shape[1]))

    def body(x, inputs):
        def attend(q, k, v):
            k, v = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)
            return causal_attention(q, k, v), (k, v)

        return layer(x, inputs[0], config, cos, sin, attend)

    return _run_layers(body, embed(params, config, context.tokens), params["layers"], None, config)


def continue_group(
    params: Params, config: ModelConfig, context: Context, context_kv: KV, inputs: jax.Array
) -> jax.Array:
    """Hidden states of whole continuations over their shared context.

    inputs: int32 [P, G, T] as `group.row_inputs` gives them. Returns [P, G, T, d], before the final
    norm.
    """
    t = inputs.shape[-1]
    context_mask = length_mask(context.lengths - 1, context.tokens.shape[1])
    # [P, T]: row column t continues where the context stopped
    positions = context.lengths[:, None] - 1 + jnp.arange(t)
    cos, sin = rope_angles(config, positions[:, None, :])
    causal = jnp.tril(jnp.ones((t, t), bool))

    def body(x, layer_inputs):
        w, (context_k, context_v) = layer_inputs

        def attend(q, k, v):
            k, v = (x.reshape(-1, *x.shape[2:]) for x in (k, v))  # [P·G, T, K, D]
            k, v = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)
            return shared_attention(q, context_k, context_v, context_mask, k, v, causal), None

        return layer(x, w, config, cos, sin, attend)

    return _run_layers(body, embed(params, config, inputs), params["layers"], context_kv, config)[0]


def layers_apart(params: Params, config: ModelConfig) -> Params:
    """The parameters with the layers' weights as one tree a layer where layers are unrolled, to be
    made before a loop over
    tokens: a slice of a stacked leaf inside the loop would be copied at every token.
    """
    if not config.unroll_layers:
        return params
    layers = [jax.tree.map(lambda p, i=i: p[i], params["layers"]) for i in range(config.num_layers)]
    return {**params, "layers": layers}


def decode_token(
    params, config, tokens, positions, context_kv, context_mask, own_kv, own_mask, column
) -> tuple[jax.Array, KV]:
    """One token of every row: writes its keys and values at `column` of the rows' cache and attends
    to both parts.

    Args:
        params: as `layers_apart` gives them.
        tokens, positions: int32 [P, G]; a row's token and its absolute position.
        context_kv: as from `encode_context`; context_mask: bool [P, S].
        own_kv: per layer k [P·G, K, D, U], v [P·G, K, U, D]; the column is scalar: where a key lies
            says nothing about its position.
        own_mask: bool [P, G, U], true on the columns of the row's present sample, `column`
            included.

    Returns hidden [P, G, d] and the updated cache (in place when the caller donates or loops over
    it).
    """
    cos, sin = rope_angles(config, positions)

    def attend_over(context_k, context_v, write):
        def attend(q, k, v):
            k, v = (x.reshape(-1, *x.shape[2:]) for x in (k, v))  # [P·G, K, D]
            own_k, own_v, kept = write(k[..., None], v[..., None, :])
            out = shared_attention(
                q[:, :, None],
                context_k,
                context_v,
                context_mask,
                own_k,
                own_v,
                own_mask[:, :, None],
            )
            return out[:, :, 0], kept

        return attend

    x = embed(params, config, tokens)
    if config.unroll_layers:
        new_kv = []
        for i, ((ck, cv), (k_cache, v_cache)) in enumerate(zip(context_kv, own_kv, strict=True)):

            def write(k, v, k_cache=k_cache, v_cache=v_cache):
                k = jax.lax.dynamic_update_slice_in_dim(k_cache, k, column, axis=3)
                v = jax.lax.dynamic_update_slice_in_dim(v_cache, v, column, axis=2)
                return k, v, (k, v)

            x, kept = layer(x, params["layers"][i], config, cos, sin, attend_over(ck, cv, write))
            new_kv.append(kept)
        return x, tuple(new_kv)

    # the cache is carried, not scanned over: a scanned cache would be copied every token
    def body(i, carry):
        x, (k_all, v_all) = carry

        def write(k, v):
            k_new = jax.lax.dynamic_update_slice(k_all, k[None], (i, 0, 0, 0, column))
            v_new = jax.lax.dynamic_update_slice(v_all, v[None], (i, 0, 0, column, 0))
            return k_new[i], v_new[i], (k_new, v_new)

        w = jax.tree.map(lambda p: p[i], params["layers"])
        return layer(x, w, config, cos, sin, attend_over(context_kv[0][i], context_kv[1][i], write))

    return jax.lax.fori_loop(0, config.num_layers, body, (x, own_kv))


def text_logits(params: Params, config: ModelConfig, tokens: jax.Array) -> jax.Array:
    """Logits float32 [B, T, V] of whole texts int32 [B, T]; those at column t predict token t +
    1.
    """
    # A context of one token is carried by the row itself, so the row is the whole text.
    context = Context(tokens[:, :1], jnp.ones(tokens.shape[0], jnp.int32))
    kv = encode_context(params, config, context)
    return logits(
        params, config, continue_group(params, config, context, kv, tokens[:, None])[:, 0]
    )
