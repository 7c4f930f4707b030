"""What a conversion will write: its files, and which of the source's bytes each part comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flashmoe.conversion.roles import in_role, roles_of
from flashmoe.errors import ArgumentError, ConversionError
from flashmoe.manifest import FLOAT32_IN_MEMORY, Manifest
from flashmoe.places import (
    AFFINE_BITS,
    AFFINE_GROUPS,
    ALIGN,
    PROJECTIONS,
    Blocks,
    Experts,
    Extent,
    FileEntry,
    Quant,
    RecordLayout,
    Tensor,
    align,
)
from flashmoe.spec import MoE

RESIDENT_NAME = "resident.bin"

Span = tuple[int, int, int]
"""File, offset and bytes of a stretch of the source."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One matrix on its way: an expert's projection, or a resident tensor.

    Attributes:
        name: The core's name of it, such as ``layers.3.gate`` or ``lm_head``.
        expert: Whose it is; -1 if it is resident.
        rows: Output features.
        cols: Input features.
        source: Its format in the source.
        target: Its format in the packed file.
        spans: For each part of the source's format, where its rows lie, in their order.
        places: For each part of the target's format, its offset in the packed file.
    """

    name: str
    expert: int
    rows: int
    cols: int
    source: Quant
    target: Quant
    spans: dict[str, Sequence[Span]]
    places: dict[str, int]

    @property
    def what(self) -> str:
        """Its name, for messages."""
        if self.expert < 0:
            return f"tensor {self.name}"
        _, layer, projection = self.name.split(".")
        return f"layer {layer}, expert {self.expert}, {projection}"

    @property
    def files(self) -> set[int]:
        """The source files it comes from."""
        return {file for spans in self.spans.values() for file, _, _ in spans}

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return self.source.matrix_bytes(self.rows, self.cols)


@dataclass(frozen=True, slots=True)
class Output:
    """A packed file.

    Attributes:
        name: Its name in the packed directory.
        nbytes: Its size.
        layer: The layer whose experts it holds; None for the resident tensors.
        files: The source files that it is made from.
        source_bytes: Bytes to read for it.
    """

    name: str
    nbytes: int
    layer: int | None
    files: frozenset[int]
    source_bytes: int


@dataclass(frozen=True, slots=True)
class Formats:
    """Which format each matrix gets.

    Attributes:
        bits: Bits to quantise to; None keeps the source's own formats, FP8 becoming bf16.
        group: Numbers that share a scale.
        bits_for: Bits by role, in place of ``bits``; see :mod:`flashmoe.conversion.roles`.
    """

    bits: int | None
    group: int
    bits_for: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.bits is not None and self.bits not in AFFINE_BITS:
            raise ArgumentError(f"bits must be one of {AFFINE_BITS}, not {self.bits!r}")
        if self.group not in AFFINE_GROUPS:
            raise ArgumentError(f"group_size must be one of {AFFINE_GROUPS}, not {self.group!r}")

    def of(self, name: str, source: Quant, cols: int, routed: bool = False) -> Quant:
        """The format that a matrix gets.

        As mlx-lm does, the router and the shared expert's score take 8 bits in groups of 64
        whatever the others take, and a matrix whose rows the group does not divide stays as is.

        Args:
            name: The core's name of it.
            source: Its format.
            cols: Numbers in a row.
            routed: Whether it belongs to routed experts.

        Raises:
            ConversionError: It is quantised already, and not as asked for.
        """
        word = name.rsplit(".", 1)[-1]
        kept = Quant("bf16") if source.kind == "fp8" else source
        if word in FLOAT32_IN_MEMORY:
            return kept
        if word in ("router", "shared_score"):
            bits, group = self.bits and 8, 64
        else:
            bits, group = self._bits(word, routed), self.group
        if bits is None:
            return kept
        if kept.kind == "affine":
            raise ConversionError(
                f"{name} is quantised already ({source.text}); convert without bits to keep it, "
                "or convert the bf16 or FP8 release of this model"
            )
        if cols % self.group or cols % group:
            return kept
        return Quant("affine", bits, group, kept.kind)

    def _bits(self, word: str, routed: bool) -> int | None:
        for role in roles_of(word, routed):
            if role in self.bits_for:
                return self.bits_for[role]
        return self.bits


class Plan:
    """The packed directory that a source becomes.

    Args:
        source: Where the source's weights lie.
        formats: Which format each matrix gets.

    Attributes:
        manifest: The packed directory's, without checksums.
        outputs: Its weight files, in the order of ``manifest.files``.

    Raises:
        ConversionError: The source is quantised already, and not as asked for.
    """

    def __init__(self, source: Manifest, formats: Formats) -> None:
        if (
            formats.bits is None
            and not formats.bits_for
            and any(experts.packed for experts in source.experts)
        ):
            raise ConversionError("the source is packed already; there is nothing to convert")
        self._source = source
        _check_roles(source, formats)
        tensors: dict[str, Tensor] = {}
        at = 0
        for tensor in source.tensors.values():
            quant = formats.of(tensor.name, tensor.quant, tensor.cols)
            tensors[tensor.name], at = _place(tensor, quant, at)
        files = [FileEntry(RESIDENT_NAME, at)]
        experts: list[Experts] = []
        self.manifest = Manifest(source.spec, files, tensors, experts)
        for layer in source.experts:
            shapes = source.expert_shapes(layer.layer)
            gate, up, down = (
                formats.of(f"layers.{layer.layer}.{p}", layer.quant(p), shapes[p][1], routed=True)
                for p in PROJECTIONS
            )
            place = Extent("record", len(files), 0, 0)
            experts.append(Experts(layer.layer, gate, up, down, [place]))
            stride = self.manifest.record_layout(layer.layer).record_stride
            experts[-1] = replace(experts[-1], extents=[replace(place, stride=stride)])
            files.append(FileEntry(f"experts-{layer.layer:02d}.bin", self._count(layer) * stride))
        self.outputs = [self._output(i, file) for i, file in enumerate(files)]

    def _count(self, experts: Experts) -> int:
        ffn = self._source.spec.layers[experts.layer].ffn
        assert isinstance(ffn, MoE)
        return ffn.experts

    def _output(self, index: int, file: FileEntry) -> Output:
        touched: set[int] = set()
        nbytes = 0
        for piece in self.pieces(index):
            touched |= piece.files
            nbytes += piece.nbytes
        layer = self.manifest.experts[index - 1].layer if index else None
        return Output(file.path, file.nbytes, layer, frozenset(touched), nbytes)

    def pieces(self, output: int) -> Iterator[Piece]:
        """The matrices of a packed file, in the order they have there.

        Args:
            output: Index into ``outputs``.
        """
        return self._resident() if output == 0 else self._records(output - 1)

    def _resident(self) -> Iterator[Piece]:
        for name, target in self.manifest.tensors.items():
            source = self._source.tensors[name]
            yield Piece(
                name,
                -1,
                source.rows,
                source.cols,
                source.quant,
                target.quant,
                {part: list(source.spans(part)) for part in source.quant.parts},
                {part: target.blocks(part)[0].at for part in target.quant.parts},
            )

    def _records(self, index: int) -> Iterator[Piece]:
        source, target = self._source.experts[index], self.manifest.experts[index]
        layer = source.layer
        shapes = self._source.expert_shapes(layer)
        old, new = self._source.record_layout(layer), self.manifest.record_layout(layer)
        extents = {extent.part: extent for extent in source.extents}
        for expert in range(self._count(source)):
            for projection in PROJECTIONS:
                rows, cols = shapes[projection]
                before, after = source.quant(projection), target.quant(projection)
                spans: dict[str, Sequence[Span]] = {}
                for part in before.parts:
                    name = f"{projection}.{part}"
                    spans[part] = [(*_part(extents, old, name, expert), old.parts[name].nbytes)]
                record = expert * new.record_stride
                places = {p: record + new.parts[f"{projection}.{p}"].at for p in after.parts}
                name = f"layers.{layer}.{projection}"
                yield Piece(name, expert, rows, cols, before, after, spans, places)


def _check_roles(source: Manifest, formats: Formats) -> None:
    """Bits for what a model does not have are a mistake."""
    words = {name.rsplit(".", 1)[-1] for name in source.tensors}
    there = {role for word in words if in_role(word) for role in roles_of(word, routed=False)}
    if source.experts:
        there |= {role for word in PROJECTIONS for role in roles_of(word, routed=True)}
    missing = [role for role in formats.bits_for if role not in there]
    if missing:
        raise ConversionError(
            f"this model has no matrix of the role {missing[0]}, for which bits were given; it has "
            f"{', '.join(sorted(there))}"
        )


def _place(tensor: Tensor, quant: Quant, at: int) -> tuple[Tensor, int]:
    """A tensor laid down from byte ``at`` of the resident file, and where the next one starts."""
    blocks: dict[str, list[Blocks]] = {}
    for part in quant.parts:
        blocks[part] = [Blocks(0, at, tensor.rows)]
        at = align(at + quant.part_bytes(part, tensor.rows, tensor.cols), ALIGN)
    return Tensor(tensor.name, quant, tensor.rows, tensor.cols, add=tensor.add, **blocks), at


def _part(
    extents: dict[str, Extent], layout: RecordLayout, name: str, expert: int
) -> tuple[int, int]:
    """File and offset of one part of an expert in the source."""
    if name in extents:
        return extents[name].place(expert)
    file, at = extents["record"].place(expert)
    return file, at + layout.parts[name].at
