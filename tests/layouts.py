"""Tiny checkpoints in every layout the library opens, made of random bytes, and what lies where.

Nothing here uses the library: tensors are made as the checkpoint stores them, and what the core
must get is taken out of them with numpy alone.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

H, V, HEADS, KV, DIM = 64, 96, 4, 2, 32
NK, NV, DK, DV, TAPS = 2, 6, 16, 32, 4
E, WIDE, SHARED, DENSE = 6, 32, 64, 96
LAYERS = 4
SIZES = {"F32": 4, "BF16": 2, "F16": 2, "U32": 4, "F8_E4M3": 1}
KINDS = {"F32": "f32", "BF16": "bf16", "F16": "f16"}


def save(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]], **meta: str) -> None:
    """Write a safetensors file, as mlx does: no padding, no order."""
    header: dict[str, Any] = {"__metadata__": meta} if meta else {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    body = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@dataclass
class Expected:
    """What the core must get.

    Attributes:
        config: The ``config.json``.
        tensors: By the core's name, the format and by part the bytes of each row.
        add: The core's names of tensors to which 1 is added.
        experts: By layer, then ``gate.weight`` and so on: bytes of each expert.
        quants: By layer, the formats of gate, up and down.
    """

    config: dict[str, Any]
    tensors: dict[str, tuple[str, dict[str, np.ndarray]]] = field(default_factory=dict)
    add: set[str] = field(default_factory=set)
    experts: dict[int, dict[str, list[bytes]]] = field(default_factory=dict)
    quants: dict[int, list[str]] = field(default_factory=dict)


class Maker:
    """Makes one checkpoint.

    Args:
        family: Its ``model_type``.
        experts: ``fused``, ``separate`` or ``stacked``.
        quant: A safetensors float dtype, ``affine:BITS:GROUP:DTYPE`` or ``fp8:ROWS:COLS:DTYPE``.
        prefix: Before ``layers.N``.
        head: Of the output matrix; empty: tied.
    """

    def __init__(self, family: str, experts: str, quant: str, prefix: str, head: str) -> None:
        self.random = np.random.RandomState(zlib.crc32(f"{family} {experts} {quant}".encode()))
        self.files: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
        self.family, self.layout, self.quant = family, experts, quant
        self.mlx = experts == "stacked"
        self.prefix = prefix
        self.expected = Expected(config(family, quant, tied=not head))
        self.float = quant.split(":")[-1] if ":" in quant else quant
        self.whole("embed", self.matrix(f"{prefix}embed_tokens", V, H, quantised=self.mlx))
        self.vector("norm", f"{prefix}norm.weight", H, norm=True)
        if head:
            self.whole("lm_head", self.matrix(head, V, H, quantised=self.mlx))
        types = layer_types(family)
        for i in range(LAYERS):
            self.layer(i, types[i] == "full_attention")

    def raw(self, *shape: int, size: int = 1) -> np.ndarray:
        """Random bytes; as floats of ``size`` bytes, finite ones."""
        data = self.random.randint(0, 256, shape).astype(np.uint8)
        if size > 1:
            data[..., size - 1 :: size] &= 0xBF
        return data

    def put(self, name: str, dtype: str, shape: tuple[int, ...], data: np.ndarray) -> None:
        assert data.size == int(np.prod(shape)) * SIZES[dtype]
        self.files[name] = (dtype, shape, data.tobytes())

    def matrix(
        self,
        path: str,
        rows: int,
        cols: int,
        stack: tuple[int, ...] = (),
        quantised: bool = True,
        suffix: str = ".weight",
        bits: int | None = None,
    ) -> tuple[str, dict[str, np.ndarray]]:
        """Store a random matrix; its format and, by part, the bytes of every row."""
        every = (*stack, rows)
        if not quantised or ":" not in self.quant:
            size = SIZES[self.float]
            data = self.raw(*every, cols * size, size=size)
            self.put(path + suffix, self.float, (*every, cols), data)
            return KINDS[self.float], {"weight": data}
        kind, a, b, dtype = self.quant.split(":")
        if kind == "affine":
            use, group = bits or int(a), int(b)
            weight = self.raw(*every, cols * use // 8)
            self.put(path + suffix, "U32", (*every, cols * use // 32), weight)
            parts = {"weight": weight}
            for part in ("scales", "biases"):
                size = SIZES[dtype]
                parts[part] = self.raw(*every, cols // group * size, size=size)
                self.put(f"{path}.{part}", dtype, (*every, cols // group), parts[part])
            return f"affine:{use}:{group}:{KINDS[dtype]}", parts
        high, wide = int(a), int(b)
        weight = self.raw(rows, cols)
        self.put(path + suffix, "F8_E4M3", (rows, cols), weight)
        across = -(-cols // wide)
        scales = self.raw(-(-rows // high), across * SIZES[dtype])
        self.put(f"{path}.weight_scale_inv", dtype, (len(scales), across), scales)
        # a row of scales for each row, whatever the blocks
        return f"fp8:*:{wide}:{KINDS[dtype]}", {
            "weight": weight,
            "scales": scales[np.arange(rows) // high],
        }

    def whole(self, name: str, stored: tuple[str, dict[str, np.ndarray]]) -> None:
        self.expected.tensors[name] = stored

    def some(self, name: str, stored: tuple[str, dict[str, np.ndarray]], pick: Any) -> None:
        """The rows that ``pick`` takes out of ``[rows, row_bytes]``."""
        kind, parts = stored
        self.expected.tensors[name] = (kind, {p: pick(a) for p, a in parts.items()})

    def vector(
        self,
        name: str,
        path: str,
        length: int,
        norm: bool = False,
        dtype: str | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        dtype = dtype or self.float
        data = self.raw(1, length * SIZES[dtype], size=SIZES[dtype])
        self.put(path, dtype, shape or (length,), data)
        rows = shape[0] if shape else 1
        self.expected.tensors[name] = (KINDS[dtype], {"weight": data.reshape(rows, -1)})
        if norm and not self.mlx and self.family != "qwen3_moe":
            self.expected.add.add(name)

    def layer(self, i: int, full: bool) -> None:
        path, n = f"{self.prefix}layers.{i}.", f"layers.{i}."
        self.vector(f"{n}mixer_norm", f"{path}input_layernorm.weight", H, norm=True)
        self.vector(f"{n}ffn_norm", f"{path}post_attention_layernorm.weight", H, norm=True)
        if full:
            self.attention(n, f"{path}self_attn.")
        else:
            self.delta(n, f"{path}linear_attn.")
        if self.family != "qwen3_5_moe" and i == 1:
            self.swiglu(n, f"{path}mlp.", DENSE)
        else:
            self.moe(i, n, f"{path}mlp.")

    def swiglu(self, n: str, path: str, wide: int) -> None:
        self.whole(f"{n}gate", self.matrix(f"{path}gate_proj", wide, H))
        self.whole(f"{n}up", self.matrix(f"{path}up_proj", wide, H))
        self.whole(f"{n}down", self.matrix(f"{path}down_proj", H, wide))

    def attention(self, n: str, path: str) -> None:
        if self.family == "qwen3_moe":
            self.whole(f"{n}q", self.matrix(f"{path}q_proj", HEADS * DIM, H))
        else:
            both = self.matrix(f"{path}q_proj", 2 * HEADS * DIM, H)
            for half, name in enumerate(("q", "q_gate")):
                self.some(
                    n + name,
                    both,
                    lambda a, half=half: a.reshape(HEADS, 2, DIM, -1)[:, half].reshape(
                        HEADS * DIM, -1
                    ),
                )
        self.whole(f"{n}k", self.matrix(f"{path}k_proj", KV * DIM, H))
        self.whole(f"{n}v", self.matrix(f"{path}v_proj", KV * DIM, H))
        self.whole(f"{n}o", self.matrix(f"{path}o_proj", H, HEADS * DIM))
        self.vector(f"{n}q_norm", f"{path}q_norm.weight", DIM, norm=True)
        self.vector(f"{n}k_norm", f"{path}k_norm.weight", DIM, norm=True)

    def delta(self, n: str, path: str) -> None:
        channels, values, share = 2 * NK * DK + NV * DV, NV * DV, NV // NK
        if self.family == "qwen3_next":
            qkvz = self.matrix(f"{path}in_proj_qkvz", channels + values, H)

            def group(a: np.ndarray) -> list[np.ndarray]:
                """Queries, keys, values and gates of all key heads."""
                grouped = a.reshape(NK, -1, a.shape[-1])
                cuts = np.cumsum([DK, DK, share * DV])
                return [g.reshape(-1, a.shape[-1]) for g in np.split(grouped, cuts, axis=1)]

            self.some(f"{n}qkv", qkvz, lambda a: np.concatenate(group(a)[:3]))
            self.some(f"{n}z", qkvz, lambda a: group(a)[3])
            ba = self.matrix(f"{path}in_proj_ba", 2 * NV, H)
            for half, name in enumerate("ba"):
                self.some(
                    n + name,
                    ba,
                    lambda a, half=half: a.reshape(NK, 2, share, -1)[:, half].reshape(NV, -1),
                )
        else:
            self.whole(f"{n}qkv", self.matrix(f"{path}in_proj_qkv", channels, H))
            self.whole(f"{n}z", self.matrix(f"{path}in_proj_z", values, H))
            self.whole(f"{n}b", self.matrix(f"{path}in_proj_b", NV, H, quantised=self.mlx))
            self.whole(f"{n}a", self.matrix(f"{path}in_proj_a", NV, H, quantised=self.mlx))
        shape = (channels, TAPS, 1) if self.mlx else (channels, 1, TAPS)
        self.vector(f"{n}conv", f"{path}conv1d.weight", channels * TAPS, shape=shape)
        self.vector(f"{n}a_log", f"{path}A_log", NV, dtype="F32")
        self.vector(f"{n}dt_bias", f"{path}dt_bias", NV)
        self.vector(f"{n}delta_norm", f"{path}norm.weight", DV)
        self.whole(f"{n}out", self.matrix(f"{path}out_proj", H, values))

    def moe(self, i: int, n: str, path: str) -> None:
        self.whole(f"{n}router", self.matrix(f"{path}gate", E, H, quantised=self.mlx, bits=8))
        if self.family != "qwen3_moe":
            self.whole(
                f"{n}shared_score",
                self.matrix(f"{path}shared_expert_gate", 1, H, quantised=self.mlx, bits=8),
            )
            self.swiglu(f"{n}shared_", f"{path}shared_expert.", SHARED)
        places = self.expected.experts[i] = {}
        quants = self.expected.quants[i] = []
        shapes = {"gate": (WIDE, H), "up": (WIDE, H), "down": (H, WIDE)}
        if self.layout == "fused":
            kind, parts = self.matrix(f"{path}experts.gate_up_proj", 2 * WIDE, H, (E,), False, "")
            both = parts["weight"].reshape(E, 2, -1)
            places["gate.weight"] = [e.tobytes() for e in both[:, 0]]
            places["up.weight"] = [e.tobytes() for e in both[:, 1]]
            kind, parts = self.matrix(f"{path}experts.down_proj", H, WIDE, (E,), False, "")
            places["down.weight"] = [e.tobytes() for e in parts["weight"]]
            quants.extend([kind] * 3)
        elif self.layout == "stacked":
            for name, (rows, cols) in shapes.items():
                bits = 6 if name == "down" and self.quant.startswith("affine") else None
                kind, parts = self.matrix(
                    f"{path}switch_mlp.{name}_proj", rows, cols, (E,), bits=bits
                )
                quants.append(kind)
                for part, data in parts.items():
                    places[f"{name}.{part}"] = [e.tobytes() for e in data]
        else:
            for name, (rows, cols) in shapes.items():
                for e in sorted(range(E), key=str, reverse=True):
                    key = f"{path}experts.{e}.{name}_proj"
                    kind, _ = self.matrix(key, rows, cols)
                    for stored, part in ((".weight", "weight"), (".weight_scale_inv", "scales")):
                        if key + stored in self.files:
                            places.setdefault(f"{name}.{part}", [b""] * E)[e] = self.files[
                                key + stored
                            ][2]
                quants.append(kind)


def layer_types(family: str) -> list[str]:
    if family == "qwen3_moe":
        return ["full_attention"] * LAYERS
    return ["linear_attention", "full_attention"] * (LAYERS // 2)


def config(family: str, quant: str = "BF16", tied: bool = False) -> dict[str, Any]:
    """The text part of a config."""
    own: dict[str, Any] = {
        "model_type": family,
        "hidden_size": H,
        "vocab_size": V,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "head_dim": DIM,
        "num_experts": E,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": WIDE,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "intermediate_size": DENSE,
        "rope_scaling": None,
    }
    if family != "qwen3_moe":
        own |= {
            "layer_types": layer_types(family),
            "linear_num_key_heads": NK,
            "linear_num_value_heads": NV,
            "linear_key_head_dim": DK,
            "linear_value_head_dim": DV,
            "linear_conv_kernel_dim": TAPS,
            "shared_expert_intermediate_size": SHARED,
            "partial_rotary_factor": 0.25,
        }
    if family != "qwen3_5_moe":
        own |= {"mlp_only_layers": [1], "decoder_sparse_step": 1, "norm_topk_prob": True}
    if quant.startswith("affine"):
        bits, group = map(int, quant.split(":")[1:3])
        own["quantization"] = {"bits": bits, "group_size": group}
    if quant.startswith("fp8"):
        block = [int(n) for n in quant.split(":")[1:3]]
        own["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "weight_block_size": block,
        }
    return own


def write(
    path: Path,
    family: str = "qwen3_5_moe",
    experts: str = "fused",
    quant: str = "BF16",
    prefix: str = "model.",
    head: str = "lm_head",
    shards: int = 1,
    nested: bool = False,
) -> Expected:
    """Write a checkpoint directory."""
    path.mkdir(parents=True)
    maker = Maker(family, experts, quant, prefix, head)
    config = maker.expected.config
    if nested:
        quantization = {k: config.pop(k) for k in list(config) if k.startswith("quantization")}
        tied = {"tie_word_embeddings": config.pop("tie_word_embeddings")}
        inner = {**config, "model_type": f"{family}_text"}
        config = (
            {"model_type": family, "text_config": inner, "vision_config": {}} | quantization | tied
        )
        maker.expected.config = config
    (path / "config.json").write_text(json.dumps(config))
    meta = {"format": "mlx" if maker.mlx else "pt"}
    if shards == 1:
        save(path / "model.safetensors", maker.files, **meta)
        return maker.expected
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    weight_map = {name: names[i % shards] for i, name in enumerate(maker.files)}
    for name in names:
        save(path / name, {k: v for k, v in maker.files.items() if weight_map[k] == name}, **meta)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return maker.expected
