"""What a model is and where each of its bytes lies.

The text form goes to the core, in memory for a checkpoint opened in place and as ``manifest.fm``
in a packed directory. ``csrc/README.md`` describes its grammar.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashmoe import manifest_text
from flashmoe.errors import ModelFormatError
from flashmoe.places import (
    ALIGN,
    PROJECTIONS,
    RECORD_ALIGN,
    Blocks,
    Experts,
    Extent,
    FileEntry,
    Part,
    Quant,
    RecordLayout,
    Tensor,
    align,
    check_file_name,
)
from flashmoe.spec import Attention, ModelSpec, MoE

__all__ = [
    "ALIGN",
    "PROJECTIONS",
    "RECORD_ALIGN",
    "Blocks",
    "Experts",
    "Extent",
    "FileEntry",
    "Manifest",
    "Part",
    "Quant",
    "RecordLayout",
    "Tensor",
    "align",
    "check_file_name",
    "tensor_shapes",
]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model and the place of all its weights."""

    spec: ModelSpec
    files: list[FileEntry]
    tensors: dict[str, Tensor]
    experts: list[Experts]

    def to_text(self) -> str:
        """The text form; :meth:`parse` reads back an equal manifest."""
        return manifest_text.write(self.spec, self.files, self.tensors.values(), self.experts)

    @classmethod
    def parse(cls, text: str) -> Manifest:
        """Read the text form, trusting nothing.

        Raises:
            ModelFormatError: Naming the line, and what it must be.
        """
        manifest = cls(*manifest_text.parse(text))
        manifest.check()
        return manifest

    def experts_of(self, layer: int) -> Experts:
        """The experts of ``layer``.

        Raises:
            ModelFormatError: The layer has none.
        """
        for experts in self.experts:
            if experts.layer == layer:
                return experts
        raise ModelFormatError(f"layer {layer} has no routed experts")

    def expert_shapes(self, layer: int) -> dict[str, tuple[int, int]]:
        """Rows and columns of an expert's gate, up and down projections."""
        ffn = self.spec.layers[layer].ffn
        if not isinstance(ffn, MoE):
            raise ModelFormatError(f"layer {layer} has no routed experts")
        wide, narrow = ffn.intermediate_size, self.spec.hidden_size
        return {"gate": (wide, narrow), "up": (wide, narrow), "down": (narrow, wide)}

    def record_layout(self, layer: int) -> RecordLayout:
        """The slot image of one expert of ``layer``."""
        experts, shapes = self.experts_of(layer), self.expert_shapes(layer)
        parts: dict[str, Part] = {}
        at = 0
        for projection in PROJECTIONS:
            quant = experts.quant(projection)
            for part in quant.parts:
                nbytes = quant.part_bytes(part, *shapes[projection])
                name = f"{projection}.{part}"
                parts[name] = Part(name, at, nbytes)
                at = align(at + nbytes, ALIGN)
        return RecordLayout(parts, at, align(at, RECORD_ALIGN))

    @property
    def resident_bytes(self) -> int:
        """Bytes that the tensors, everything but routed experts, take in memory."""
        return sum(_memory_bytes(tensor) for tensor in self.tensors.values())

    def expert_bytes(self, layer: int) -> int:
        """Bytes of one expert of ``layer`` in a slot."""
        return self.record_layout(layer).nbytes

    @property
    def total_expert_bytes(self) -> int:
        """Bytes of the slot images of all experts of all layers."""
        total = 0
        for experts in self.experts:
            ffn = self.spec.layers[experts.layer].ffn
            assert isinstance(ffn, MoE)
            total += ffn.experts * self.expert_bytes(experts.layer)
        return total

    def check(self) -> None:
        """Check that tensors and experts are those the spec asks for and lie inside their files.

        Raises:
            ModelFormatError: Naming the tensor, or layer and part.
        """
        self.spec.validate()
        _check_tensors(self)
        _check_experts(self)


FLOAT32_IN_MEMORY = frozenset(
    {"norm", "mixer_norm", "ffn_norm", "q_norm", "k_norm", "delta_norm", "conv", "a_log", "dt_bias"}
)
"""Last words of the names of tensors that the core widens to float32 while loading."""


def _memory_bytes(tensor: Tensor) -> int:
    if tensor.name.rsplit(".", 1)[-1] in FLOAT32_IN_MEMORY:
        return align(tensor.rows * tensor.cols * 4, ALIGN)
    quant = tensor.quant
    return sum(align(quant.part_bytes(p, tensor.rows, tensor.cols), ALIGN) for p in quant.parts)


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """Rows and columns of every tensor that a model has, by name, in the order of the text."""
    hidden = spec.hidden_size
    shapes = {"embed": (spec.vocab_size, hidden), "norm": (1, hidden)}
    if not spec.tied:
        shapes["lm_head"] = (spec.vocab_size, hidden)
    for index, layer in enumerate(spec.layers):
        own = {"mixer_norm": (1, hidden)}
        if isinstance(layer.mixer, Attention):
            a = layer.mixer
            queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
            own["q"] = (queries, hidden)
            if a.gated:
                own["q_gate"] = (queries, hidden)
            own |= {"k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
            if a.qk_norm:
                own |= {"q_norm": (1, a.head_dim), "k_norm": (1, a.head_dim)}
        else:
            d = layer.mixer
            values = d.value_heads * d.value_dim
            own |= {
                "qkv": (d.channels, hidden),
                "z": (values, hidden),
                "b": (d.value_heads, hidden),
                "a": (d.value_heads, hidden),
                "conv": (d.channels, d.conv_taps),
                "a_log": (1, d.value_heads),
                "dt_bias": (1, d.value_heads),
                "delta_norm": (1, d.value_dim),
                "out": (hidden, values),
            }
        own["ffn_norm"] = (1, hidden)
        if isinstance(layer.ffn, MoE):
            own |= _moe_shapes(layer.ffn, hidden)
        else:
            own |= _ffn_shapes(layer.ffn.intermediate_size, hidden)
        shapes |= {f"layers.{index}.{name}": shape for name, shape in own.items()}
    return shapes


def _ffn_shapes(wide: int, hidden: int, prefix: str = "") -> dict[str, tuple[int, int]]:
    return {
        f"{prefix}gate": (wide, hidden),
        f"{prefix}up": (wide, hidden),
        f"{prefix}down": (hidden, wide),
    }


def _moe_shapes(moe: MoE, hidden: int) -> dict[str, tuple[int, int]]:
    shapes = {"router": (moe.experts, hidden)}
    if moe.shared_intermediate_size:
        shapes["shared_score"] = (1, hidden)
        shapes |= _ffn_shapes(moe.shared_intermediate_size, hidden, "shared_")
    return shapes


def _check_inside(files: list[FileEntry], file: int, at: int, nbytes: int, what: str) -> None:
    if not 0 <= file < len(files):
        raise ModelFormatError(f"{what} is in file {file} of {len(files)}")
    if at < 0 or at + nbytes > files[file].nbytes:
        raise ModelFormatError(
            f"{what} is {nbytes} bytes at {at} of {files[file].path}, "
            f"which has {files[file].nbytes} bytes"
        )


def _check_tensors(manifest: Manifest) -> None:
    wanted = tensor_shapes(manifest.spec)
    for name in manifest.tensors:
        if name not in wanted:
            raise ModelFormatError(f"tensor {name} has no place in this model")
    for name, (rows, cols) in wanted.items():
        tensor = manifest.tensors.get(name)
        if tensor is None:
            raise ModelFormatError(f"tensor {name} [{rows}, {cols}] is missing")
        if (tensor.rows, tensor.cols) != (rows, cols):
            raise ModelFormatError(
                f"tensor {name} is [{tensor.rows}, {tensor.cols}]; it must be [{rows}, {cols}]"
            )
        _check_tensor(manifest.files, tensor)


def _check_tensor(files: list[FileEntry], tensor: Tensor) -> None:
    quant = tensor.quant
    quant.row_bytes(tensor.cols)  # refuses columns that the group does not divide
    for part in ("weight", "scales", "biases"):
        what = f"{part} of tensor {tensor.name}"
        rows = sum(b.rows * b.count for b in tensor.blocks(part))
        want = 0
        if part in quant.parts:
            want = tensor.rows if part == "weight" else quant.scale_rows(tensor.rows)
        if rows != want:
            raise ModelFormatError(f"{what}: {rows} rows are placed; there must be {want}")
        row = quant.row_bytes if part == "weight" else quant.scale_row_bytes
        for b in tensor.blocks(part):  # not block by block: there may be millions
            nbytes = b.rows * row(tensor.cols)
            step = nbytes if b.stride is None else b.stride
            _check_inside(files, b.file, b.at, (b.count - 1) * step + nbytes, what)


def _check_experts(manifest: Manifest) -> None:
    moes = {i: y.ffn for i, y in enumerate(manifest.spec.layers) if isinstance(y.ffn, MoE)}
    if [e.layer for e in manifest.experts] != list(moes):
        raise ModelFormatError(
            f"experts are placed for layers {[e.layer for e in manifest.experts]}; "
            f"the layers with experts are {list(moes)}"
        )
    for experts in manifest.experts:
        _check_extents(manifest, experts, moes[experts.layer].experts)


def _check_extents(manifest: Manifest, experts: Experts, count: int) -> None:
    layer = experts.layer
    layout = manifest.record_layout(layer)
    sizes = {name: part.nbytes for name, part in layout.parts.items()}
    if experts.packed:
        sizes = {"record": layout.nbytes}
    given = tuple(extent.part for extent in experts.extents)
    if sorted(given) != sorted(sizes):
        raise ModelFormatError(f"layer {layer}: extents {given}; they must be {tuple(sizes)}")
    if experts.checksums is not None and len(experts.checksums) != count:
        raise ModelFormatError(
            f"layer {layer}: {len(experts.checksums)} checksums for {count} experts"
        )
    for extent in experts.extents:
        what = f"layer {layer}: {extent.part}"
        nbytes = sizes[extent.part]
        if extent.each is None:
            stride = extent.stride or 0
            if count > 1 and stride < nbytes:
                raise ModelFormatError(f"{what}: stride {stride} is less than {nbytes} bytes")
            _check_inside(
                manifest.files, extent.file, extent.base, (count - 1) * stride + nbytes, what
            )
            continue
        if len(extent.each) != count:
            raise ModelFormatError(f"{what}: {len(extent.each)} places for {count} experts")
        for file, at in extent.each:
            if not (
                0 <= file < len(manifest.files) and 0 <= at <= manifest.files[file].nbytes - nbytes
            ):
                _check_inside(manifest.files, file, at, nbytes, what)
