"""Stored numbers to float32 and back: f32, f16, bf16, and FP8 with its block scales."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.places import Quant

_STORED = {"f32": "<u4", "f16": "<u2", "bf16": "<u2", "e8m0": "u1"}
_EXPONENT = {"f32": 0x7F800000, "f16": 0x7C00, "bf16": 0x7F80, "e8m0": 0xFF}


def all_finite(stored: NDArray[np.uint8], kind: str) -> bool:
    """Whether there is neither NaN nor infinity among numbers in their stored form.

    Args:
        stored: Bytes of the numbers, uint8 ``[n]``.
        kind: ``f32``, ``f16``, ``bf16`` or ``e8m0``.
    """
    bits = stored.view(_STORED[kind])
    mask = bits.dtype.type(_EXPONENT[kind])
    return not bool(((bits & mask) == mask).any())


def to_float32(stored: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """Numbers out of their stored form, exactly.

    Args:
        stored: Bytes of the numbers, uint8 ``[n]``.
        kind: ``f32``, ``f16``, ``bf16`` or ``e8m0``.
    """
    if kind == "bf16":
        return (stored.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind == "e8m0":
        return np.ldexp(np.float32(1), stored.astype(np.int32) - 127)
    return stored.view("<f4" if kind == "f32" else "<f2").astype(np.float32)


def from_float32(values: NDArray[np.float32], kind: str) -> NDArray[Any]:
    """Numbers in their stored form, rounded to the nearest, ties to even.

    Args:
        values: Finite numbers.
        kind: ``f32``, ``f16`` or ``bf16``.
    """
    if kind != "bf16":
        return values.astype("<f4" if kind == "f32" else "<f2", copy=False)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    return (rounded >> np.uint32(16)).astype("<u2")


def decode_fp8(
    codes: NDArray[np.uint8], scales: NDArray[np.uint8], quant: Quant, cols: int
) -> NDArray[np.float32]:
    """FP8 codes times the scales of their blocks, rounded to bf16.

    Args:
        codes: e4m3, uint8 ``[rows * cols]``; the first row starts a block.
        scales: Bytes of the scales, a row of them for every block of rows.
        quant: The FP8 format.
        cols: Numbers in a row.

    Returns:
        Numbers that bf16 holds, float32 ``[rows, cols]``; NaN where a code or scale is.
    """
    high, wide = quant.block
    values = _e4m3_table()[codes].reshape(-1, cols)
    by_block = to_float32(scales, quant.scale).reshape(-1, -(-cols // wide))
    by_row = np.repeat(by_block, high, axis=0)[: len(values)]
    values *= np.repeat(by_row, wide, axis=1)[:, :cols]
    return to_float32(from_float32(values, "bf16").view(np.uint8).reshape(-1), "bf16").reshape(
        -1, cols
    )


def _e4m3_table() -> NDArray[np.float32]:
    """The value of each of the 256 codes."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    values[codes & 0x7F == 0x7F] = np.nan
    return np.where(codes >= 128, -values, values).astype(np.float32)
