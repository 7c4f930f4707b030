"""A packed directory read by the words of csrc/README.md, without the library's own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SCALAR = {"f32": 4, "f16": 2, "bf16": 2}
Line = dict[str, str]


def up_to(value: int, multiple: int) -> int:
    """The next multiple."""
    return -(-value // multiple) * multiple


def part_bytes(quant: str, rows: int, cols: int) -> dict[str, int]:
    """Bytes of each array of a matrix, in the order they are stored."""
    words = quant.split(":")
    if words[0] != "affine":
        return {"weight": rows * cols * SCALAR[quant]}
    bits, group, scale = int(words[1]), int(words[2]), SCALAR[words[3]]
    side = rows * cols // group * scale
    return {"weight": rows * cols * bits // 8, "scales": side, "biases": side}


class Packed:
    """Its matrices as raw bytes.

    Attributes:
        tensors: Format of every resident tensor, by name.
        experts: Formats of gate, up and down, by layer.
        checksums: Of every record, by layer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, str] = {}
        self.experts: dict[int, dict[str, str]] = {}
        self.checksums: dict[int, list[str]] = {}
        self.files: list[Line] = []
        self._shapes: dict[str, tuple[int, int]] = {}
        self._blocks: dict[str, list[tuple[str, Line]]] = {}
        self._records: dict[int, Line] = {}
        self._moe: dict[int, tuple[int, int]] = {}
        name = ""
        for text in (path / "manifest.fm").read_text().splitlines():
            keyword, *words = text.split()
            line = dict(word.split("=", 1) for word in words)
            if keyword == "model":
                self._hidden = int(line["hidden_size"])
            elif keyword == "file":
                self.files.append(line)
            elif keyword == "layer" and line["ffn"] == "moe":
                self._moe[int(line["index"])] = (
                    int(line["experts"]), int(line["intermediate_size"]))  # fmt: skip
            elif keyword == "tensor":
                name = line["name"]
                self.tensors[name] = line["quant"]
                self._shapes[name] = int(line["rows"]), int(line["cols"])
                self._blocks[name] = []
            elif keyword in ("weight", "scales", "biases"):
                self._blocks[name].append((keyword, line))
            elif keyword == "experts":
                layer = int(line.pop("layer"))
                self.experts[layer] = line
                self.checksums[layer] = []
            elif keyword == "extent":
                assert line["part"] == "record"
                self._records[int(line["layer"])] = line
            elif keyword == "checksum":
                self.checksums[int(line["layer"])] += line["xxh3"].split(",")

    def tensor(self, name: str) -> dict[str, bytes]:
        """The arrays of a resident tensor."""
        out = {}
        parts = part_bytes(self.tensors[name], *self._shapes[name])
        for part, line in self._blocks[name]:
            assert int(line["rows"]) == self._shapes[name][0]
            assert "count" not in line
            assert int(line["at"]) % 64 == 0
            out[part] = self._read(line["file"], int(line["at"]), parts.pop(part))
        assert not parts
        return out

    def count(self, layer: int) -> int:
        """Experts of a layer."""
        return self._moe[layer][0]

    def expert(self, layer: int, expert: int) -> tuple[dict[str, bytes], bytes]:
        """The arrays of an expert by ``gate.weight`` …, and the image they lie in."""
        wide = self._moe[layer][1]
        shapes = {"gate": (wide, self._hidden), "up": (wide, self._hidden),
                  "down": (self._hidden, wide)}  # fmt: skip
        where: dict[str, tuple[int, int]] = {}
        end = 0
        for projection, shape in shapes.items():
            for part, nbytes in part_bytes(self.experts[layer][projection], *shape).items():
                where[f"{projection}.{part}"] = (end, nbytes)
                end = up_to(end + nbytes, 64)
        line = self._records[layer]
        assert int(line["base"]) == 0
        assert int(line["stride"]) == up_to(end, 4096)
        at = expert * int(line["stride"])
        record = self._read(line["file"], at, int(line["stride"]))
        assert not any(record[end:])
        return {name: record[a : a + n] for name, (a, n) in where.items()}, record[:end]

    def _read(self, file: str, at: int, nbytes: int) -> bytes:
        with (self.path / self.files[int(file)]["path"]).open("rb") as opened:
            opened.seek(at)
            data = opened.read(nbytes)
        assert len(data) == nbytes
        return data


def rows_of(family: str, config: dict, name: str, matrix: np.ndarray) -> np.ndarray:
    """The rows that a core tensor takes out of the published projection it comes from.

    ``matrix`` is ``[out, ...]``; the head-wise interleaving is that of transformers' models.
    """
    word = name.rsplit(".", 1)[-1]
    if word in ("q", "q_gate") and family != "qwen3_moe":
        heads = matrix.reshape(config["num_attention_heads"], 2, config["head_dim"], -1)
        return heads[:, 0 if word == "q" else 1].reshape(-1, heads.shape[-1])
    if family == "qwen3_next" and word in ("qkv", "z", "b", "a"):
        keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
        share = values // keys
        if word in ("b", "a"):
            heads = matrix.reshape(keys, 2, share, -1)
            return heads[:, 0 if word == "b" else 1].reshape(values, -1)
        k, v = config["linear_key_head_dim"], share * config["linear_value_head_dim"]
        heads = matrix.reshape(keys, 2 * k + 2 * v, -1)
        cut = {"z": [heads[:, 2 * k + v :]],
               "qkv": [heads[:, :k], heads[:, k : 2 * k], heads[:, 2 * k : 2 * k + v]]}  # fmt: skip
        return np.concatenate([c.reshape(-1, heads.shape[-1]) for c in cut[word]])
    return matrix


_PLACES = {
    "mixer_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "q": "self_attn.q_proj", "q_gate": "self_attn.q_proj", "k": "self_attn.k_proj",
    "v": "self_attn.v_proj", "o": "self_attn.o_proj", "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm", "qkv": "linear_attn.in_proj_qkv",
    "z": "linear_attn.in_proj_z", "b": "linear_attn.in_proj_b", "a": "linear_attn.in_proj_a",
    "conv": "linear_attn.conv1d", "a_log": "linear_attn.A_log", "dt_bias": "linear_attn.dt_bias",
    "delta_norm": "linear_attn.norm", "out": "linear_attn.out_proj", "router": "mlp.gate",
    "shared_score": "mlp.shared_expert_gate", "shared_gate": "mlp.shared_expert.gate_proj",
    "shared_up": "mlp.shared_expert.up_proj", "shared_down": "mlp.shared_expert.down_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip


def published(family: str, name: str, prefix: str = "model.") -> str:
    """The module that a core tensor comes from, without ``.weight``."""
    if name == "lm_head":
        return prefix.removesuffix("model.") + "lm_head"
    if "." not in name:
        return prefix + {"embed": "embed_tokens", "norm": "norm"}[name]
    _, layer, word = name.split(".")
    place = _PLACES[word]
    if family == "qwen3_next":
        qkvz, ba = "linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba"
        place = {"qkv": qkvz, "z": qkvz, "b": ba, "a": ba}.get(word, place)
    return f"{prefix}layers.{layer}.{place}"
