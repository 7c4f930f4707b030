"""MLX's affine quantiser: to the bit the codes, scales and biases that ``mx.quantize`` makes.

All of its arithmetic is float32, whatever the weights' own format; scales and biases are rounded
to the latter at the very end, after the codes are chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.conversion.numbers import from_float32
from flashmoe.places import Quant

_SMALLEST_SCALE = np.float32(1e-7)


def quantise(values: NDArray[np.float32], quant: Quant) -> dict[str, NDArray[Any]]:
    """Quantise the rows of a matrix.

    Args:
        values: Finite numbers, float32 ``[rows, cols]``; ``cols`` is a multiple of the group.
        quant: The affine format to make.

    Returns:
        ``weight``: uint8 ``[rows, cols * bits / 8]``; ``scales`` and ``biases``:
        ``[rows, cols / group]`` in the format's own numbers. A scale is infinite where the
        numbers of a group span more than float32 holds.
    """
    rows, cols = values.shape
    groups = values.reshape(rows, cols // quant.group, quant.group)
    # numbers so far apart that float32 cannot hold their distance give an infinite scale
    with np.errstate(over="ignore", invalid="ignore"):
        return _quantise(groups, quant)


def _quantise(groups: NDArray[np.float32], quant: Quant) -> dict[str, NDArray[Any]]:
    rows = len(groups)
    scales, biases = _scales(groups, np.float32((1 << quant.bits) - 1))
    codes = groups - biases[..., None]
    codes /= scales[..., None]
    np.rint(codes, out=codes)
    np.clip(codes, 0, (1 << quant.bits) - 1, out=codes)
    return {
        "weight": pack_bits(codes.astype(np.uint8).reshape(rows, -1), quant.bits),
        "scales": from_float32(scales, quant.scale),
        "biases": from_float32(biases, quant.scale),
    }


def _scales(
    groups: NDArray[np.float32], steps: np.float32
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and biases: the number farthest from zero is hit exactly, and zero nearly."""
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    from_low = np.abs(low) > np.abs(high)
    scales = np.maximum((high - low) / steps, _SMALLEST_SCALE)
    scales = np.where(from_low, scales, -scales)
    edge = np.where(from_low, low, high)
    steps_to_edge = np.rint(edge / scales)
    reached = steps_to_edge != 0
    scales = np.where(reached, edge / np.where(reached, steps_to_edge, 1), scales)
    return scales.astype(np.float32), np.where(reached, edge, np.float32(0))


_RUN = {2: 4, 3: 8, 4: 2, 5: 8, 6: 4, 8: 1}
"""Codes that fill whole bytes, by bits."""


def pack_bits(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Rows of codes as rows of bits, the lowest bit of the first code first.

    Args:
        codes: Below ``2**bits``, uint8 ``[rows, cols]``.
        bits: Of one code.

    Returns:
        uint8 ``[rows, cols * bits / 8]``.
    """
    run = _RUN[bits]
    if run == 1:
        return codes
    rows, cols = codes.shape
    wide: Any = np.uint64 if run == 8 else np.uint32
    runs = codes.reshape(rows, cols // run, run)
    words = runs[..., 0].astype(wide)
    for i in range(1, run):
        words |= runs[..., i].astype(wide) << wide(i * bits)
    little = words.astype(np.dtype(wide).newbyteorder("<"), copy=False)
    whole = little.view(np.uint8).reshape(rows, cols // run, -1)
    return np.ascontiguousarray(whole[..., : run * bits // 8]).reshape(rows, cols * bits // 8)
