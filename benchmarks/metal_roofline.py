"""What every Metal kernel must move for one token, and the ceilings that follow for Apple's chips.

Computed, not measured: bytes from the model's shape and from what the kernels of shaders/ bind,
bandwidths as Apple states them. The default is Qwen3.5-397B-A17B at 4 bits in groups of 64, its
routers at 8 bits.

    python benchmarks/metal_roofline.py [MODEL] [--context 4096] [--experts-per-token 4] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from flashmoe.checkpoint import open_checkpoint
from flashmoe.spec import Attention, Delta, Dense, Layer, ModelSpec, MoE, Rope

CHIPS = {
    "M1": 68, "M1 Max": 400, "M2": 100, "M2 Max": 400, "M2 Ultra": 800, "M3": 100, "M3 Max": 400,
    "M3 Ultra": 819, "M4": 120, "M4 Pro": 273, "M4 Max": 546, "M5": 153, "M5 Max": 614,
}  # fmt: skip
"""GB/s of memory."""
DISKS = (3.0, 7.0, 17.5)
"""GB/s: an external disk, a base model's own, the one that Flash-MoE was measured with."""
FLOAT, KV_PART = 4, 512


def large() -> ModelSpec:
    """Qwen3.5-397B-A17B."""
    attention = Attention(32, 2, 256, 0, 256**-0.5, gated=True, qk_norm=True)
    delta, moe = Delta(16, 64, 128, 128, 4), MoE(512, 10, True, 1024, 1024)
    layers = tuple(Layer(attention if i % 4 == 3 else delta, moe) for i in range(60))
    return ModelSpec(4096, 248320, 1e-6, 262144, False, (Rope(64, 1.0, (1.0,) * 32),), layers)


class Token:
    """The dispatches of one decoded token: pairs of a kernel and its bytes."""

    def __init__(self, spec: ModelSpec, context: int, k: int | None, bits: int) -> None:
        self.spec, self.context, self.k, self.bits = spec, context, k, bits

    def matrix(self, rows: int, cols: int, bits: int | None = None) -> float:
        """Codes, and a scale and a bias of 16 bits for every 64."""
        return rows * cols * ((bits or self.bits) / 8 + 4 / 64)

    def product(self, rows: int, cols: int, bits: int | None = None) -> tuple[str, float]:
        return "matvec", self.matrix(rows, cols, bits) + FLOAT * (rows + cols)

    def norm(self) -> tuple[str, float]:
        return "rms_norm", FLOAT * 4 * self.spec.hidden_size

    def flat(self, kernel: str, n: int) -> tuple[str, float]:
        return kernel, FLOAT * 3 * n

    def attention(self, a: Attention) -> Iterator[tuple[str, float]]:
        h, q, kv = self.spec.hidden_size, a.heads * a.head_dim, a.kv_heads * a.head_dim
        yield self.norm()
        for rows in (q, kv, kv, *([q] if a.gated else [])):
            yield self.product(rows, h)
        yield "append_kv", FLOAT * (3 * q + 2 * kv + kv) + 2 * 2 * kv
        parts = -(-self.context // KV_PART)
        sums = parts * a.heads * (a.head_dim + 2) * FLOAT if parts > 1 else q * FLOAT
        yield "attend", 2 * 2 * self.context * kv + FLOAT * q + sums
        if parts > 1:
            yield "attend_merge", sums + FLOAT * q
        if a.gated:
            yield self.flat("gate", q)
        yield self.product(h, q)
        yield self.flat("add", h)

    def delta(self, d: Delta) -> Iterator[tuple[str, float]]:
        h, c, v = self.spec.hidden_size, d.channels, d.value_heads * d.value_dim
        yield self.norm()
        yield self.product(c, h)
        yield self.product(v, h)
        yield self.product(d.value_heads, h)
        yield self.product(d.value_heads, h)
        yield "delta_gates", FLOAT * 6 * d.value_heads
        yield "conv", FLOAT * c * (1 + d.conv_taps + 1 + 2 * (d.conv_taps - 1))
        yield "unit_norm", FLOAT * 3 * 2 * d.key_heads * d.key_dim
        yield "delta", FLOAT * (2 * d.value_heads * d.key_dim * d.value_dim + c + v)
        yield "gated_norm", FLOAT * 4 * v
        yield self.product(h, v)
        yield self.flat("add", h)

    def experts(self, m: MoE) -> Iterator[tuple[str, float]]:
        h, inner, k = self.spec.hidden_size, m.intermediate_size, self.k or m.experts_per_token
        yield self.norm()
        yield self.product(m.experts, h, 8)
        if m.shared_intermediate_size:
            shared = m.shared_intermediate_size
            yield self.product(shared, h)
            yield self.product(shared, h)
            yield self.product(1, h, 8)
            yield self.flat("swiglu", shared)
            yield self.product(h, shared)
        yield "experts_gate_up", k * (2 * self.matrix(inner, h) + FLOAT * (h + inner))
        yield "experts_down", k * (self.matrix(h, inner) + FLOAT * (h + inner))
        yield "combine", FLOAT * h * (k + 2 + (m.shared_intermediate_size > 0))

    def dense(self, d: Dense) -> Iterator[tuple[str, float]]:
        h, inner = self.spec.hidden_size, d.intermediate_size
        yield self.norm()
        yield self.product(inner, h)
        yield self.product(inner, h)
        yield self.flat("swiglu", inner)
        yield self.product(h, inner)
        yield self.flat("add", h)

    def __iter__(self) -> Iterator[tuple[str, float]]:
        h = self.spec.hidden_size
        yield "embed", self.matrix(1, h) + FLOAT * h
        for layer in self.spec.layers:
            mixer, ffn = layer.mixer, layer.ffn
            yield from self.attention(mixer) if isinstance(mixer, Attention) else self.delta(mixer)
            yield from self.experts(ffn) if isinstance(ffn, MoE) else self.dense(ffn)
        yield self.norm()
        yield self.product(self.spec.vocab_size, h)

    def expert_bytes(self) -> float:
        """Of the experts that it uses."""
        h, total = self.spec.hidden_size, 0.0
        for layer in self.spec.layers:
            if isinstance(layer.ffn, MoE):
                k = self.k or layer.ffn.experts_per_token
                total += 3 * k * self.matrix(layer.ffn.intermediate_size, h)
        return total


def count(token: Token) -> dict[str, tuple[int, float]]:
    """Dispatches and bytes of every kernel."""
    sums: dict[str, tuple[int, float]] = {}
    for kernel, nbytes in token:
        n, total = sums.get(kernel, (0, 0.0))
        sums[kernel] = (n + 1, total + nbytes)
    return dict(sorted(sums.items(), key=lambda item: -item[1][1]))


def show(token: Token) -> Iterator[str]:
    """Both tables, as Markdown."""
    sums = count(token)
    total, experts = sum(b for _, b in sums.values()), token.expert_bytes()
    yield "| kernel | dispatches | MB | share |"
    yield "| --- | --- | --- | --- |"
    for kernel, (n, nbytes) in sums.items():
        yield f"| {kernel} | {n} | {nbytes / 1e6:,.1f} | {nbytes / total:.1%} |"
    yield f"| all | {sum(n for n, _ in sums.values())} | {total / 1e6:,.1f} | |"
    yield ""
    disks = " | ".join(f"{experts / 1e9:.2f} GB read first, at {d:g} GB/s" for d in DISKS)
    yield f"| chip | GB/s | experts in memory | {disks} |"
    yield "| --- " * (3 + len(DISKS)) + "|"
    for chip, bandwidth in CHIPS.items():
        seconds = total / 1e9 / bandwidth
        cells = [seconds, *(seconds + experts / 1e9 / d for d in DISKS)]
        yield f"| {chip} | {bandwidth} | " + " | ".join(f"{1 / s:.2f}" for s in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, help="a model's directory, for its shape")
    parser.add_argument("--context", type=int, default=4096, help="keys to look at (4096)")
    parser.add_argument("--experts-per-token", type=int)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    spec = open_checkpoint(a.model).manifest.spec if a.model else large()
    token = Token(spec, a.context, a.experts_per_token, a.bits)
    if a.json:
        print(
            json.dumps(
                {name: {"dispatches": n, "bytes": b} for name, (n, b) in count(token).items()}
            )
        )
    else:
        print("\n".join(show(token)))


if __name__ == "__main__":
    main()
