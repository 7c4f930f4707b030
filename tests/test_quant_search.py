"""The search for affine scales, biases and codes, against brute force in float64."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

import flashmoe
import tiny
from flashmoe import _core, errors
from flashmoe.conversion.numbers import to_float32
from tiny_files import rewrite_tensor

SIZES = {"f32": 4, "f16": 2, "bf16": 2}
FORMATS = list(product((2, 3, 4, 5, 6, 8), (32, 64, 128), ("f32", "f16", "bf16")))


class Encoded:
    """Rows in the stored form, and what they mean in float64."""

    def __init__(self, rows: int, cols: int, bits: int, group: int, scale: str) -> None:
        self.shape, self.format = (rows, cols), (bits, group, scale)
        self.weight = np.empty((rows, cols * bits // 8), np.uint8)
        self.scales = np.empty((rows, cols // group * SIZES[scale]), np.uint8)
        self.biases = np.empty_like(self.scales)

    @property
    def parts(self) -> tuple[np.ndarray, ...]:
        return self.weight, self.scales, self.biases

    def values(self) -> np.ndarray:
        (rows, cols), (bits, group, scale) = self.shape, self.format
        stream = np.unpackbits(self.weight, axis=1, bitorder="little")
        codes = stream.reshape(rows, cols, bits) @ (1 << np.arange(bits))
        s, b = (
            to_float32(part.reshape(-1), scale).astype(np.float64).reshape(rows, -1, 1)
            for part in (self.scales, self.biases)
        )
        with np.errstate(invalid="ignore"):
            return (codes.reshape(rows, -1, group) * s + b).reshape(rows, cols)


def rounded(x: np.ndarray, bits: int, group: int, scale: str) -> np.ndarray:
    out = Encoded(*x.shape, bits, group, scale)
    _core.affine_encode(x, bits, group, scale, *out.parts)
    return out.values()


def searched(x: np.ndarray, bits: int, group: int, scale: str) -> tuple[float, np.ndarray]:
    out = Encoded(*x.shape, bits, group, scale)
    error = _core.affine_search(x, bits, group, scale, *out.parts)
    return error, out.values()


def best_possible(x: np.ndarray, bits: int) -> float:
    """The least squared error of any affine grid on a group, by trying all there can be.

    A grid cuts the sorted numbers into runs of equal code, so the best grid is the least-squares
    fit to one of these assignments; few numbers differ here, so that all can be tried.
    """
    values, weight = np.unique(x.astype(np.float64), return_counts=True)
    best = np.inf
    for codes in product(range(1 << bits), repeat=len(values)):
        q = np.array(codes, np.float64)
        if (np.diff(q) < 0).any():
            continue
        fit = np.linalg.lstsq(
            np.sqrt(weight)[:, None] * np.stack([q, np.ones_like(q)], 1),
            np.sqrt(weight) * values,
            rcond=None,
        )[0]
        best = min(best, float((weight * (values - fit[0] * q - fit[1]) ** 2).sum()))
    return best


def rows_of_all_kinds(group: int) -> np.ndarray:
    rng = np.random.default_rng(group)
    normal = rng.standard_normal((6, 2 * group))
    rows = [
        *normal,
        np.zeros(2 * group),
        np.full(2 * group, 0.37),
        np.full(2 * group, -3e-5),
        np.abs(normal[0]),
        -np.abs(normal[1]),
        np.where(np.arange(2 * group) == 5, 40.0, normal[2] * 0.01),
        rng.integers(-3, 4, 2 * group),
        normal[3] * 1e-4,
        normal[4] * 3000,
        1 + normal[5] * 1e-3,
        rng.laplace(size=2 * group) ** 3,
    ]
    return np.ascontiguousarray(np.stack(rows), np.float32)


@pytest.mark.parametrize(("bits", "group", "scale"), FORMATS)
def test_never_worse_than_rounding(bits: int, group: int, scale: str) -> None:
    x = rows_of_all_kinds(group)
    error, got = searched(x, bits, group, scale)
    before, miss = (
        ((x - y) ** 2).reshape(len(x), -1, group).sum(-1)
        for y in (rounded(x, bits, group, scale), got)
    )
    assert (miss <= before * (1 + 1e-6)).all(), np.argwhere(miss > before)
    assert error == pytest.approx(miss.sum(), rel=1e-6, abs=1e-30)


@pytest.mark.parametrize("bits", [2, 3])
def test_against_every_grid(bits: int) -> None:
    """On groups of few different numbers all grids can be tried; the search comes near the best."""
    rng = np.random.default_rng(bits)
    near, left = [], []
    for _ in range(30):
        few = rng.standard_normal(7 if bits == 2 else 5)
        x = few[rng.integers(0, len(few), 32)].astype(np.float32)[None]
        error, _ = searched(x, bits, 32, "f32")
        best = best_possible(x[0], bits)
        assert error >= best * (1 - 1e-5)
        before = float(((x - rounded(x, bits, 32, "f32")) ** 2).sum())
        near.append(error < 1.01 * best + 1e-6)
        left.append((error - best) / (before - best + 1e-6))
    assert np.mean(near) > 0.5 and np.mean(left) < 0.2, (near, left)


def test_what_it_gains() -> None:
    """Of normal numbers in groups of 64, 2 bits lose a third less."""
    x = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    error, _ = searched(x, 2, 64, "bf16")
    assert error < 0.67 * ((x - rounded(x, 2, 64, "bf16")) ** 2).sum()


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e-12, 1e12, 1e30, 3e38])
def test_huge_and_tiny(size: float) -> None:
    x = (np.random.default_rng(0).uniform(-1, 1, (8, 64)) * size).astype(np.float32)
    error, got = searched(x, 2, 64, "f32")
    if size < 3e38:
        assert np.isfinite(got).all()
        assert error <= ((x.astype(np.float64) - rounded(x, 2, 64, "f32")) ** 2).sum() * (1 + 1e-6)
    else:  # a range that float32 does not hold: as before, for the converter to refuse
        assert np.array_equal(got, rounded(x, 2, 64, "f32"), equal_nan=True)


def test_wrong_sizes_are_refused() -> None:
    out = Encoded(2, 64, 2, 64, "bf16")
    x = np.zeros((2, 64), np.float32)
    with pytest.raises(ValueError, match="size"):
        _core.affine_search(x, 4, 64, "bf16", *out.parts)


def test_convert(tmp_path: Path) -> None:
    """The same sizes, less error in every matrix, and a model that runs."""
    source = tiny.write(tmp_path / "source", "qwen3_moe", seed=1, dtype="bf16")
    for method in ("rtn", "search"):
        flashmoe.convert(
            source, tmp_path / method, bits=2, group_size=32, method=method, progress=False
        )
    sizes = [
        {f.name: f.stat().st_size for f in (tmp_path / m).glob("*.bin")} for m in ("rtn", "search")
    ]
    assert sizes[0] == sizes[1]
    ids = np.arange(40, dtype=np.int32)
    with flashmoe.Model(source) as model:
        want = model.logits(ids)
    apart = []
    for method in ("rtn", "search"):
        flashmoe.verify(tmp_path / method)
        with flashmoe.Model(tmp_path / method) as model:
            apart.append(float(((model.logits(ids) - want) ** 2).sum()))
    assert apart[1] < apart[0]


def test_unfinished_conversion_keeps_its_method(tmp_path: Path) -> None:
    source = tiny.write(tmp_path / "source", "qwen3_moe", seed=1, dtype="bf16")
    rewrite_tensor(source, "model.norm.weight", np.full(128, np.nan))
    out = tmp_path / "out"
    with pytest.raises(errors.NumericalError, match="NaN"):
        flashmoe.convert(source, out, bits=2, group_size=32, method="search", progress=False)
    with pytest.raises(errors.ConversionError, match="method was 'search', is 'rtn'"):
        flashmoe.convert(source, out, bits=2, group_size=32, progress=False)
    with pytest.raises(errors.ArgumentError, match="rtn, search"):
        flashmoe.convert(source, out, bits=2, method="magic")
