"""The forward pass of every family against an independent float64 one."""

from __future__ import annotations

import numpy as np
import pytest

import flashmoe
import reference
import tiny
from conftest import in_steps, nmse, tokens
from flashmoe import _core

N = 150
SHAPES = [
    ("qwen3_5_moe", {}),
    ("qwen3_5_moe", {"nested": True, "linear_num_value_heads": 4, "linear_num_key_heads": 4}),
    ("qwen3_5_moe", {"hidden_size": 96, "linear_num_key_heads": 2, "linear_num_value_heads": 8}),
    ("qwen3_5_moe", {"linear_key_head_dim": 24, "linear_value_head_dim": 40}),
    ("qwen3_5_moe", {"tie_word_embeddings": True, "shards": 3}),
    ("qwen3_5_moe", {"layout": "per_expert"}),
    ("qwen3_next", {}),
    ("qwen3_next", {"mlp_only_layers": [1], "norm_topk_prob": False}),
    ("qwen3_next", {"decoder_sparse_step": 2, "num_attention_heads": 6, "num_key_value_heads": 3}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"norm_topk_prob": False, "mlp_only_layers": [0, 2]}),
    ("qwen3_moe", {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 24}),
    (
        "qwen3_moe",
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
]


@pytest.mark.parametrize(("family", "options"), SHAPES, ids=lambda v: str(v)[:60])
def test_float_logits(checkpoint, kernels, family, options):
    path = checkpoint(family, seed=7, **options)
    ids = tokens(N)
    want = reference.logits(path, ids)
    for table in _core.kernels():
        kernels(table)
        with flashmoe.Model(path, kv_dtype="f32") as model:
            assert model.info()["kernels"] == table
            assert nmse(model.logits(ids), want) <= 1e-8, table


@pytest.mark.parametrize("family", ["qwen3_5_moe", "qwen3_next", "qwen3_moe"])
@pytest.mark.parametrize("size", [1, 7, 64, 512])
def test_steps_of_any_size(checkpoint, family, size):
    path = checkpoint(family, seed=11)
    ids = tokens(600 if size == 512 else 200, seed=2)
    want = reference.logits(path, ids)
    with flashmoe.Model(path, kv_dtype="f32") as model:
        got = in_steps(model, ids, min(size, model.info()["prefill_rows"]))
    assert nmse(got, want) <= 1e-8


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_half_weights(checkpoint, dtype):
    path = checkpoint("qwen3_5_moe", seed=3, dtype=dtype)
    ids = tokens(N)
    with flashmoe.Model(path, kv_dtype="f32") as model:
        assert nmse(model.logits(ids), reference.logits(path, ids)) <= 1e-8


@pytest.mark.parametrize("kv", ["f16", "bf16"])
def test_kv_dtypes_stay_close(checkpoint, kv):
    path = checkpoint("qwen3_moe", seed=5)
    ids = tokens(N)
    want = reference.logits(path, ids)
    with flashmoe.Model(path, kv_dtype=kv) as model:
        error = nmse(model.logits(ids), want)
    assert 1e-12 < error <= 1e-2  # rounded, so never exact


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64])
def test_quantised_logits(checkpoint, kernels, tmp_path, bits, group):
    source = checkpoint("qwen3_5_moe", seed=9, hidden_size=128, moe_intermediate_size=64)
    tiny.quantise_mlx(source, tmp_path / "mlx", bits, group)
    ids = tokens(N)
    kernels("ref")
    with flashmoe.Model(tmp_path / "mlx", kv_dtype="f32") as model:
        assert nmse(model.logits(ids), reference.logits(tmp_path / "mlx", ids)) <= 1e-8


def test_fewer_experts_are_another_model(checkpoint):
    path = checkpoint("qwen3_5_moe", seed=13)
    ids = tokens(40)
    with flashmoe.Model(path, kv_dtype="f32", experts_per_token=1) as model:
        assert nmse(model.logits(ids), reference.logits(path, ids, experts_per_token=1)) <= 1e-8
        info = model.info()
        assert info["experts_per_token"] == 1 < info["native_experts_per_token"]
        assert "own number" in repr(model)


def test_one_token(checkpoint):
    path = checkpoint("qwen3_5_moe", seed=17)
    ids = tokens(1)
    with flashmoe.Model(path, kv_dtype="f32") as model:
        got = model.logits(ids)
    assert got.dtype == np.float32 and got.shape == (1, 97)
    assert nmse(got, reference.logits(path, ids)) <= 1e-8
