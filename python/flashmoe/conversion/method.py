"""How numbers become affine codes: rounded to the nearest, or searched for the least error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.conversion.plan import Piece
from flashmoe.conversion.quantise import quantise
from flashmoe.places import Quant

METHODS = ("rtn", "search")

Quantiser = Callable[[Piece, NDArray[np.float32]], dict[str, NDArray[Any]]]
"""Some rows of a piece, float32 ``[rows, cols]``, as the parts of its target's affine format."""

_NUMBERS = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}


def nearest(piece: Piece, values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Round to the nearest code between the ends of each group, as MLX does.

    Args:
        piece: Where the rows are from.
        values: Finite numbers, float32 ``[rows, cols]``.
    """
    return quantise(values, piece.target)


def search(piece: Piece, values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """Choose scale, bias and codes of each group for the least squared error.

    Args:
        piece: Where the rows are from.
        values: Finite numbers, float32 ``[rows, cols]``.
    """
    from flashmoe._core import affine_search

    parts = _room(piece.target, *values.shape)
    affine_search(np.ascontiguousarray(values), *_format(piece.target), *parts.values())
    return _typed(parts, piece.target)


def _format(quant: Quant) -> tuple[int, int, str]:
    return quant.bits, quant.group, quant.scale


def _room(quant: Quant, rows: int, cols: int) -> dict[str, NDArray[np.uint8]]:
    return {
        part: np.empty((rows, quant.part_bytes(part, 1, cols)), np.uint8) for part in quant.parts
    }


def _typed(parts: dict[str, NDArray[np.uint8]], quant: Quant) -> dict[str, NDArray[Any]]:
    kind = _NUMBERS[quant.scale]
    return {p: data if p == "weight" else data.view(kind) for p, data in parts.items()}
