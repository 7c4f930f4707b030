"""How numbers are stored and where they lie: the words a manifest is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from flashmoe.errors import ModelFormatError

ALIGN = 64
"""Each matrix of an expert starts on a multiple of this in its slot."""

RECORD_ALIGN = 4096
"""Each record of a packed file starts on a multiple of this."""

SCALAR_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "e8m0": 1}
FLOATS = ("f32", "f16", "bf16")
AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)


def align(value: int, to: int) -> int:
    """The next multiple of ``to``."""
    return -(-value // to) * to


@dataclass(frozen=True, slots=True)
class Quant:
    """How a matrix's numbers are stored.

    Attributes:
        kind: ``f32``, ``f16``, ``bf16``; ``affine`` (MLX: code * scale + bias by groups of a
            row); ``fp8`` (e4m3 times the scale of its block; a source of conversion only).
        bits: Bits per code, for affine.
        group: Codes that share a scale and a bias, for affine.
        scale: Kind of the scales' numbers, for affine and fp8.
        block: Rows and columns that share a scale, for fp8.
    """

    kind: str
    bits: int = 0
    group: int = 0
    scale: str = ""
    block: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.kind in FLOATS:
            good = (self.bits, self.group, self.scale, self.block) == (0, 0, "", (0, 0))
        elif self.kind == "affine":
            good = (
                self.bits in AFFINE_BITS
                and self.group in AFFINE_GROUPS
                and self.scale in FLOATS
                and self.block == (0, 0)
            )
        elif self.kind == "fp8":
            good = (
                (self.bits, self.group) == (0, 0)
                and self.scale in SCALAR_BYTES
                and min(self.block) >= 1
            )
        else:
            good = False
        if not good:
            raise ModelFormatError(f"there is no number format {self.text!r}")

    @property
    def text(self) -> str:
        """``f32``, ``affine:4:64:bf16``, ``fp8:128:128:bf16``."""
        if self.kind == "affine":
            return f"affine:{self.bits}:{self.group}:{self.scale}"
        if self.kind == "fp8":
            return f"fp8:{self.block[0]}:{self.block[1]}:{self.scale}"
        return self.kind

    @classmethod
    def parse(cls, text: str) -> Quant:
        """The format that :attr:`text` names.

        Raises:
            ModelFormatError: There is no such format.
        """
        words = text.split(":")
        numbers = [int(w) for w in words[1:3] if w.isascii() and w.isdigit() and len(w) < 10]
        if len(words) == 4 and len(numbers) == 2 and words[0] == "affine":
            quant = cls("affine", numbers[0], numbers[1], words[3])
        elif len(words) == 4 and len(numbers) == 2 and words[0] == "fp8":
            quant = cls("fp8", scale=words[3], block=(numbers[0], numbers[1]))
        else:
            quant = cls(text)
        if quant.text != text:
            raise ModelFormatError(f"there is no number format {text!r}")
        return quant

    @property
    def parts(self) -> tuple[str, ...]:
        """The arrays a matrix consists of, in the order they have in a slot."""
        if self.kind == "affine":
            return ("weight", "scales", "biases")
        return ("weight", "scales") if self.kind == "fp8" else ("weight",)

    def row_bytes(self, cols: int) -> int:
        """Bytes of one row of ``cols`` stored numbers.

        Raises:
            ModelFormatError: ``cols`` is no multiple of the group.
        """
        if self.kind == "affine":
            if cols % self.group:
                raise ModelFormatError(f"rows of {cols} numbers cannot be {self.text}")
            return cols * self.bits // 8
        return cols if self.kind == "fp8" else cols * SCALAR_BYTES[self.kind]

    def scale_row_bytes(self, cols: int) -> int:
        """Bytes of one row of scales, and of biases likewise; 0 for floats."""
        if self.kind == "affine":
            return cols // self.group * SCALAR_BYTES[self.scale]
        if self.kind == "fp8":
            return -(-cols // self.block[1]) * SCALAR_BYTES[self.scale]
        return 0

    def scale_rows(self, rows: int) -> int:
        """Rows of scales of a matrix of ``rows`` rows."""
        return -(-rows // self.block[0]) if self.kind == "fp8" else rows

    def part_bytes(self, part: str, rows: int, cols: int) -> int:
        """Bytes of the whole array ``part`` of a ``[rows, cols]`` matrix."""
        if part == "weight":
            return rows * self.row_bytes(cols)
        return self.scale_rows(rows) * self.scale_row_bytes(cols)

    def matrix_bytes(self, rows: int, cols: int) -> int:
        """Stored bytes of a ``[rows, cols]`` matrix, without padding."""
        return sum(self.part_bytes(part, rows, cols) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Blocks:
    """``count`` blocks of ``rows`` rows, ``stride`` bytes apart, the first at byte ``at``.

    Attributes:
        file: Index of the file.
        at: Byte offset in the file.
        rows: Rows in one block.
        count: Number of blocks.
        stride: Bytes from one block's start to the next one's; None: no gap.
    """

    file: int
    at: int
    rows: int
    count: int = 1
    stride: int | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """One resident matrix and where its rows lie.

    Attributes:
        name: The core's name of it.
        quant: How its numbers are stored.
        rows: Output features.
        cols: Input features.
        weight: Its rows, in order.
        scales: Rows of scales, in order; for fp8 one row of them serves ``quant.block[0]`` rows.
        biases: Rows of biases, in order; affine only.
        add: Added to each number while loading (1 for zero-centred norms).
    """

    name: str
    quant: Quant
    rows: int
    cols: int
    weight: list[Blocks]
    scales: list[Blocks] = field(default_factory=list)
    biases: list[Blocks] = field(default_factory=list)
    add: int = 0

    def blocks(self, part: str) -> list[Blocks]:
        """The blocks of ``weight``, ``scales`` or ``biases``."""
        return {"weight": self.weight, "scales": self.scales, "biases": self.biases}[part]

    def spans(self, part: str) -> Iterator[tuple[int, int, int]]:
        """Yield file, offset and bytes of each block of ``part``, in the order of the rows."""
        row = self.quant.row_bytes if part == "weight" else self.quant.scale_row_bytes
        row_bytes = row(self.cols)
        for b in self.blocks(part):
            nbytes = b.rows * row_bytes
            step = nbytes if b.stride is None else b.stride
            for i in range(b.count):
                yield b.file, b.at + i * step, nbytes

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return self.quant.matrix_bytes(self.rows, self.cols)


@dataclass(frozen=True, slots=True)
class Extent:
    """Where one part of each expert of a layer lies.

    Attributes:
        part: ``gate.weight`` … ``down.biases``, or ``record`` for the whole slot image.
        file: Index of the file, where the experts are evenly spaced.
        base: Byte offset of expert 0.
        stride: Bytes from one expert to the next; None where ``each`` is given.
        each: File and byte offset of every expert; None where they are evenly spaced.
    """

    part: str
    file: int
    base: int
    stride: int | None = None
    each: list[tuple[int, int]] | None = None

    def place(self, expert: int) -> tuple[int, int]:
        """File and byte offset of this part of ``expert``."""
        if self.each is not None:
            return self.each[expert]
        return self.file, self.base + expert * (self.stride or 0)


@dataclass(frozen=True, slots=True)
class Experts:
    """The routed experts of a layer.

    Attributes:
        layer: Index of the layer.
        gate: Format of the gate projections.
        up: Format of the up projections.
        down: Format of the down projections.
        extents: Where their parts lie.
        checksums: XXH3-64 of each expert's slot image, where recorded.
    """

    layer: int
    gate: Quant
    up: Quant
    down: Quant
    extents: list[Extent]
    checksums: list[int] | None = None

    def quant(self, projection: str) -> Quant:
        """The format of ``gate``, ``up`` or ``down``."""
        return {"gate": self.gate, "up": self.up, "down": self.down}[projection]

    @property
    def parts(self) -> tuple[str, ...]:
        """All parts an expert consists of, in the order they have in a slot."""
        return tuple(f"{p}.{part}" for p in PROJECTIONS for part in self.quant(p).parts)

    @property
    def packed(self) -> bool:
        """Whether each expert is one record."""
        return len(self.extents) == 1 and self.extents[0].part == "record"


PROJECTIONS = ("gate", "up", "down")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the model directory; ``sha256`` is 64 hexadecimal digits where recorded."""

    path: str
    nbytes: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """One array of an expert in its slot.

    Attributes:
        name: ``gate.weight`` … ``down.biases``.
        at: Byte offset in the slot, a multiple of 64.
        nbytes: Bytes of the array, without padding.
    """

    name: str
    at: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class RecordLayout:
    """An expert's image in a slot, and so its record in a packed file.

    Attributes:
        parts: Its arrays by name, in order.
        nbytes: Bytes of the image, a multiple of 64.
        record_stride: Bytes from one record to the next in a packed file, a multiple of 4096.
    """

    parts: dict[str, Part]
    nbytes: int
    record_stride: int


def check_file_name(name: str) -> None:
    """Refuse a file name that could leave the model directory or break a line of the manifest.

    Raises:
        ModelFormatError: Naming it.
    """
    plain = 0 < len(name) <= 255 and all("!" <= c <= "~" and c not in "/\\:" for c in name)
    if not plain or name == "." or ".." in name:
        raise ModelFormatError(
            f"file name {name[:300]!r} is not a plain name inside the model directory"
        )
