"""What several test files share: tiny checkpoints, kernel tables, error measures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import flashmoe

# What models compute on where a test does not say it; "auto" is what a user gets.
if device := os.environ.get("FLASHMOE_TEST_DEVICE"):
    flashmoe.Model.__init__.__kwdefaults__["device"] = device


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a tiny random checkpoint once for each set of arguments of ``tiny.write``."""
    import tiny

    made: dict[str, Path] = {}

    def make(family: str = "qwen3_5_moe", **options: object) -> Path:
        key = repr((family, sorted(options.items(), key=lambda item: item[0])))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("tiny") / "model"
            tiny.write(made[key], family, **options)
        return made[key]

    return make


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Force a kernel table for the models opened afterwards, which compute on the CPU."""
    monkeypatch.setitem(flashmoe.Model.__init__.__kwdefaults__, "device", "cpu")
    return lambda name: monkeypatch.setenv("FLASHMOE_KERNELS", name)


def nmse(got: np.ndarray, want: np.ndarray) -> float:
    """Error of ``got`` against ``want``, relative to the energy of ``want``."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape and np.isfinite(got).all()
    return float(((got - want) ** 2).sum() / (want**2).sum())


def tokens(n: int, seed: int = 1, vocab: int = 97) -> np.ndarray:
    """Random token ids, int32 ``[n]``."""
    return np.random.RandomState(seed).randint(0, vocab, n).astype(np.int32)


def in_steps(model: flashmoe.Model, ids: np.ndarray, sizes: int) -> np.ndarray:
    """Logits of every token, evaluated ``sizes`` tokens at a time in one session."""
    out = np.empty((len(ids), model.vocab_size), np.float32)
    session = model.new_session()
    for first in range(0, len(ids), sizes):
        last = min(first + sizes, len(ids))
        session.eval(ids[first:last], out[first:last])
    session.close()
    return out
