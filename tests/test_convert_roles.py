"""Other bits for some matrices, by what they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from flashmoe import Model, convert, errors, verify
from packed import Packed
from tiny_files import rewrite_tensor

SMALL = ("norm", "mixer_norm", "ffn_norm", "q_norm", "k_norm", "delta_norm", "conv", "a_log",
         "dt_bias")  # fmt: skip


def pack(src: Path, dst: Path, **options: Any) -> Packed:
    return Packed(convert(src, dst, group_size=32, progress=False, **options))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("roles") / "model"
    return tiny.write(path, "qwen3_moe", seed=3, dtype="bf16")


@pytest.mark.parametrize("kernels", ["ref", ""])
def test_a_model_of_mixed_bits_runs(
    kernels: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers as the source does whose numbers are those that its codes stand for."""
    if kernels:
        monkeypatch.setenv("FLASHMOE_KERNELS", kernels)
    pack(source, tmp_path / "mixed", bits=8, bits_for="up=6+embedding=5")
    verify(tmp_path / "mixed", progress=False)
    ids = np.arange(30, dtype=np.int32)
    with Model(source, kv_dtype="f32") as model:
        want = model.logits(ids).astype(np.float64)
    with Model(tmp_path / "mixed", kv_dtype="f32") as model:
        got = model.logits(ids)
    error = ((got - want) ** 2).sum() / ((want - want.mean()) ** 2).sum()
    assert 1e-7 < error < 0.02


@pytest.mark.parametrize("family", ["qwen3_5_moe", "qwen3_moe"])
def test_other_bits_for_some(family: str, tmp_path: Path) -> None:
    """Each matrix is what a conversion of everything to its bits makes of it."""
    src = tiny.write(tmp_path / "source", family, seed=3, dtype="bf16")
    plain = {bits: pack(src, tmp_path / str(bits), bits=bits) for bits in (2, 3, 4, 8)}
    want = {"resident": 4, "embedding": 8, "experts": 2, "down": 3}
    mixed = pack(src, tmp_path / "mixed", bits=6, bits_for=want)
    for name, format_ in mixed.tensors.items():
        word = name.rsplit(".", 1)[-1]
        if word in SMALL:
            continue
        bits = 8 if word in ("embed", "router", "shared_score") else 4
        assert format_.startswith(f"affine:{bits}:"), name
        assert mixed.tensor(name) == plain[bits].tensor(name)
    for layer, formats in mixed.experts.items():
        assert [formats[p].split(":")[1] for p in ("gate", "up", "down")] == ["2", "2", "3"]
        for expert in range(2):
            got, two, three = (p.expert(layer, expert)[0] for p in (mixed, plain[2], plain[3]))
            for part, data in got.items():
                assert data == (three if part.startswith("down") else two)[part]


def test_experts_alone(source: Path, tmp_path: Path) -> None:
    """Without bits of its own, everything else stays as it is."""
    packed = pack(source, tmp_path / "out", bits_for="experts=4")
    assert set(packed.tensors.values()) <= {"bf16", "f32"}
    assert {f for formats in packed.experts.values() for f in formats.values()} == {
        "affine:4:32:bf16"
    }


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"router": 4}, errors.ArgumentError, "no role 'router'; it has resident"),
        ({"down": 7}, errors.ArgumentError, "bits for down must be one of"),
        ("down", errors.ArgumentError, "ROLE=BITS"),
        ("down=x", errors.ArgumentError, "ROLE=BITS"),
        ("dense=4", errors.ConversionError, "no matrix of the role dense"),
    ],
)
def test_bits_for_what_is_not_there(
    asked: Any, error: type[Exception], words: str, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        convert(source, tmp_path / "out", bits=4, bits_for=asked, progress=False)


def test_an_unfinished_conversion_keeps_its_bits(tmp_path: Path) -> None:
    src = tiny.write(tmp_path / "source", "qwen3_moe", seed=1, dtype="bf16")
    rewrite_tensor(src, "model.norm.weight", np.full(128, np.nan))
    with pytest.raises(errors.NumericalError):
        convert(src, tmp_path / "out", bits=4, bits_for="down=8", progress=False)
    with pytest.raises(errors.ConversionError, match="bits_for"):
        convert(src, tmp_path / "out", bits=4, progress=False)
