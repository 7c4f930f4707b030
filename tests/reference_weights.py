"""The tensors of a checkpoint directory as float64 numbers, for the independent forward pass."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np

Array = np.ndarray

PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.")
NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U32": "<u4", "F8_E4M3": "u1"}


class Weights:
    """The tensors of a checkpoint directory by their short name, as float64.

    Short names leave out the prefix of the language model: ``layers.0.mlp.gate``, ``lm_head``.
    """

    def __init__(self, path: Path) -> None:
        self.raw: dict[str, tuple[str, Array]] = {}
        fmt = None
        for file in sorted(path.glob("*.safetensors")):
            data = file.read_bytes()
            (size,) = struct.unpack("<Q", data[:8])
            table = json.loads(data[8 : 8 + size])
            fmt = (table.pop("__metadata__", None) or {}).get("format", fmt)
            for name, entry in table.items():
                if entry["dtype"] not in NUMPY:
                    continue
                begin, end = (8 + size + offset for offset in entry["data_offsets"])
                values = np.frombuffer(data[begin:end], NUMPY[entry["dtype"]])
                self.raw[self.short(name)] = (entry["dtype"], values.reshape(entry["shape"]))
        self.mlx = fmt == "mlx"

    def short(self, name: str) -> str:
        prefix = next((p for p in PREFIXES if name.startswith(p)), "")
        return name[len(prefix) :]

    def __contains__(self, name: str) -> bool:
        return name in self.raw

    def number(self, name: str) -> Array:
        """A tensor as it is stored."""
        dtype, values = self.raw[name]
        if dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        if dtype == "F8_E4M3":
            return E4M3[values]
        if dtype == "U32":
            raise ValueError(f"{name} is packed")
        return values.astype(np.float64)

    def matrix(self, name: str, width: int) -> Array:
        """The matrix of a module, ``[..., out, width]``, dequantised."""
        if name + ".scales" in self:
            return unpack(
                self.raw[name + ".weight"][1],
                self.number(name + ".scales"),
                self.number(name + ".biases"),
                width,
            )
        values = self.number(name + ".weight")
        if name + ".weight_scale_inv" in self:
            rows, columns = values.shape
            scale = self.number(name + ".weight_scale_inv")
            values = values * scale.repeat(128, 0).repeat(128, 1)[:rows, :columns]
        return values

    def experts(self, at: str, count: int, hidden: int, wide: int) -> tuple[Array, Array, Array]:
        """Gate, up ``[experts, wide, hidden]`` and down ``[experts, hidden, wide]``."""
        if at + "experts.gate_up_proj" in self:
            gate_up = self.number(at + "experts.gate_up_proj")
            return gate_up[:, :wide], gate_up[:, wide:], self.number(at + "experts.down_proj")
        parts = []
        for part, width in (("gate_proj", hidden), ("up_proj", hidden), ("down_proj", wide)):
            if f"{at}switch_mlp.{part}.weight" in self:
                parts.append(self.matrix(f"{at}switch_mlp.{part}", width))
            else:
                each = [self.matrix(f"{at}experts.{e}.{part}", width) for e in range(count)]
                parts.append(np.stack(each))
        return parts[0], parts[1], parts[2]


def unpack(words: Array, scales: Array, biases: Array, width: int) -> Array:
    """MLX's affine weights: code × scale + bias; bits and group follow from the shapes."""
    bits = 32 * words.shape[-1] // width
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    stream = stream.reshape(*words.shape[:-1], width, bits)
    codes = (stream * (1 << np.arange(bits))).sum(-1)
    group = width // scales.shape[-1]
    return codes * scales.repeat(group, -1) + biases.repeat(group, -1)


def _e4m3(code: int) -> float:
    sign, exponent, mantissa = -1.0 if code & 128 else 1.0, (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)


E4M3 = np.array([_e4m3(code) for code in range(256)])
