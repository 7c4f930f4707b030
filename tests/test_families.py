"""Families: released configs give the released models' numbers; odd ones are refused by name."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashmoe.build import build_manifest
from flashmoe.errors import ModelFormatError, UnsupportedModelError
from flashmoe.families import FAMILIES, read_config
from flashmoe.manifest import Manifest
from flashmoe.safetensors import Header, TensorInfo
from flashmoe.spec import (
    Attention,
    Delta,
    Dense,
    MoE,
    default_inv_freq,
    read_rope,
    yarn_attention_factor,
    yarn_inv_freq,
)

CONFIGS = Path(__file__).parent / "data" / "configs"

# layers, of them attention, parameters in 10**9, of one expert, bytes of one expert in 4 bits with
# groups of 64, of all experts and of the rest in 10**9 (the router in 8 bits)
RELEASED = {
    "qwen3.8-2.4t-a95b": (92, 23, 2419.80, 50_331_648, 28_311_552, 1333.59, 27.76),
    "qwen3.5-397b-a17b": (60, 15, 396.35, 12_582_912, 7_077_888, 217.43, 5.58),
    "qwen3.5-122b-a10b": (48, 12, 122.11, 9_437_184, 5_308_416, 65.23, 3.48),
    "qwen3.5-35b-a3b": (40, 10, 34.66, 3_145_728, 1_769_472, 18.12, 1.39),
    "qwen3.6-35b-a3b": (40, 10, 34.66, 3_145_728, 1_769_472, 18.12, 1.39),
    "qwen3-next-80b-a3b": (48, 12, 79.67, 3_145_728, 1_769_472, 43.49, 1.36),
    "qwen3-30b-a3b": (48, 48, 30.53, 4_718_592, 2_654_208, 16.31, 0.87),
    "qwen3-235b-a22b": (94, 94, 235.09, 18_874_368, 10_616_832, 127.74, 4.52),
    "qwen3-coder-480b-a35b": (62, 62, 480.15, 47_185_920, 26_542_080, 263.30, 6.82),
}


def load(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{name}.json").read_text())


def matrices(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a checkpoint as MLX stores it, without ``.weight``, unquantised."""
    c = config.get("text_config", config)
    h, wide, e = c["hidden_size"], c["moe_intermediate_size"], c["num_experts"]
    root = "language_model.model." if c is not config else "model."
    yield f"{root}embed_tokens", (c["vocab_size"], h)
    yield f"{root.removesuffix('model.')}lm_head", (c["vocab_size"], h)
    yield f"{root}norm", (h,)
    heads, kv, dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    hybrid = "linear_num_key_heads" in c
    for i in range(c["num_hidden_layers"]):
        p = f"{root}layers.{i}."
        yield f"{p}input_layernorm", (h,)
        yield f"{p}post_attention_layernorm", (h,)
        if not hybrid or i % 4 == 3:
            yield f"{p}self_attn.q_proj", ((2 if hybrid else 1) * heads * dim, h)
            yield f"{p}self_attn.k_proj", (kv * dim, h)
            yield f"{p}self_attn.v_proj", (kv * dim, h)
            yield f"{p}self_attn.o_proj", (h, heads * dim)
            yield f"{p}self_attn.q_norm", (dim,)
            yield f"{p}self_attn.k_norm", (dim,)
        else:
            nv, dv = c["linear_num_value_heads"], c["linear_value_head_dim"]
            keys, values = c["linear_num_key_heads"] * c["linear_key_head_dim"], nv * dv
            if c["model_type"] == "qwen3_next":
                yield f"{p}linear_attn.in_proj_qkvz", (2 * keys + 2 * values, h)
                yield f"{p}linear_attn.in_proj_ba", (2 * nv, h)
            else:
                yield f"{p}linear_attn.in_proj_qkv", (2 * keys + values, h)
                yield f"{p}linear_attn.in_proj_z", (values, h)
                yield f"{p}linear_attn.in_proj_b", (nv, h)
                yield f"{p}linear_attn.in_proj_a", (nv, h)
            yield f"{p}linear_attn.conv1d", (2 * keys + values, c["linear_conv_kernel_dim"], 1)
            yield f"{p}linear_attn.A_log", (nv,)
            yield f"{p}linear_attn.dt_bias", (nv,)
            yield f"{p}linear_attn.norm", (dv,)
            yield f"{p}linear_attn.out_proj", (h, values)
        yield f"{p}mlp.gate", (e, h)
        if hybrid:
            shared = c["shared_expert_intermediate_size"]
            yield f"{p}mlp.shared_expert_gate", (1, h)
            yield f"{p}mlp.shared_expert.gate_proj", (shared, h)
            yield f"{p}mlp.shared_expert.up_proj", (shared, h)
            yield f"{p}mlp.shared_expert.down_proj", (h, shared)
        yield f"{p}mlp.switch_mlp.gate_proj", (e, wide, h)
        yield f"{p}mlp.switch_mlp.up_proj", (e, wide, h)
        yield f"{p}mlp.switch_mlp.down_proj", (e, h, wide)


def mlx_header(config: dict[str, Any], bits: int | None) -> Header:
    """The header of such a checkpoint in bf16, or quantised with groups of 64."""
    infos: dict[str, TensorInfo] = {}
    at = 1000

    def add(name: str, dtype: str, shape: tuple[int, ...], size: int) -> None:
        nonlocal at
        infos[name] = TensorInfo(name, dtype, shape, at, math.prod(shape) * size)
        at += infos[name].nbytes

    for name, shape in matrices(config):
        if name.endswith(("A_log", "dt_bias")):
            add(name, "BF16", shape, 2)
        elif bits is None or len(shape) == 1 or "conv1d" in name:
            add(f"{name}.weight", "BF16", shape, 2)
        else:
            use = 8 if name.endswith(("mlp.gate", "shared_expert_gate")) else bits
            *rows, cols = shape
            add(f"{name}.weight", "U32", (*rows, cols * use // 32), 4)
            add(f"{name}.scales", "BF16", (*rows, cols // 64), 2)
            add(f"{name}.biases", "BF16", (*rows, cols // 64), 2)
    return Header(infos, {"format": "mlx"}, at)


@pytest.mark.parametrize("name", RELEASED)
def test_released_models(name):
    layers, full, parameters, each, expert_bytes, experts_gb, resident_gb = RELEASED[name]
    config = load(name)
    _, spec = read_config(config)
    assert len(spec.layers) == layers
    assert sum(isinstance(y.mixer, Attention) for y in spec.layers) == full
    start = time.process_time()
    manifest = build_manifest(config, {"model.safetensors": mlx_header(config, 4)})
    seconds = time.process_time() - start
    assert Manifest.parse(manifest.to_text()) == manifest
    ffn = spec.layers[0].ffn
    assert isinstance(ffn, MoE)
    total = sum(t.rows * t.cols for t in manifest.tensors.values())
    total += layers * ffn.experts * each
    assert total / 1e9 == pytest.approx(parameters, abs=0.006)
    assert sum(a * b for a, b in manifest.expert_shapes(0).values()) == each
    assert {manifest.expert_bytes(i) for i in range(layers)} == {expert_bytes}
    assert manifest.total_expert_bytes / 1e9 == pytest.approx(experts_gb, abs=0.006)
    assert manifest.resident_bytes / 1e9 == pytest.approx(resident_gb, abs=0.015)
    assert seconds < 0.5  # 0.03 s for the 35B one


def test_numbers_of_a_config():
    _, spec = read_config(load("qwen3.5-397b-a17b"))
    assert (spec.hidden_size, spec.vocab_size, spec.norm_eps) == (4096, 248320, 1e-6)
    assert (spec.max_positions, spec.tied) == (262144, False)
    attention, delta, moe = spec.layers[3].mixer, spec.layers[0].mixer, spec.layers[0].ffn
    assert attention == Attention(32, 2, 256, 0, 0.0625, gated=True, qk_norm=True)
    assert delta == Delta(16, 64, 128, 128, 4)
    assert moe == MoE(512, 10, True, 1024, 1024)
    assert spec.ropes[0].dims == 64
    assert spec.ropes[0].scale == 1
    assert spec.ropes[0].inv_freq[1] == pytest.approx(1e7 ** (-2 / 64), rel=1e-15)
    _, spec = read_config(load("qwen3-coder-480b-a35b"))
    assert spec.layers[0].mixer == Attention(96, 8, 128, 0, 128**-0.5, gated=False, qk_norm=True)
    assert spec.layers[0].ffn == MoE(160, 8, True, 2560, 0)
    assert spec.ropes[0].dims == 128


def test_interval_and_list_say_the_same():
    config = load("qwen3.5-35b-a3b")
    _, want = read_config(config)
    del config["text_config"]["layer_types"]
    assert read_config(config)[1] == want


def test_dense_layers():
    config = load("qwen3-30b-a3b")
    config |= {"decoder_sparse_step": 2, "mlp_only_layers": [1, 3]}
    _, spec = read_config(config)
    dense = [i for i, y in enumerate(spec.layers) if y.ffn == Dense(6144)]
    assert dense == sorted({*range(0, 48, 2), 1, 3})


def test_norm_topk_prob():
    for name, default in [("qwen3-30b-a3b", False), ("qwen3-next-80b-a3b", True)]:
        config = load(name)
        for given, want in [(True, True), (False, False), (None, default)]:
            config["norm_topk_prob"] = given
            ffn = read_config(config)[1].layers[0].ffn
            assert isinstance(ffn, MoE)
            assert ffn.renormalise is want
        del config["norm_topk_prob"]
        ffn = read_config(config)[1].layers[0].ffn
        assert isinstance(ffn, MoE)
        assert ffn.renormalise is default


def test_aliases():
    config = load("qwen3-30b-a3b")
    want = read_config(config)
    config["num_local_experts"] = config.pop("num_experts")
    assert read_config(config) == want
    config["num_experts"] = 64
    with pytest.raises(ModelFormatError, match=r"num_experts.*disagree"):
        read_config(config)


REFUSED = [
    # config, changes, exception, words
    ("qwen3.5-35b-a3b", {"hidden_act": "gelu"}, UnsupportedModelError, "hidden_act is 'gelu'"),
    ("qwen3.5-35b-a3b", {"attention_bias": True}, UnsupportedModelError, "attention_bias is True"),
    ("qwen3.5-35b-a3b", {"attn_output_gate": False}, UnsupportedModelError, "attn_output_gate"),
    ("qwen3.5-35b-a3b", {"output_gate_type": "sigmoid"}, UnsupportedModelError, "output_gate_type"),
    ("qwen3.5-35b-a3b", {"norm_topk_prob": False}, UnsupportedModelError, "norm_topk_prob"),
    (
        "qwen3.5-35b-a3b",
        {"mlp_only_layers": [2]},
        UnsupportedModelError,
        r"mlp_only_layers is \[2\]",
    ),
    ("qwen3.5-35b-a3b", {"decoder_sparse_step": 2}, UnsupportedModelError, "decoder_sparse_step"),
    ("qwen3.5-35b-a3b", {"hc_count": 4}, UnsupportedModelError, "does not know the field hc_count"),
    (
        "qwen3.5-35b-a3b",
        {"layer_types": ["sliding_attention"] * 40},
        UnsupportedModelError,
        r"layer_types\[0\] is 'sliding_attention'",
    ),
    (
        "qwen3.5-35b-a3b",
        {"layer_types": ["full_attention"]},
        ModelFormatError,
        "layer_types must be a list of num_hidden_layers = 40",
    ),
    ("qwen3.5-35b-a3b", {"layer_types": [3] * 40}, UnsupportedModelError, r"layer_types\[0\] is 3"),
    (
        "qwen3.5-35b-a3b",
        {"num_experts_per_tok": 257},
        ModelFormatError,
        "num_experts_per_tok 257 is more than num_experts 256",
    ),
    ("qwen3.5-35b-a3b", {"num_experts_per_tok": 0}, ModelFormatError, "num_experts_per_tok is 0"),
    (
        "qwen3.5-35b-a3b",
        {"linear_num_value_heads": 33},
        ModelFormatError,
        "linear_num_value_heads 33 is no multiple of linear_num_key_heads 16",
    ),
    (
        "qwen3.5-35b-a3b",
        {"num_key_value_heads": 3},
        ModelFormatError,
        "num_attention_heads 16 is no multiple of num_key_value_heads 3",
    ),
    (
        "qwen3.5-35b-a3b",
        {"num_hidden_layers": 10**30},
        ModelFormatError,
        "num_hidden_layers is 1000",
    ),
    ("qwen3.5-35b-a3b", {"rms_norm_eps": 10**400}, ModelFormatError, "rms_norm_eps is 1000"),
    ("qwen3.5-35b-a3b", {"rms_norm_eps": 0}, ModelFormatError, "rms_norm_eps is 0"),
    (
        "qwen3.5-35b-a3b",
        {"rms_norm_eps": {"__float__": "Infinity"}},
        ModelFormatError,
        "rms_norm_eps",
    ),
    (
        "qwen3.5-35b-a3b",
        {"model_type": "qwen3_next"},
        UnsupportedModelError,
        "text_config.model_type 'qwen3_next' inside",
    ),
    ("qwen3-next-80b-a3b", {"norm_topk_prob": "yes"}, ModelFormatError, "norm_topk_prob is 'yes'"),
    (
        "qwen3-next-80b-a3b",
        {"mlp_only_layers": [48]},
        ModelFormatError,
        r"mlp_only_layers is \[48\]; it must be a list of integers in 0 .. 47",
    ),
    (
        "qwen3-next-80b-a3b",
        {"mlp_only_layers": "all"},
        ModelFormatError,
        "mlp_only_layers is 'all'",
    ),
    (
        "qwen3-next-80b-a3b",
        {"decoder_sparse_step": 0},
        ModelFormatError,
        "decoder_sparse_step is 0",
    ),
    (
        "qwen3-next-80b-a3b",
        {"tie_word_embeddings": 1},
        ModelFormatError,
        "tie_word_embeddings is 1",
    ),
    ("qwen3-30b-a3b", {"use_sliding_window": True}, UnsupportedModelError, "use_sliding_window"),
    (
        "qwen3-30b-a3b",
        {"shared_expert_intermediate_size": 512},
        UnsupportedModelError,
        "shared_expert_intermediate_size is 512",
    ),
    ("qwen3-30b-a3b", {"use_qk_norm": False}, UnsupportedModelError, "use_qk_norm"),
    ("qwen3-30b-a3b", {"qkv_bias": True}, UnsupportedModelError, "qkv_bias"),
    (
        "qwen3-30b-a3b",
        {"partial_rotary_factor": 0.5},
        UnsupportedModelError,
        "partial_rotary_factor",
    ),
    (
        "qwen3-30b-a3b",
        {"routed_scaling_factor": 2.5},
        UnsupportedModelError,
        "routed_scaling_factor",
    ),
    (
        "qwen3-30b-a3b",
        {"scoring_func": "sigmoid", "n_group": 8},
        UnsupportedModelError,
        "n_group, scoring_func",
    ),
    (
        "qwen3-30b-a3b",
        {"layer_types": ["linear_attention"] * 48},
        UnsupportedModelError,
        r"layer_types\[0\]",
    ),
    ("qwen3-30b-a3b", {"linear_num_key_heads": 2}, UnsupportedModelError, "linear_num_key_heads"),
    ("qwen3-30b-a3b", {"pruned_heads": {"0": [1]}}, UnsupportedModelError, "pruned_heads"),
    ("qwen3-30b-a3b", {"rope_theta": None}, ModelFormatError, "rope_theta is missing"),
    ("qwen3-30b-a3b", {"rope_theta": -1}, ModelFormatError, "rope_theta is -1"),
    ("qwen3-30b-a3b", {"rope_theta": True}, ModelFormatError, "rope_theta is True"),
    ("qwen3-30b-a3b", {"rope_theta": 1}, ModelFormatError, "rope_theta is 1; it must be above 1"),
    (
        "qwen3-30b-a3b",
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        UnsupportedModelError,
        "rope_type 'llama3'",
    ),
    (
        "qwen3-30b-a3b",
        {"rope_scaling": {"type": "dynamic", "factor": 8.0}},
        UnsupportedModelError,
        "rope_type 'dynamic'",
    ),
    (
        "qwen3-30b-a3b",
        {"rope_scaling": {"type": "yarn", "twist": 3}},
        UnsupportedModelError,
        "rope_scaling.twist",
    ),
    ("qwen3-30b-a3b", {"rope_scaling": "yarn"}, ModelFormatError, "rope_scaling is 'yarn'"),
    (
        "qwen3-30b-a3b",
        {"rope_parameters": {"rope_theta": 5.0}},
        ModelFormatError,
        "rope_theta is given twice",
    ),
]


@pytest.mark.parametrize(
    ("name", "changes", "kind", "words"),
    REFUSED,
    ids=lambda v: str(v)[:36] if isinstance(v, dict) else "",
)
def test_refused(name, changes, kind, words):
    config = load(name)
    config.get("text_config", config).update(changes)
    with pytest.raises(kind, match=words) as caught:
        read_config(config)
    assert type(caught.value) is kind


INTEGERS = [
    "hidden_size",
    "vocab_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "max_position_embeddings",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
]


@pytest.mark.parametrize("value", [-4, 0, 1 << 62, 4.0, "4", True, [4]], ids=str)
@pytest.mark.parametrize("field", INTEGERS)
def test_integers(field, value):
    config = load("qwen3.5-35b-a3b")
    config["text_config"][field] = value
    with pytest.raises(ModelFormatError, match=f"config.json: {field} is "):
        read_config(config)


@pytest.mark.parametrize("field", [f for f in INTEGERS if f != "head_dim"] + ["rms_norm_eps"])
def test_missing_fields(field):
    config = load("qwen3.5-35b-a3b")
    del config["text_config"][field]
    with pytest.raises(ModelFormatError, match=f"{field} is missing"):
        read_config(config)


@pytest.mark.parametrize(
    "model_type", ["qwen4_exp", "deepseek_v3", "", None, 3, ["qwen3_moe"]], ids=str
)
def test_unknown_families(model_type):
    config = load("qwen3-30b-a3b") | {"model_type": model_type}
    with pytest.raises(
        UnsupportedModelError, match=r"model_type.*is not supported.*qwen3_5_moe"
    ) as e:
        read_config(config)
    assert repr(model_type) in str(e.value)
    assert all(name in str(e.value) for name in FAMILIES)


def test_unknown_fields_outside_the_text_part():
    config = load("qwen3.5-35b-a3b")
    config["num_streams"] = 4
    with pytest.raises(UnsupportedModelError, match=r"num_streams"):
        read_config(config)
    config = load("qwen3.5-35b-a3b") | {"text_config": 3}
    with pytest.raises(ModelFormatError, match=r"text_config is not an object"):
        read_config(config)


def test_harmless_fields():
    """Null fields, and outer copies of the text part's own, change nothing."""
    config = load("qwen3.5-35b-a3b")
    want = read_config(copy.deepcopy(config))
    config |= {"hidden_size": 2048, "anything": None, "mtp_anything": 5, "quantization": {}}
    config["text_config"] |= {"pad_token_id": 3, "something": None, "use_cache": False}
    assert read_config(config) == want


SPELLINGS = [
    {
        "rope_theta": 1e6,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    },
    {
        "rope_theta": 1e6,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        },
    },
    {
        "rope_parameters": {
            "rope_theta": 1e6,
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
        }
    },
    {
        "rope_theta": 1000000,
        "rope_parameters": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32768},
    },
]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=range(4))
def test_spellings_of_rope(spelling):
    config = load("qwen3-30b-a3b")
    del config["rope_theta"], config["rope_scaling"]
    _, spec = read_config(config | spelling)
    assert spec.ropes[0].inv_freq == tuple(yarn_inv_freq(128, 1e6, 4.0, 32768.0))
    assert spec.ropes[0].scale == pytest.approx(0.1 * math.log(4) + 1, rel=1e-15)
    assert spec.max_positions == 131072


def test_plain_frequencies():
    want = 1.0 / 1e7 ** (np.arange(0, 64, 2) / 64)
    assert default_inv_freq(64, 1e7) == pytest.approx(want, rel=1e-14)


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize(
    ("dims", "theta", "factor", "original"),
    [(128, 1e6, 4.0, 32768), (64, 150000.0, 32.0, 4096), (16, 1e4, 40.0, 64)],
)
def test_yarn_frequencies(dims, theta, factor, original, truncate):
    """Against the paper's own words: by how often a pair turns within the original context."""
    plain = theta ** (-np.arange(0, dims, 2) / dims)
    got = np.array(yarn_inv_freq(dims, theta, factor, original, truncate=truncate))
    turns = original * plain / (2 * np.pi)
    assert np.all((got <= plain * (1 + 1e-15)) & (got >= plain / factor * (1 - 1e-15)))
    slack = theta ** (2 / dims) if truncate else 1.0  # rounding moves a border by one pair
    assert got[turns > 32 * slack] == pytest.approx(plain[turns > 32 * slack], rel=1e-14)
    assert got[turns < 1 / slack] == pytest.approx(plain[turns < 1 / slack] / factor, rel=1e-14)
    assert np.all(np.diff(got) < 0)


def test_yarn_attention_factor():
    assert yarn_attention_factor(32.0) == pytest.approx(1.3465735902799727, rel=1e-15)
    assert yarn_attention_factor(40.0, 1.0, 1.0) == 1.0
    assert yarn_attention_factor(40.0, 1.0, 0.707) == pytest.approx(1.0857263992561355, rel=1e-15)
    assert yarn_attention_factor(0.5) == 1.0
    rope, _ = read_rope(
        {
            "rope_theta": 1e4,
            "rope_scaling": {"type": "yarn", "factor": 2, "attention_factor": 1.25},
        },
        64,
        4096,
    )
    assert rope.scale == 1.25
