"""Error feedback in the core, and the watch that its inputs come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import flashmoe
import tiny
from flashmoe import _core
from test_quant_search import NONE, Encoded, searched


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_feedback_lowers_the_error_of_the_product(bits: int) -> None:
    rng = np.random.default_rng(bits)
    inputs = rng.standard_normal((1000, 128)) @ rng.standard_normal((128, 128))
    moments = inputs.T @ inputs / 1000 + 0.01 * np.eye(128)
    factor = np.linalg.cholesky(np.linalg.inv(moments)).T.astype(np.float32).copy()
    x = rng.standard_normal((16, 128)).astype(np.float32)
    out = Encoded(16, 128, bits, 64, "bf16")
    told = _core.affine_feedback(x.copy(), factor, bits, 64, "bf16", *out.parts)
    miss = x - out.values()
    error = np.einsum("ij,jk,ik->", miss, moments, miss)
    plain = x - searched(x, NONE, bits, 64, "bf16")[1]
    assert told == pytest.approx(error, rel=1e-2)
    assert error < 0.8 * np.einsum("ij,jk,ik->", plain, moments, plain)


def test_watch_sees_inputs_and_changes_nothing(tmp_path: Path) -> None:
    source = tiny.write(tmp_path / "source", "qwen3_moe", seed=1, dtype="bf16")
    ids = np.arange(20, dtype=np.int32)
    with flashmoe.Model(source, device="cpu") as model:
        core, before = model._core, model.logits(ids)
        rows: dict[str, int] = {}
        core.watch(lambda name, _expert, x: rows.update({name: rows.get(name, 0) + len(x)}))
        assert np.array_equal(model.logits(ids), before)
        core.watch(None)
        layer = next(name for name in rows if name.endswith(".down"))
        assert rows[layer] == 20 * model.info()["experts_per_token"]
        assert rows["lm_head" if "lm_head" in rows else "embed"] == 20
        core.watch(lambda *_: 1 / 0)
        model.logits(ids)
        with pytest.raises(ZeroDivisionError):
            core.watch(None)
