"""Write a random-weight Qwen3.5-MoE checkpoint of any shape, as mlx-lm quantises it.

Weights are random: this is for measuring speed, memory and I/O, never quality. The defaults are the
35B-A3B shape at 4 bits, 19.5 GB.

    python benchmarks/synth_checkpoint.py DIRECTORY [--layers 40 --bits 4 ...]
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

POOL = 64 << 20
SHARD = 5_000_000_000


@dataclass(frozen=True)
class Planned:
    """One tensor to write: its kind says how its bytes are made."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str  # "codes", "scale", "bias", "one", "small", "conv"

    @property
    def nbytes(self) -> int:
        size = {"U32": 4, "F32": 4, "BF16": 2}[self.dtype]
        return size * int(np.prod(self.shape, dtype=np.int64))


def bf16(values: np.ndarray) -> bytes:
    """Float32 to bfloat16, rounded to nearest even."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()


class Shape:
    """All tensors of the language model, in the order of the layers."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.a = a
        self.tensors: list[Planned] = []
        base = "language_model.model."
        self.matrix(base + "embed_tokens", (a.vocab, a.hidden))
        for layer in range(a.layers):
            self.layer(f"{base}layers.{layer}.", (layer + 1) % 4 == 0)
        self.plain(base + "norm.weight", (a.hidden,), "one")
        self.matrix("language_model.lm_head", (a.vocab, a.hidden))

    def matrix(self, path: str, shape: tuple[int, ...], bits: int | None = None) -> None:
        bits, group = bits or self.a.bits, self.a.group
        *outer, cols = shape
        self.tensors += [
            Planned(path + ".weight", "U32", (*outer, cols * bits // 32), "codes"),
            Planned(path + ".scales", "BF16", (*outer, cols // group), f"scale{bits}"),
            Planned(path + ".biases", "BF16", (*outer, cols // group), f"bias{bits}"),
        ]

    def plain(self, name: str, shape: tuple[int, ...], kind: str, dtype: str = "BF16") -> None:
        self.tensors.append(Planned(name, dtype, shape, kind))

    def layer(self, base: str, full: bool) -> None:
        a = self.a
        self.plain(base + "input_layernorm.weight", (a.hidden,), "one")
        if full:
            at = base + "self_attn."
            self.matrix(at + "q_proj", (2 * a.heads * a.head_dim, a.hidden))
            self.matrix(at + "k_proj", (a.kv_heads * a.head_dim, a.hidden))
            self.matrix(at + "v_proj", (a.kv_heads * a.head_dim, a.hidden))
            self.matrix(at + "o_proj", (a.hidden, a.heads * a.head_dim))
            self.plain(at + "q_norm.weight", (a.head_dim,), "one")
            self.plain(at + "k_norm.weight", (a.head_dim,), "one")
        else:
            at = base + "linear_attn."
            keys, values = a.key_heads * a.linear_dim, a.value_heads * a.linear_dim
            self.matrix(at + "in_proj_qkv", (2 * keys + values, a.hidden))
            self.matrix(at + "in_proj_z", (values, a.hidden))
            self.matrix(at + "in_proj_b", (a.value_heads, a.hidden))
            self.matrix(at + "in_proj_a", (a.value_heads, a.hidden))
            self.plain(at + "conv1d.weight", (2 * keys + values, 4, 1), "conv")
            self.plain(at + "A_log", (a.value_heads,), "small", "F32")
            self.plain(at + "dt_bias", (a.value_heads,), "small")
            self.plain(at + "norm.weight", (a.linear_dim,), "one")
            self.matrix(at + "out_proj", (a.hidden, values))
        self.plain(base + "post_attention_layernorm.weight", (a.hidden,), "one")
        mlp = base + "mlp."
        self.matrix(mlp + "gate", (a.experts, a.hidden), 8)
        for name, shape in (
            ("gate_proj", (a.intermediate, a.hidden)),
            ("up_proj", (a.intermediate, a.hidden)),
            ("down_proj", (a.hidden, a.intermediate)),
        ):
            self.matrix(mlp + "switch_mlp." + name, (a.experts, *shape))
            self.matrix(mlp + "shared_expert." + name, shape)
        self.matrix(mlp + "shared_expert_gate", (1, a.hidden), 8)

    def config(self) -> dict[str, object]:
        a = self.a
        quantization: dict[str, object] = {"group_size": a.group, "bits": a.bits, "mode": "affine"}
        for layer in range(a.layers):
            for name in ("gate", "shared_expert_gate"):
                path = f"language_model.model.layers.{layer}.mlp.{name}"
                quantization[path] = {"group_size": a.group, "bits": 8}
        return {
            "architectures": ["Qwen3_5MoeForConditionalGeneration"],
            "model_type": "qwen3_5_moe",
            "tie_word_embeddings": False,
            "quantization": quantization,
            "quantization_config": quantization,
            "text_config": {
                "model_type": "qwen3_5_moe_text",
                "hidden_size": a.hidden,
                "num_hidden_layers": a.layers,
                "num_attention_heads": a.heads,
                "num_key_value_heads": a.kv_heads,
                "head_dim": a.head_dim,
                "attn_output_gate": True,
                "full_attention_interval": 4,
                "layer_types": [
                    "full_attention" if (i + 1) % 4 == 0 else "linear_attention"
                    for i in range(a.layers)
                ],
                "linear_num_key_heads": a.key_heads,
                "linear_num_value_heads": a.value_heads,
                "linear_key_head_dim": a.linear_dim,
                "linear_value_head_dim": a.linear_dim,
                "linear_conv_kernel_dim": 4,
                "num_experts": a.experts,
                "num_experts_per_tok": a.topk,
                "moe_intermediate_size": a.intermediate,
                "shared_expert_intermediate_size": a.intermediate,
                "vocab_size": a.vocab,
                "rms_norm_eps": 1e-6,
                "max_position_embeddings": 262144,
                "hidden_act": "silu",
                "attention_bias": False,
                "rope_parameters": {
                    "rope_theta": 1e7,
                    "partial_rotary_factor": 0.25,
                    "rope_type": "default",
                },
            },
        }


class Bytes:
    """Makes a tensor's bytes, from a pool of random ones where it is large."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.pool = self.rng.bytes(POOL)

    def write(self, file, t: Planned, bar: tqdm) -> None:
        if t.kind == "codes":
            left = t.nbytes
            while left:
                n = min(left, POOL // 2)
                at = int(self.rng.integers(0, POOL - n + 1))
                file.write(self.pool[at : at + n])
                bar.update(n)
                left -= n
            return
        data = self.small(t)
        file.write(data)
        bar.update(len(data))

    def small(self, t: Planned) -> bytes:
        n = int(np.prod(t.shape, dtype=np.int64))
        if t.kind.startswith(("scale", "bias")):
            top = 2 ** int(t.kind[-1]) - 1
            scale = 0.06 / top  # weights spread over about +-0.03
            return bf16(np.full(n, scale if t.kind[0] == "s" else -scale * top / 2))
        values = {
            "one": lambda: np.ones(n),
            "conv": lambda: self.rng.standard_normal(n) * 0.5,
            "small": lambda: self.rng.uniform(-1, 1, n),
        }[t.kind]()
        return values.astype(np.float32).tobytes() if t.dtype == "F32" else bf16(values)


def write_shard(path: Path, tensors: list[Planned], make: Bytes, bar: tqdm) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    at = 0
    for t in tensors:
        header[t.name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for t in tensors:
            make.write(file, t, bar)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("directory", type=Path)
    for name, value in {
        "layers": 40, "hidden": 2048, "experts": 256, "topk": 8, "intermediate": 512, "heads": 16,
        "kv-heads": 2, "head-dim": 256, "key-heads": 16, "value-heads": 32, "linear-dim": 128,
        "vocab": 248320, "bits": 4, "group": 64, "seed": 0,
    }.items():  # fmt: skip
        p.add_argument(f"--{name}", type=int, default=value)
    a = p.parse_args()

    shape = Shape(a)
    total = sum(t.nbytes for t in shape.tensors)
    a.directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(a.directory).free
    if total > free:
        sys.exit(f"{a.directory}: needs {total / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")
    shards: list[list[Planned]] = [[]]
    for t in shape.tensors:
        if sum(x.nbytes for x in shards[-1]) + t.nbytes > SHARD and shards[-1]:
            shards.append([])
        shards[-1].append(t)
    make, weight_map = Bytes(a.seed), {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="writing") as bar:
        for i, tensors in enumerate(shards, 1):
            name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
            write_shard(a.directory / name, tensors, make, bar)
            weight_map |= {t.name: name for t in tensors}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (a.directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (a.directory / "config.json").write_text(json.dumps(shape.config(), indent=1))
    print(f"{total / 1e9:.2f} GB in {len(shards)} files")


if __name__ == "__main__":
    main()
