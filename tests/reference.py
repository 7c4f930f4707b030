"""The whole forward pass in float64 with numpy, readable as the formula sheet of the models.

An independent second opinion: it has its own reader of files and configs and imports nothing of
the package that it judges. ``x`` is ``[n, hidden]``; matrices are stored ``[out, in]``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reference_weights import Weights

Array = np.ndarray
Config = Mapping[str, Any]

# ------------------------------------------------------------------------------------- the formulas


def sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * x))


def silu(x: Array) -> Array:
    return x * sigmoid(x)


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / sqrt(mean(x²) + eps) · weight."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def swiglu(x: Array, gate: Array, up: Array, down: Array) -> Array:
    """down(silu(gate x) · up x)."""
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def route(scores: Array, top_k: int, *, renormalise: bool = True) -> tuple[Array, Array]:
    """Softmax over all experts, then the ``top_k`` largest; ids ``[n, k]`` and their shares."""
    p = softmax(scores)
    ids = np.argsort(-p, axis=-1, kind="stable")[:, :top_k]
    shares = np.take_along_axis(p, ids, -1)
    return ids, shares / shares.sum(-1, keepdims=True) if renormalise else shares


def rope_inv_freq(theta: float, dim: int) -> Array:
    """theta^(-2j / dim), ``[dim / 2]``."""
    return theta ** (-2 * np.arange(dim // 2) / dim)


def yarn_inv_freq(theta: float, dim: int, yarn: Config) -> tuple[Array, float]:
    """Frequencies of YaRN, ``[dim / 2]``, and the factor of its cosines and sines."""
    s, length = float(yarn["factor"]), float(yarn["original_max_position_embeddings"])

    def corrected(turns: float) -> float:
        return dim * math.log(length / (2 * math.pi * turns)) / (2 * math.log(theta))

    low = corrected(yarn.get("beta_fast") or 32.0)
    high = corrected(yarn.get("beta_slow") or 1.0)
    if yarn.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    plain = rope_inv_freq(theta, dim)

    def mscale(c: float) -> float:
        return 1.0 if s <= 1 else 0.1 * c * math.log(s) + 1

    factor = yarn.get("attention_factor")
    if factor is None and yarn.get("mscale") and yarn.get("mscale_all_dim"):
        factor = mscale(yarn["mscale"]) / mscale(yarn["mscale_all_dim"])
    return plain / s * ramp + plain * (1 - ramp), mscale(1.0) if factor is None else float(factor)


def rotate(x: Array, positions: Array, inv_freq: Array, factor: float = 1.0) -> Array:
    """Half-split rotation of the first ``2 · len(inv_freq)`` entries of heads ``[n, heads, d]``."""
    half = len(inv_freq)
    angle = np.outer(positions, inv_freq)[:, None, :]
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    a, b = x[..., :half], x[..., half : 2 * half]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]], -1)


def attention(q: Array, k: Array, v: Array, scale: float) -> Array:
    """Causal attention of queries ``[n, heads, d]``, the last of the keys ``[s, kv_heads, d]``."""
    n, heads, _ = q.shape
    s, kv_heads, _ = k.shape
    k, v = (t.repeat(heads // kv_heads, 1).transpose(1, 0, 2) for t in (k, v))
    scores = q.transpose(1, 0, 2) @ k.transpose(0, 2, 1) * scale
    hidden = np.arange(s)[None, :] > np.arange(s - n, s)[:, None]
    return (softmax(np.where(hidden, -np.inf, scores)) @ v).transpose(1, 0, 2)


def delta_step(
    state: Array, q: Array, k: Array, v: Array, g: Array, beta: Array
) -> tuple[Array, Array]:
    """One token of the gated delta rule, by value head.

    Args:
        state: ``[heads, dk, dv]``.
        q: Normalised and scaled, ``[heads, dk]``; as ``k``, one for each value head.
        k: Normalised, ``[heads, dk]``.
        v: ``[heads, dv]``.
        g: Logarithm of the decay, ``[heads]``.
        beta: ``[heads]``.

    Returns:
        The output ``[heads, dv]`` and the new state.
    """
    state = state * np.exp(g)[:, None, None]
    error = beta[:, None] * (v - np.einsum("hij,hi->hj", state, k))
    state = state + k[:, :, None] * error[:, None, :]
    return np.einsum("hij,hi->hj", state, q), state


def delta_chunk(
    state: Array, q: Array, k: Array, v: Array, g: Array, beta: Array
) -> tuple[Array, Array]:
    """The same for ``n`` tokens at once: arguments ``[n, heads, …]``, output ``[n, heads, dv]``."""
    q, k, v = (t.transpose(1, 0, 2) for t in (q, k, v))
    g, beta = g.T.cumsum(-1), beta.T[..., None]
    n = g.shape[-1]
    below = np.tril(np.ones((n, n), bool))
    decay = np.exp(np.where(below, g[:, :, None] - g[:, None, :], -np.inf))
    kept = np.exp(g)[..., None]
    a = np.tril(beta * (k @ k.transpose(0, 2, 1)) * decay, -1)
    new = np.linalg.solve(np.eye(n) + a, beta * (v - kept * (k @ state)))
    out = kept * (q @ state) + (q @ k.transpose(0, 2, 1) * decay) @ new
    faded = np.exp(g[:, -1:] - g)[..., None] * k
    state = kept[:, -1:] * state + faded.transpose(0, 2, 1) @ new
    return out.transpose(1, 0, 2), state


def causal_conv(x: Array, weight: Array) -> Array:
    """Each channel of ``[n, c]`` over time; the last of the taps ``[c, taps]`` is the present."""
    taps = weight.shape[1]
    past = np.concatenate([np.zeros((taps - 1, x.shape[1])), x])
    return sum(past[j : j + len(x)] * weight[:, j] for j in range(taps))


# ---------------------------------------------------------------------------------------- the model


def read_rope(c: Config, default_share: float) -> tuple[Array, float]:
    """Frequencies and factor of a config, in whichever way it spells them."""
    rope = dict(c.get("rope_scaling") or {}) | dict(c.get("rope_parameters") or {})
    theta = float(rope.get("rope_theta", c.get("rope_theta", 10000.0)))
    share = rope.get("partial_rotary_factor", c.get("partial_rotary_factor", default_share))
    dim = int(c["head_dim"] * share)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "yarn":
        return yarn_inv_freq(theta, dim, rope)
    if kind != "default":
        raise ValueError(f"rope type {kind!r}")
    return rope_inv_freq(theta, dim), 1.0


class Forward:
    """A checkpoint and its forward pass."""

    def __init__(self, path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        self.c: Config = config.get("text_config", config)
        self.w = Weights(path)
        self.plain = self.c["model_type"] == "qwen3_moe"  # neither gates, nor shared experts
        self.tied = self.c.get("tie_word_embeddings", config.get("tie_word_embeddings", False))
        self.eps = self.c["rms_norm_eps"]
        self.rope, self.rope_factor = read_rope(self.c, 1.0 if self.plain else 0.25)

    def logits(self, ids: Array, top_k: int) -> Array:
        c, hidden = self.c, self.c["hidden_size"]
        embedding = self.w.matrix("embed_tokens", hidden)
        x = embedding[ids]
        for i in range(c["num_hidden_layers"]):
            at = f"layers.{i}."
            mix = self.attention if self.is_attention(i) else self.delta
            x = x + mix(at, self.norm(x, at + "input_layernorm"))
            ffn = self.moe if self.is_sparse(i) else self.dense
            x = x + ffn(at + "mlp.", self.norm(x, at + "post_attention_layernorm"), top_k)
        head = embedding if self.tied else self.w.matrix("lm_head", hidden)
        return self.norm(x, "norm") @ head.T

    def is_attention(self, i: int) -> bool:
        types = self.c.get("layer_types")
        if types:
            return bool(types[i] == "full_attention")
        return self.plain or (i + 1) % self.c.get("full_attention_interval", 4) == 0

    def is_sparse(self, i: int) -> bool:
        step = self.c.get("decoder_sparse_step", 1)
        return i not in (self.c.get("mlp_only_layers") or ()) and (i + 1) % step == 0

    def norm(self, x: Array, name: str) -> Array:
        """RMS norm; Qwen3.5 and Next store the weight minus one, except in MLX's files."""
        centre = 0.0 if self.plain or self.w.mlx else 1.0
        return rms_norm(x, centre + self.w.number(name + ".weight"), self.eps)

    def linear(self, x: Array, name: str) -> Array:
        return x @ self.w.matrix(name, x.shape[-1]).T

    def attention(self, at: str, x: Array) -> Array:
        n, dim, at = len(x), self.c["head_dim"], at + "self_attn."
        q = self.linear(x, at + "q_proj").reshape(n, self.c["num_attention_heads"], -1)
        q, gate = q[..., :dim], q[..., dim:]  # by head: the query, then its gate
        k = self.linear(x, at + "k_proj").reshape(n, -1, dim)
        v = self.linear(x, at + "v_proj").reshape(n, -1, dim)
        turn = (np.arange(n), self.rope, self.rope_factor)
        q = rotate(self.norm(q, at + "q_norm"), *turn)
        k = rotate(self.norm(k, at + "k_norm"), *turn)
        out = attention(q, k, v, dim**-0.5)
        if not self.plain:
            out = out * sigmoid(gate)
        return self.linear(out.reshape(n, -1), at + "o_proj")

    def delta(self, at: str, x: Array) -> Array:
        c, n, at = self.c, len(x), at + "linear_attn."
        keys, values = c["linear_num_key_heads"], c["linear_num_value_heads"]
        dk, dv, r = c["linear_key_head_dim"], c["linear_value_head_dim"], values // keys
        if at + "in_proj_qkvz.weight" in self.w:  # by key head: q, k, r values, r gates
            parts = self.linear(x, at + "in_proj_qkvz").reshape(n, keys, -1)
            q, k, v, z = np.split(parts, np.cumsum([dk, dk, r * dv]), -1)
            mixed = np.concatenate([t.reshape(n, -1) for t in (q, k, v)], -1)
            b, a = np.split(self.linear(x, at + "in_proj_ba").reshape(n, keys, -1), 2, -1)
        else:
            mixed, z = self.linear(x, at + "in_proj_qkv"), self.linear(x, at + "in_proj_z")
            b, a = self.linear(x, at + "in_proj_b"), self.linear(x, at + "in_proj_a")
        taps = self.w.number(at + "conv1d.weight").reshape(mixed.shape[-1], -1)
        mixed = silu(causal_conv(mixed, taps))
        q, k, v = np.split(mixed, np.cumsum([keys * dk, keys * dk]), -1)
        q, k, v = q.reshape(n, keys, dk), k.reshape(n, keys, dk), v.reshape(n, values, dv)
        q, k = (t / np.sqrt((t * t).sum(-1, keepdims=True) + 1e-6) for t in (q, k))
        q, k = (q * dk**-0.5).repeat(r, 1), k.repeat(r, 1)
        beta = sigmoid(b.reshape(n, values))
        decay = np.exp(self.w.number(at + "A_log"))
        g = -decay * np.logaddexp(0, a.reshape(n, values) + self.w.number(at + "dt_bias"))
        state, out = np.zeros((values, dk, dv)), np.empty((n, values, dv))
        for t in range(n):
            out[t], state = delta_step(state, q[t], k[t], v[t], g[t], beta[t])
        out = rms_norm(out, self.w.number(at + "norm.weight"), self.eps)
        out = out * silu(z.reshape(n, values, dv))
        return self.linear(out.reshape(n, -1), at + "out_proj")

    def dense(self, at: str, x: Array, top_k: int = 0) -> Array:
        inner = silu(self.linear(x, at + "gate_proj")) * self.linear(x, at + "up_proj")
        return self.linear(inner, at + "down_proj")

    def moe(self, at: str, x: Array, top_k: int) -> Array:
        c = self.c
        keep = c["norm_topk_prob"] if "norm_topk_prob" in c else c["model_type"] != "qwen3_moe"
        ids, shares = route(self.linear(x, at + "gate"), top_k, renormalise=keep)
        count, wide = c["num_experts"], c["moe_intermediate_size"]
        gate, up, down = self.w.experts(at, count, x.shape[-1], wide)
        out = np.zeros_like(x)
        for e in range(count):
            rows, nth = np.nonzero(ids == e)
            out[rows] += shares[rows, nth, None] * swiglu(x[rows], gate[e], up[e], down[e])
        if self.plain:
            return out
        share = sigmoid(self.linear(x, at + "shared_expert_gate"))
        return out + share * self.dense(at + "shared_expert.", x)


def logits(
    path: Path | str, token_ids: Sequence[int] | Array, *, experts_per_token: int | None = None
) -> Array:
    """Logits after every token of a text.

    Args:
        path: A checkpoint directory: float, MLX-quantised, or FP8 by blocks.
        token_ids: ``[n]``.
        experts_per_token: Instead of the model's own number.

    Returns:
        float64 ``[n, vocab]``.
    """
    model = Forward(Path(path))
    top_k = experts_per_token or model.c["num_experts_per_tok"]
    return model.logits(np.asarray(token_ids, np.int64), top_k)
