"""From the source's bytes to packed ones, a few rows at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.conversion.method import Quantiser
from flashmoe.conversion.numbers import all_finite, decode_fp8, from_float32, to_float32
from flashmoe.conversion.plan import Piece, Span
from flashmoe.errors import NumericalError
from flashmoe.places import FLOATS

Read = Callable[[int, NDArray[np.uint8], int], None]
"""Fills a buffer from a source file's index and an offset."""

SLAB_NUMBERS = 1 << 20
"""Numbers converted at once; a dozen times as many bytes are held meanwhile."""

COPY_NUMBERS = 1 << 22
"""Numbers copied at once."""


@dataclass(frozen=True, slots=True)
class Slab:
    """Rows ``first`` to ``last - 1`` of a piece."""

    piece: Piece
    first: int
    last: int

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return self.piece.source.matrix_bytes(self.last - self.first, self.piece.cols)


def slabs(piece: Piece) -> Iterator[Slab]:
    """A piece in slabs; blocks of rows that share a scale stay together."""
    high = piece.source.block[0] or 1
    most = COPY_NUMBERS if piece.source == piece.target else SLAB_NUMBERS
    step = max(most // piece.cols // high, 1) * high
    for first in range(0, piece.rows, step):
        yield Slab(piece, first, min(first + step, piece.rows))


def convert_slab(
    slab: Slab, read: Read, names: Sequence[str], quantiser: Quantiser
) -> list[tuple[int, NDArray[Any]]]:
    """Read some rows and give them their new form.

    Args:
        slab: Which rows.
        read: Reads the source's files.
        names: Names of the source's files, for messages.
        quantiser: Makes affine rows.

    Returns:
        Arrays, and where each goes in the packed file.

    Raises:
        NumericalError: NaN or infinity among the numbers or scales.
        ReadError: The source cannot be read.
    """
    piece, rows = slab.piece, slab.last - slab.first
    source, target, cols = piece.source, piece.target, piece.cols
    stored = {part: _read_rows(slab, part, read) for part in source.parts}
    for part, data in stored.items():
        kind = source.kind if part == "weight" else source.scale
        if kind in (*FLOATS, "e8m0") and not all_finite(data, kind):
            raise _not_finite(slab, part, names)
    parts: dict[str, NDArray[Any]]
    if source == target:
        parts = dict(stored)
    else:
        if source.kind == "fp8":
            values = decode_fp8(stored["weight"], stored["scales"], source, cols)
            if not np.isfinite(values).all():
                raise _not_finite(slab, "weight", names)
        else:
            values = to_float32(stored["weight"], source.kind).reshape(rows, cols)
        if target.kind == "affine":
            parts = quantiser(piece, values)
            scales = parts["scales"].view(np.uint8).reshape(-1)
            if not all_finite(scales, target.scale):
                raise NumericalError(
                    f"{piece.what}: rows {slab.first} to {slab.last - 1} hold numbers too far "
                    f"apart to share a {target.scale} scale; convert without bits"
                )
        else:
            parts = {"weight": from_float32(values, target.kind)}
    return [
        (piece.places[part] + target.part_bytes(part, slab.first, cols), data)
        for part, data in parts.items()
    ]


def _not_finite(slab: Slab, part: str, names: Sequence[str]) -> NumericalError:
    file, at, _ = next(_stretches(slab.piece.spans[part], *_range(slab, part)))
    return NumericalError(
        f"{slab.piece.what}: {part}, rows {slab.first} to {slab.last - 1}, from byte {at} of "
        f"{names[file]}, have NaN or infinity in them; the source is damaged, get it again"
    )


def _range(slab: Slab, part: str) -> tuple[int, int]:
    """Which bytes of a part are the slab's."""
    quant, cols = slab.piece.source, slab.piece.cols
    return quant.part_bytes(part, slab.first, cols), quant.part_bytes(part, slab.last, cols)


def _read_rows(slab: Slab, part: str, read: Read) -> NDArray[np.uint8]:
    first, last = _range(slab, part)
    data = np.empty(last - first, np.uint8)
    done = 0
    for file, at, nbytes in _stretches(slab.piece.spans[part], first, last):
        read(file, data[done : done + nbytes], at)
        done += nbytes
    return data


def _stretches(spans: Sequence[Span], first: int, last: int) -> Iterator[Span]:
    """Where bytes ``first`` to ``last - 1`` lie of what the spans hold one after another."""
    starts = [0, *accumulate(nbytes for _, _, nbytes in spans)]
    index = bisect_right(starts, first) - 1
    while first < last:
        file, at, nbytes = spans[index]
        skip = first - starts[index]
        take = min(nbytes - skip, last - first)
        yield file, at + skip, take
        first, index = first + take, index + 1
