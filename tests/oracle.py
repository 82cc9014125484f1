"""A float64 numpy reference of the model and of the sampling distribution, written from the
definitions, one token at a time.

It shares nothing with the package but the layout of the parameter tree and the names of the
configuration's fields.
"""

import numpy as np


def _norm(x, scale, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def rope_frequencies(config) -> np.ndarray:
    """Angle per position of each of the D/2 pairs; Llama 3.1's scaling in its piecewise form over
    wavelengths.
    """
    half = config.head_dim // 2
    frequencies = np.array([config.rope_theta ** (-2 * i / config.head_dim) for i in range(half)])
    if (s := config.rope_scaling) is None:
        return frequencies
    scaled = []
    for f in frequencies:
        wavelength = 2 * np.pi / f
        if wavelength < s.original_max_position / s.high_freq_factor:
            scaled.append(f)
        elif wavelength > s.original_max_position / s.low_freq_factor:
            scaled.append(f / s.factor)
        else:
            keep = (s.original_max_position / wavelength - s.low_freq_factor) / (
                s.high_freq_factor - s.low_freq_factor
            )
            scaled.append((1 - keep) * f / s.factor + keep * f)
    return np.array(scaled)


def _rotate(x, angles):
    """x [n, heads, D] as D/2 complex numbers (first half real, second half imaginary), turned by
    angles [n, D/2].
    """
    half = x.shape[-1] // 2
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None, :]
    return np.concatenate([z.real, z.imag], axis=-1)


def softmax(x) -> np.ndarray:
    """Softmax over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(q, k, v) -> np.ndarray:
    """One query: q [H, D] over k, v [n, K, D], head h reading key head h // (H / K).

    Returns [H, D].
    """
    heads, size = q.shape
    group = heads // k.shape[1]
    return np.stack(
        [softmax(k[:, h // group] @ q[h] / np.sqrt(size)) @ v[:, h // group] for h in range(heads)]
    )


def forward(params, config, tokens) -> np.ndarray:
    """Logits float64 [n, V] of one token list under a plain causal pass: nothing is shared, cached,
    padded or batched.
    """

    def weight(*path, layer=None):
        node = params
        for name in path:
            node = node[name]
        node = np.asarray(node, np.float64)
        return node if layer is None else node[layer]

    def project(y, i, name):
        out = np.einsum("nd,dhe->nhe", y, weight("layers", "attn", name, "kernel", layer=i))
        return (
            out + weight("layers", "attn", name, "bias", layer=i) if config.attention_bias else out
        )

    x = weight("embed", "embedding")[np.asarray(tokens)]
    angles = np.arange(len(tokens))[:, None] * rope_frequencies(config)
    for i in range(config.num_layers):
        y = _norm(x, weight("layers", "attn_norm", "scale", layer=i), config.norm_eps)
        q, k, v = (project(y, i, name) for name in "qkv")
        if config.qk_norm:
            q = _norm(q, weight("layers", "attn", "q_norm", "scale", layer=i), config.norm_eps)
            k = _norm(k, weight("layers", "attn", "k_norm", "scale", layer=i), config.norm_eps)
        q, k = _rotate(q, angles), _rotate(k, angles)
        mixed = np.stack([attention(q[t], k[: t + 1], v[: t + 1]) for t in range(len(tokens))])
        x = x + np.einsum("nhe,hed->nd", mixed, weight("layers", "attn", "o", "kernel", layer=i))
        y = _norm(x, weight("layers", "mlp_norm", "scale", layer=i), config.norm_eps)
        gate, up, down = (
            weight("layers", "mlp", name, "kernel", layer=i) for name in ("gate", "up", "down")
        )
        x = x + (y @ gate / (1 + np.exp(-(y @ gate))) * (y @ up)) @ down
    x = _norm(x, weight("final_norm", "scale"), config.norm_eps)
    return x @ (
        weight("embed", "embedding").T if config.tie_embeddings else weight("head", "kernel")
    )


def continuation_logits(params, config, context, continuation) -> np.ndarray:
    """Logits float64 [len(continuation), V] that predict each continuation token."""
    logits = forward(params, config, [*context, *continuation])
    return logits[len(context) - 1 : -1]


def nucleus_mass(logits, temperature: float, top_k: int) -> np.ndarray:
    """Probability mass above each rank [V] after temperature and top-k, in descending order: what
    top-p is compared with.
    """
    p = np.sort(distribution(logits, temperature, top_k, 1.0))[::-1]
    return np.concatenate([[0.0], np.cumsum(p)[:-1]])


def distribution(logits, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Probabilities float64 [V] of one row of logits after temperature, top-k, then top-p; equals
    of the last kept one stay.
    """
    logits = np.asarray(logits, np.float64)
    p = softmax(logits / temperature if temperature > 0 else logits)
    if 0 < top_k < len(p):
        p = np.where(logits >= np.sort(logits)[-top_k], p, 0)
        p = p / p.sum()
    if top_p < 1:
        mass, last = 0.0, None
        for i in np.argsort(-logits, kind="stable"):
            mass, last = mass + p[i], i
            if mass >= top_p:
                break
        p = np.where(logits >= logits[last], p, 0)
        p = p / p.sum()
    return p
