"""From a config and the headers of its shards to a manifest: which tensor is what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flashmoe.errors import ModelFormatError, UnsupportedModelError
from flashmoe.families import Family, read_config, text_config
from flashmoe.manifest import Experts, Extent, Manifest, Quant, Tensor
from flashmoe.quantization import Quantization, read_quantization
from flashmoe.safetensors import Header
from flashmoe.source import Runs, Source, Stored
from flashmoe.spec import Attention, Delta, Dense, ModelSpec, MoE

PREFIXES = ("model.language_model.", "language_model.model.", "model.")
HEADS = ("lm_head", "language_model.lm_head")


def build_manifest(config: Mapping[str, Any], headers: Mapping[str, Header]) -> Manifest:
    """Describe a checkpoint by its config and the headers of its safetensors files.

    Args:
        config: ``config.json``.
        headers: By file name; the files need not be on this machine.

    Raises:
        UnsupportedModelError: A family, field, format or tensor that flashmoe does not run
            exactly, by name.
        ModelFormatError: Missing, misshapen or contradicting parts, by name.
    """
    family, spec = read_config(config)
    quantization = read_quantization(config, text_config(config))
    source = Source(headers, quantization)
    plain = is_mlx(quantization, headers) or not family.zero_centred_norms
    builder = _Builder(family, spec, source, 0 if plain else 1)
    builder.build()
    source.finish()
    manifest = Manifest(spec, source.files, builder.tensors, builder.experts)
    manifest.check()
    return manifest


def is_mlx(quantization: Quantization, headers: Mapping[str, Header]) -> bool:
    """Whether MLX wrote the files, so that its norms are not stored minus one.

    Convolutions tell: MLX moves their taps to the middle dimension. Where there are none, the
    config's ``quantization`` or the files' own metadata do.

    Raises:
        ModelFormatError: Some convolutions are MLX's and some are not.
    """
    layouts: dict[bool, str] = {}
    for header in headers.values():
        for info in header.tensors.values():
            if not info.name.endswith(".linear_attn.conv1d.weight") or len(info.shape) != 3:
                continue
            if (info.shape[1] == 1) != (info.shape[2] == 1):
                layouts[info.shape[2] == 1] = info.name
    if len(layouts) == 2:
        raise ModelFormatError(
            f"{layouts[True]} is laid out as MLX does and {layouts[False]} is not: "
            "these files are from two different checkpoints"
        )
    if layouts:
        return True in layouts
    return quantization.mlx or any(h.metadata.get("format") == "mlx" for h in headers.values())


class _Builder:
    """Takes a model's tensors out of a source, one layer after another."""

    def __init__(self, family: Family, spec: ModelSpec, source: Source, norm_add: int) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.experts: list[Experts] = []
        self._family = family
        self._spec = spec
        self._source = source
        self._norm_add = norm_add

    def build(self) -> None:
        spec, source = self._spec, self._source
        root = self._root()
        hidden = spec.hidden_size
        self._whole("embed", source.matrix(f"{root}embed_tokens", spec.vocab_size, hidden))
        self._norm("norm", f"{root}norm.weight", hidden)
        self._head()
        for index, layer in enumerate(spec.layers):
            name, path = f"layers.{index}.", f"{root}layers.{index}."
            self._norm(f"{name}mixer_norm", f"{path}input_layernorm.weight", hidden)
            if isinstance(layer.mixer, Attention):
                self._attention(name, f"{path}self_attn.", layer.mixer)
            else:
                self._delta(name, f"{path}linear_attn.", layer.mixer)
            self._norm(f"{name}ffn_norm", f"{path}post_attention_layernorm.weight", hidden)
            if isinstance(layer.ffn, Dense):
                self._swiglu(name, f"{path}mlp.", layer.ffn.intermediate_size)
            else:
                self._moe(index, name, f"{path}mlp.", layer.ffn)

    def _root(self) -> str:
        roots = [p for p in PREFIXES if f"{p}embed_tokens.weight" in self._source]
        if len(roots) != 1:
            places = " or ".join(f"{p}embed_tokens.weight" for p in roots or PREFIXES)
            what = "more than one of" if roots else "no"
            raise ModelFormatError(f"the checkpoint has {what} {places}")
        return roots[0]

    def _head(self) -> None:
        spec, source = self._spec, self._source
        heads = [h for h in HEADS if f"{h}.weight" in source]
        if not spec.tied:
            head = heads[0] if heads else HEADS[0]
            self._whole("lm_head", source.matrix(head, spec.vocab_size, spec.hidden_size))
        elif heads:
            raise UnsupportedModelError(
                f"config.json ties the output head to the embedding (tie_word_embeddings), but "
                f"the checkpoint has {heads[0]}.weight: set tie_word_embeddings to false to use it"
            )

    def _rows(
        self, name: str, stored: Stored, runs: Sequence[Runs], rows: int, add: int = 0
    ) -> None:
        """Add a tensor that consists of some rows of a stored matrix."""
        blocks = {part: stored.blocks(part, runs) for part in stored.parts}
        quant = stored.split_quant(runs)
        self.tensors[name] = Tensor(name, quant, rows, stored.cols, **blocks, add=add)

    def _whole(self, name: str, stored: Stored, add: int = 0) -> None:
        self._rows(name, stored, [Runs(0, stored.rows)], stored.rows, add)

    def _norm(self, name: str, path: str, length: int) -> None:
        self._whole(name, self._source.vector(path, length), self._norm_add)

    def _matrix(self, name: str, path: str, rows: int, cols: int) -> None:
        self._whole(name, self._source.matrix(path, rows, cols))

    def _attention(self, name: str, path: str, a: Attention) -> None:
        hidden, dim = self._spec.hidden_size, a.head_dim
        queries, keys = a.heads * dim, a.kv_heads * dim
        if a.gated:
            both = self._source.matrix(f"{path}q_proj", 2 * queries, hidden)
            self._rows(f"{name}q", both, [Runs(0, dim, a.heads, 2 * dim)], queries)
            self._rows(f"{name}q_gate", both, [Runs(dim, dim, a.heads, 2 * dim)], queries)
        else:
            self._matrix(f"{name}q", f"{path}q_proj", queries, hidden)
        self._matrix(f"{name}k", f"{path}k_proj", keys, hidden)
        self._matrix(f"{name}v", f"{path}v_proj", keys, hidden)
        self._matrix(f"{name}o", f"{path}o_proj", hidden, queries)
        if a.qk_norm:
            self._norm(f"{name}q_norm", f"{path}q_norm.weight", dim)
            self._norm(f"{name}k_norm", f"{path}k_norm.weight", dim)

    def _delta(self, name: str, path: str, d: Delta) -> None:
        source, hidden = self._source, self._spec.hidden_size
        values = d.value_heads * d.value_dim
        if self._family.delta_projections == "grouped":
            self._grouped(name, path, d)
        else:
            self._matrix(f"{name}qkv", f"{path}in_proj_qkv", d.channels, hidden)
            self._matrix(f"{name}z", f"{path}in_proj_z", values, hidden)
            self._matrix(f"{name}b", f"{path}in_proj_b", d.value_heads, hidden)
            self._matrix(f"{name}a", f"{path}in_proj_a", d.value_heads, hidden)
        self._whole(f"{name}conv", source.conv(f"{path}conv1d.weight", d.channels, d.conv_taps))
        self._whole(f"{name}a_log", source.vector(f"{path}A_log", d.value_heads))
        self._whole(f"{name}dt_bias", source.vector(f"{path}dt_bias", d.value_heads))
        self._whole(f"{name}delta_norm", source.vector(f"{path}norm.weight", d.value_dim))
        self._matrix(f"{name}out", f"{path}out_proj", hidden, values)

    def _grouped(self, name: str, path: str, d: Delta) -> None:
        """Take apart projections that hold, for each key head, its q, k, v, z and its b, a."""
        hidden, n = self._spec.hidden_size, d.key_heads
        share = d.value_heads // n
        wide = share * d.value_dim
        each = 2 * d.key_dim + 2 * wide
        qkvz = self._source.matrix(f"{path}in_proj_qkvz", n * each, hidden)
        q = Runs(0, d.key_dim, n, each)
        k = Runs(d.key_dim, d.key_dim, n, each)
        v = Runs(2 * d.key_dim, wide, n, each)
        z = Runs(2 * d.key_dim + wide, wide, n, each)
        self._rows(f"{name}qkv", qkvz, [q, k, v], d.channels)
        self._rows(f"{name}z", qkvz, [z], n * wide)
        ba = self._source.matrix(f"{path}in_proj_ba", 2 * d.value_heads, hidden)
        self._rows(f"{name}b", ba, [Runs(0, share, n, 2 * share)], d.value_heads)
        self._rows(f"{name}a", ba, [Runs(share, share, n, 2 * share)], d.value_heads)

    def _swiglu(self, name: str, path: str, wide: int) -> None:
        hidden = self._spec.hidden_size
        self._matrix(f"{name}gate", f"{path}gate_proj", wide, hidden)
        self._matrix(f"{name}up", f"{path}up_proj", wide, hidden)
        self._matrix(f"{name}down", f"{path}down_proj", hidden, wide)

    def _moe(self, index: int, name: str, path: str, moe: MoE) -> None:
        hidden, source = self._spec.hidden_size, self._source
        self._matrix(f"{name}router", f"{path}gate", moe.experts, hidden)
        if moe.shared_intermediate_size:
            self._matrix(f"{name}shared_score", f"{path}shared_expert_gate", 1, hidden)
            self._swiglu(f"{name}shared_", f"{path}shared_expert.", moe.shared_intermediate_size)
        if f"{path}experts.gate_up_proj" in source:
            quants, extents = self._fused(f"{path}experts.", moe)
        elif f"{path}switch_mlp.gate_proj.weight" in source:
            quants, extents = self._stacked(f"{path}switch_mlp.", moe)
        else:
            quants, extents = self._separate(f"{path}experts.", moe)
        gate, up, down = quants
        self.experts.append(Experts(index, gate, up, down, extents))

    def _shapes(self, moe: MoE) -> dict[str, tuple[int, int]]:
        wide, hidden = moe.intermediate_size, self._spec.hidden_size
        return {"gate": (wide, hidden), "up": (wide, hidden), "down": (hidden, wide)}

    def _fused(self, path: str, moe: MoE) -> tuple[list[Quant], list[Extent]]:
        """Stacks of all experts, gate above up in one of them."""
        wide, hidden = moe.intermediate_size, self._spec.hidden_size
        stack = (moe.experts,)
        both = self._source.matrix(f"{path}gate_up_proj", 2 * wide, hidden, stack, "")
        down = self._source.matrix(f"{path}down_proj", hidden, wide, stack, "")
        half = both.quant.row_bytes(hidden) * wide
        file, info = both.parts["weight"]
        extents = [
            Extent("gate.weight", file, info.at, 2 * half),
            Extent("up.weight", file, info.at + half, 2 * half),
            *_strided("down", down),
        ]
        return [both.quant, both.quant, down.quant], extents

    def _stacked(self, path: str, moe: MoE) -> tuple[list[Quant], list[Extent]]:
        """MLX's stacks, one for each projection and part."""
        quants: list[Quant] = []
        extents: list[Extent] = []
        for projection, (rows, cols) in self._shapes(moe).items():
            stored = self._source.matrix(f"{path}{projection}_proj", rows, cols, (moe.experts,))
            quants.append(stored.quant)
            extents.extend(_strided(projection, stored))
        return quants, extents

    def _separate(self, path: str, moe: MoE) -> tuple[list[Quant], list[Extent]]:
        """Every expert's projections by themselves."""
        quants: list[Quant] = []
        extents: list[Extent] = []
        source = self._source
        for projection, (rows, cols) in self._shapes(moe).items():
            first = source.matrix(f"{path}0.{projection}_proj", rows, cols)
            quants.append(first.quant)
            for part, (file, info) in first.parts.items():
                places = [(file, info.at)]
                before, after = path, info.name.removeprefix(f"{path}0")
                for expert in range(1, moe.experts):
                    found = source.take(f"{before}{expert}{after}", info.shape)
                    if found[1].dtype != info.dtype:
                        raise ModelFormatError(
                            f"tensor {found[1].name} is {found[1].dtype}, "
                            f"expert 0's is {info.dtype}"
                        )
                    places.append((found[0], found[1].at))
                extents.append(Extent(f"{projection}.{part}", 0, 0, None, places))
        return quants, extents


def _strided(projection: str, stored: Stored) -> list[Extent]:
    """The extents of a stack of matrices."""
    return [
        Extent(
            f"{projection}.{part}",
            file,
            info.at,
            stored.quant.part_bytes(part, stored.rows, stored.cols),
        )
        for part, (file, info) in stored.parts.items()
    ]
