"""The forward pass: pure functions of (params, arrays), one layer for prefill, decode and training.

The context is encoded once for a group: `encode_context` turns P contexts into keys and values of
every layer, and the G rows of a context attend to that one copy, in sampling and in training alike.
The last context token is carried by the rows: it is the first input of each of them and hidden from
them in the context's keys, so a token's logits always come from the row that holds its predecessor.

`continue_group` runs whole continuations over encoded contexts (the train step); `decode_token`
runs one token of every row over them (the sampler). Shapes: P contexts of S positions, G rows to a
context, T tokens to a row, d the hidden size, V the vocabulary; those of keys and values are in
`cache`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from prefixrl_jax.group import Array, Context, length_mask
from prefixrl_jax.model.attention import causal_attention, shared_attention
from prefixrl_jax.model.cache import KVCache, MaskedKV, head_major
from prefixrl_jax.model.config import ModelConfig
from prefixrl_jax.model.weights import Params
from prefixrl_jax.runtime import mesh

Rope = tuple[jax.Array, jax.Array]  # cos and sin, float32 [..., D/2]


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Apply root-mean-square normalisation over the last axis, with statistics in float32."""
    x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(x32.dtype)).astype(x.dtype)


def rope_angles(config: ModelConfig, positions: Array) -> Rope:
    """Return the cosines and sines of the rotary embeddings at integer positions.

    Both are float32 [..., D/2], for positions [...]. With `config.rope_scaling` the low frequencies
    are stretched as in Llama 3.1.
    """
    half = config.head_dim // 2
    freq = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling := config.rope_scaling:
        turns = scaling.original_max_position * freq / (2 * math.pi)
        smooth = (turns - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        smooth = jnp.clip(smooth, 0, 1)
        freq = freq * (smooth + (1 - smooth) / scaling.factor)
    angle = positions[..., None].astype(jnp.float32) * freq
    return jnp.cos(angle), jnp.sin(angle)


def apply_rope(x: jax.Array, rope: Rope) -> jax.Array:
    """Rotate the two halves of each head by the rotary angles.

    x is [..., heads, D]; the angles have no axis of heads.
    """
    cos, sin = rope
    cos = jnp.concatenate([cos, cos], axis=-1)[..., None, :].astype(x.dtype)
    sin = jnp.concatenate([-sin, sin], axis=-1)[..., None, :].astype(x.dtype)
    return x * cos + jnp.roll(x, x.shape[-1] // 2, axis=-1) * sin


def _dense(x: jax.Array, w: Params, out_dims: int) -> jax.Array:
    """Multiply x by a kernel, in the dtype of x.

    x is [..., inputs]; the last `out_dims` axes of the kernel are outputs.
    """
    kernel = w["kernel"].astype(x.dtype)
    inputs = kernel.shape[:-out_dims]
    outputs = kernel.shape[-out_dims:]
    leading = x.shape[: x.ndim - len(inputs)]
    # Flattened by hand: with several leading axes XLA's CPU backend transposes the activations for
    # the weight gradient.
    out = x.reshape(math.prod(leading), -1) @ kernel.reshape(math.prod(inputs), -1)
    out = out.reshape(*leading, *outputs)
    return out + w["bias"].astype(x.dtype) if "bias" in w else out


def layer(
    x: jax.Array, w: Params, config: ModelConfig, rope: Rope, attend: Callable
) -> tuple[jax.Array, Any]:
    """Apply one transformer block: attention and MLP, each behind a norm and added to x.

    Args:
        x: [..., d].
        w: the weights of this layer.
        rope: angles of the positions of x.
        attend: (q [..., H, D], k [..., K, D], v [..., K, D]) -> (attended values [..., H, D],
            anything to return with x); q and k are rotated already. Prefill, decode and training
            differ in this function alone.

    Returns:
        x above the block, and the second value of `attend`.
    """
    y = rms_norm(x, w["attn_norm"]["scale"], config.norm_eps)
    q, k, v = (_dense(y, w["attn"][name], 2) for name in ("q", "k", "v"))
    if config.qk_norm:
        q = rms_norm(q, w["attn"]["q_norm"]["scale"], config.norm_eps)
        k = rms_norm(k, w["attn"]["k_norm"]["scale"], config.norm_eps)
    out, kept = attend(apply_rope(q, rope), apply_rope(k, rope), v)
    x = mesh.constrain_batch(x + _dense(out, w["attn"]["o"], 1))
    y = rms_norm(x, w["mlp_norm"]["scale"], config.norm_eps)
    gate, up = _dense(y, w["mlp"]["gate"], 1), _dense(y, w["mlp"]["up"], 1)
    return mesh.constrain_batch(x + _dense(jax.nn.silu(gate) * up, w["mlp"]["down"], 1)), kept


def _layer_weights(layers: Params | list[Params], i: int | jax.Array) -> Params:
    """Return the weights of layer i from stacked leaves or from a list of one tree per layer."""
    return layers[i] if isinstance(layers, list) else jax.tree.map(lambda leaf: leaf[i], layers)


def _run_layers(
    body: Callable, x: jax.Array, layers: Params, config: ModelConfig, kv: KVCache | None = None
) -> tuple[jax.Array, Any]:
    """Run whole sequences through all layers.

    Args:
        body: (x, (weights of a layer, its LayerKV or None)) -> (x, output of the layer).
        x: [..., d] below the first layer.
        layers: stacked weights.
        kv: what each layer gets besides its weights.

    Returns:
        x above the last layer, and the outputs of the layers: stacked where the layers are scanned,
        else a tuple.
    """
    if config.remat:
        body = jax.checkpoint(body)
    if not config.unroll_layers:
        return jax.lax.scan(body, x, (layers, None if kv is None else kv.layers))
    outputs = []
    for i in range(config.num_layers):
        x, output = body(x, (_layer_weights(layers, i), None if kv is None else kv.layer(i)))
        outputs.append(output)
    return x, tuple(outputs)


def embed(params: Params, config: ModelConfig, tokens: Array) -> jax.Array:
    """Look up the embeddings of tokens, in the compute dtype.

    Tokens are int32 [...], embeddings [..., d].
    """
    table = mesh.constrain_table(params["embed"]["embedding"])
    return mesh.constrain_batch(table[tokens].astype(config.compute_dtype))


def logits(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Apply the final norm and the output head.

    `hidden` is [..., d] above the last layer; the logits are float32 [..., V].
    """
    x = rms_norm(hidden, params["final_norm"]["scale"], config.norm_eps)
    head = params["embed"]["embedding"].T if config.tie_embeddings else params["head"]["kernel"]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.tensordot(x, head.astype(x.dtype), axes=1, preferred_element_type=wide)


def encode_context(params: Params, config: ModelConfig, context: Context) -> KVCache:
    """Return the keys and values of every context, computed once for its whole group.

    Keys are [P, K, D, S] and values [P, K, S, D], of all layers and all positions. Those of the
    last token are masked where rows attend to them, since the rows carry that token themselves.
    """
    return encode(params, config, context)[1]


def encode(params: Params, config: ModelConfig, context: Context) -> tuple[jax.Array, KVCache]:
    """Return the hidden states of the context positions and the keys and values of all layers.

    The states are [P, S, d], before the final norm. Only a loss on the prefixes' own likelihood
    needs them.
    """
    rope = rope_angles(config, jnp.arange(context.tokens.shape[1]))

    def body(x, inputs):
        def attend(q, k, v):
            kv = head_major(k, v)
            return causal_attention(q, kv), kv

        return layer(x, inputs[0], config, rope, attend)

    x = embed(params, config, context.tokens)
    hidden, layers = _run_layers(body, x, params["layers"], config)
    return hidden, KVCache(layers)


def encoded_mask(context: Context) -> jax.Array:
    """Return the mask of the context positions that rows attend to: all but the last token.

    The mask is bool [P, S], and false on padding too. The last token is the first input of the
    rows, which hold its keys and values themselves.
    """
    return length_mask(context.lengths - 1, context.tokens.shape[1])


def continue_group(
    params: Params, config: ModelConfig, context: Context, context_kv: KVCache, inputs: jax.Array
) -> jax.Array:
    """Return the hidden states of whole continuations over shared contexts.

    The states are [P, G, T, d], before the final norm. Gradients reach the parameters through
    `context_kv` too, from all rows of the group.

    Args:
        context: P contexts, and `context_kv` from `encode_context`.
        inputs: int32 [P, G, T] as `group.row_inputs` makes them: the last context token, then the
            continuation but its last token. The state at column t predicts continuation token t.
    """
    t = inputs.shape[-1]
    context_mask = encoded_mask(context)
    # [P, T]: column t of a row continues where the encoded context stops
    positions = context.lengths[:, None] - 1 + jnp.arange(t)
    rope = rope_angles(config, positions[:, None, :])
    causal = jnp.tril(jnp.ones((t, t), bool))

    def body(x, inputs):
        weights, shared = inputs

        def attend(q, k, v):
            k, v = (a.reshape(-1, *a.shape[2:]) for a in (k, v))  # [P·G, T, K, D]
            return shared_attention(q, shared, context_mask, head_major(k, v), causal), None

        return layer(x, weights, config, rope, attend)

    return _run_layers(body, embed(params, config, inputs), params["layers"], config, context_kv)[0]


def layers_apart(params: Params, config: ModelConfig) -> Params:
    """Return the parameters with one tree per layer if the layers are unrolled, else unchanged.

    Call this before a loop over tokens: inside it, a slice of a stacked
    leaf would be copied at every token.
    """
    if not config.unroll_layers:
        return params
    layers = [_layer_weights(params["layers"], i) for i in range(config.num_layers)]
    return {**params, "layers": layers}


def decode_token(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    context: MaskedKV,
    rows: MaskedKV,
    column: jax.Array,
) -> tuple[jax.Array, KVCache]:
    """Run one token of every row through the model and add its keys and values to the cache.

    Args:
        params: as `layers_apart` gives them.
        tokens, positions: int32 [P, G], the token of each row and its place in the text.
        context: from `encode_context`, with mask [P, S] from `encoded_mask`.
        rows: cache of the rows, and mask [P, G, U], true at the columns of the sample that the row
            holds now, `column` included.
        column: int32 [], where every row writes. A key carries its rotary position with it, so
            where it lies says nothing about its position.

    Returns:
        Hidden states [P, G, d] before the final norm, and the cache of the rows with the column
        written (in place when the caller donates it or carries it round a loop).
    """
    rope = rope_angles(config, positions)

    def body(i, carry):
        x, row_kv = carry

        def attend(q, k, v):
            k, v = (a.reshape(-1, *a.shape[2:]) for a in (k, v))  # [P·G, K, D]
            written = row_kv.write(i, column, k, v)
            out = shared_attention(
                q[:, :, None],
                context.kv.layer(i),
                context.mask,
                written.layer(i),
                rows.mask[:, :, None],
            )
            return out[:, :, 0], written

        return layer(x, _layer_weights(params["layers"], i), config, rope, attend)

    carry = embed(params, config, tokens), rows.kv
    if config.unroll_layers:
        for i in range(config.num_layers):
            carry = body(i, carry)
        return carry
    # The cache is carried round the loop, not scanned over: a scanned cache would be copied at
    # every token.
    return jax.lax.fori_loop(0, config.num_layers, body, carry)


def text_logits(params: Params, config: ModelConfig, tokens: jax.Array) -> jax.Array:
    """Return the logits of whole texts; column t predicts token t + 1.

    Texts are int32 [B, T], logits float32 [B, T, V].
    """
    # A context of one token is carried by the row itself, so the row is the whole text.
    context = Context(tokens[:, :1], jnp.ones(tokens.shape[0], jnp.int32))
    context_kv = encode_context(params, config, context)
    hidden = continue_group(params, config, context, context_kv, tokens[:, None])
    return logits(params, config, hidden[:, 0])
