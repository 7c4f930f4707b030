"""Make the golden data that ``tiny`` and ``reference`` are judged by; run by hand.

``pip install torch transformers mlx-lm``, then ``python tests/make_golden.py``. It writes
``tests/data/golden``: logits of transformers and of MLX, and digests of what mlx-lm and
``mx.quantize`` write. The cases are data, so that the tests rebuild the same checkpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

import tiny

GOLDEN = Path(__file__).parent / "data" / "golden"
IDS = np.random.RandomState(2024).randint(0, 97, 150)
ROWS = np.array([0, 1, 2, 3, 7, 15, 31, 62, 63, 64, 65, 77, 100, 127, 128, 129, 140, 148, 149])

YARN = {"factor": 4.0, "original_max_position_embeddings": 64}
TEXT_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_5": ("qwen3_5_moe", {}),
    "qwen3_5_nested": ("qwen3_5_moe", {"nested": True, "extras": True, "shards": 3,
        "linear_num_key_heads": 4, "linear_num_value_heads": 4}),
    "qwen3_5_ratio4": ("qwen3_5_moe", {"hidden_size": 96, "linear_num_value_heads": 8,
        "linear_key_head_dim": 24, "linear_value_head_dim": 20, "num_key_value_heads": 1}),
    "qwen3_5_bf16_tied": ("qwen3_5_moe", {"dtype": "bf16", "tie_word_embeddings": True,
        "full_attention_interval": 2, "num_key_value_heads": 4}),
    "qwen3_5_yarn": ("qwen3_5_moe", {"layout": "per_expert", "hidden_size": 160, "head_dim": 64,
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5, "mrope_section": [6, 5, 5], **YARN}}),
    "qwen3_next": ("qwen3_next", {}),
    "qwen3_next_dense": ("qwen3_next", {"mlp_only_layers": [1], "norm_topk_prob": False,
        "linear_num_key_heads": 1, "linear_num_value_heads": 4, "dtype": "f16"}),
    "qwen3_next_step": ("qwen3_next", {"decoder_sparse_step": 2, "num_attention_heads": 6,
        "num_key_value_heads": 3, "rope_scaling": {"type": "yarn", "attention_factor": 1.3,
            "beta_fast": 4.0, "beta_slow": 0.5, **YARN}}),
    "qwen3_moe": ("qwen3_moe", {"layer_types": ...}),
    "qwen3_moe_dense": ("qwen3_moe", {"mlp_only_layers": [0, 2], "norm_topk_prob": False,
        "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 24}),
    "qwen3_moe_yarn": ("qwen3_moe", {"rope_scaling": {"rope_type": "yarn", **YARN}}),
    "qwen3_moe_yarn_new": ("qwen3_moe", {"rope_parameters": {"rope_type": "yarn",
        "rope_theta": 500000.0, "mscale": 1.0, "mscale_all_dim": 0.5, **YARN}}),
}  # fmt: skip
"""Checkpoints whose logits transformers makes: family and options of ``tiny.write``."""

MLX_CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "q2_g32": ("qwen3_5_moe", {"dtype": "bf16", "nested": True, "extras": True}, {}),
    "q3_g64": ("qwen3_5_moe", {"dtype": "f32", "nested": True, "moe_intermediate_size": 64}, {}),
    "q4_g64": ("qwen3_next", {"dtype": "bf16", "mlp_only_layers": [1],
        "moe_intermediate_size": 64}, {}),
    "q4_g128": ("qwen3_moe", {"dtype": "f16", "head_dim": 64, "decoder_sparse_step": 2}, {}),
    "q4_g32": ("qwen3_5_moe", {"dtype": "f32", "nested": True}, {"scale_dtype": "bf16",
        "overrides": {"*.v_proj": {"bits": 6, "group_size": 64},
            "*.switch_mlp.down_proj": {"bits": 8, "group_size": 32},
            "language_model.model.layers.1.*": False}}),
    "q5_g128": ("qwen3_5_moe", {"dtype": "f16", "nested": True, "tie_word_embeddings": True,
        "moe_intermediate_size": 128}, {}),
    "q6_g32": ("qwen3_moe", {"dtype": "bf16", "tie_word_embeddings": True}, {}),
    "q8_g64": ("qwen3_next", {"dtype": "f16", "hidden_size": 192}, {}),
    "q8_g128": ("qwen3_5_moe", {"dtype": "bf16", "nested": True,
        "moe_intermediate_size": 128}, {}),
}  # fmt: skip
"""Checkpoints that mlx-lm quantises: family, options of ``write`` and of ``quantise_mlx``."""

BITS, GROUPS, KINDS = (2, 3, 4, 5, 6, 8), (32, 64, 128), ("F32", "F16", "BF16")


def write_mlx_source(path: Path, name: str) -> Path:
    """The float checkpoint of an MLX case, with the tokenizer that mlx-lm asks for."""
    family, options, _ = MLX_CASES[name]
    tiny.write(path, family, seed=11, vocab_size=272, **options)
    tiny.tokenizer(path, 272)
    return path


def bits_and_group(name: str) -> tuple[int, int]:
    """What an MLX case is called by."""
    bits, group = name[1:].split("_g")
    return int(bits), int(group)


def quantiser_rows(kind: str, bits: int) -> tiny.Tensor:
    """Weights ``[.., 256]`` to try a quantiser with: random ones, and every awkward group."""
    stream = np.random.RandomState(bits)
    n, huge = 2**bits, 6e4 if kind == "F16" else 1e30
    ramp = np.arange(256)
    plain = stream.standard_normal((64, 256)) * 0.05
    one = plain[:1]
    rows = [
        np.zeros((1, 256)), -np.zeros((1, 256)), np.full((2, 256), [[0.5], [-0.5]]),
        np.abs(one), -np.abs(one), one + 5, one - 5, one * 0.01 + 100,  # one sign
        one * 1e-8, one * 1e-6, one * 1e-4, one * huge, stream.standard_normal((1, 256)) * 1e-38,
        np.where(ramp % 7, 0, huge)[None], np.where(ramp % 32, 0, [[1], [-1]]),  # spikes
        (ramp % n)[None], -(ramp % n)[None], (ramp % 3 - 1)[None] * 0.25,  # exact, ties
        np.where(ramp % 2, 0.7, -0.7)[None], stream.randint(0, 2, (1, 256)) * 1e-7,
        stream.randint(-3, 4, (1, 256)), stream.randint(-200, 200, (1, 256)) * 0.125,
        stream.standard_cauchy((1, 256)).clip(-huge, huge),
    ]  # fmt: skip
    return tiny.tensor(np.concatenate([plain, *rows]), kind)


def digest(*tensors: tiny.Tensor) -> str:
    """Of dtypes, shapes and bytes; 16 hexadecimal digits of SHA-256."""
    whole = hashlib.sha256()
    for t in tensors:
        whole.update(f"{t.dtype}{list(t.data.shape)}".encode())
        whole.update(np.ascontiguousarray(t.data).tobytes())
    return whole.hexdigest()[:16]


# ------------------------------------------------------------------------------------- transformers


@contextlib.contextmanager
def promoted() -> Iterator[None]:
    """Turn every cast to float32 inside transformers into one to float64."""
    import torch

    kept = torch.float32, torch.float, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.float32, torch.float, torch.Tensor.float = kept


def transformers_logits(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Logits by transformers in float32, and by the same code in float64."""
    import torch
    import transformers

    config = json.loads((path / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    model = kind.from_pretrained(path, dtype=torch.float32, experts_implementation="eager").eval()
    ids = torch.tensor(IDS)[None]
    with torch.no_grad():
        single = model(ids).logits[0].numpy()
        model = model.double()
        with promoted():
            for name, part in model.named_modules():
                if name.endswith("rotary_emb") and "visual" not in name:
                    part.inv_freq = type(part)(part.config).inv_freq
            double = model(ids).logits[0].numpy()
    return single, double


YARN_CASES: list[dict[str, Any]] = [
    {"rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
    {"rope_theta": 1e7, "factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0,
     "mscale_all_dim": 0.7, "beta_fast": 16, "beta_slow": 2},
    {"rope_theta": 1.5e5, "factor": 32.0, "original_max_position_embeddings": 4096,
     "truncate": False, "partial_rotary_factor": 0.5},
    {"rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 6},
    {"rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 2},
    {"rope_theta": 20.0, "factor": 3.0, "original_max_position_embeddings": 3000},
    {"rope_theta": 1e6, "factor": 0.5, "original_max_position_embeddings": 4096},
    {"rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 4096,
     "attention_factor": 1.25},
]  # fmt: skip
"""Parameters of YaRN at its corners: no ramp, one step, one outside the heads, given factors."""


def make_yarn() -> None:
    """``yarn.json``: frequencies and factors that transformers computes for heads of 64."""
    from transformers import Qwen3MoeConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    out = []
    for case in YARN_CASES:
        config = Qwen3MoeConfig(head_dim=64, rope_parameters={"rope_type": "yarn", **case})
        with promoted():
            freq, factor = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
        out.append({"inv_freq": freq.tolist(), "factor": factor})
    _save_json("yarn", out)


def make_transformers(work: Path) -> None:
    """``transformers.npz``: float64 logits of ``ROWS``; ``…json``: how far float32 is from them."""
    out, spread = {}, {}
    for name, (family, options) in TEXT_CASES.items():
        path = tiny.write(work / name, family, seed=5, **options)
        single, double = transformers_logits(path)
        spread[name] = float(((single - double) ** 2).sum() / (double**2).sum())
        out[name] = double[ROWS]
        print(f"transformers {name}: float32 NMSE {spread[name]:.1e}")
    np.savez_compressed(GOLDEN / "transformers.npz", **out)
    _save_json("transformers_float32_nmse", spread)


# ---------------------------------------------------------------------------------------------- MLX


def make_mlx(work: Path) -> None:
    """``mlx.npz``: logits of ``ROWS``; ``mlx.json``: digests of the tensors of mlx-lm."""
    out, digests = {}, {}
    for name in MLX_CASES:
        source = write_mlx_source(work / name, name)
        config, path = convert(source, work / f"{name}_mlx", name)
        tensors = {key: digest(value) for key, value in sorted(tiny.read(path).items())}
        digests[name] = {"quantization": config["quantization"], "tensors": tensors}
        out[name] = mlx_logits(path)[ROWS]
        print(f"mlx {name}: {len(tensors)} tensors")
    np.savez_compressed(GOLDEN / "mlx.npz", **out)
    _save_json("mlx", digests)


def convert(source: Path, path: Path, name: str) -> tuple[dict[str, Any], Path]:
    """Run ``mlx_lm.convert`` as its command line would; the config it wrote."""
    import mlx_lm

    bits, group = bits_and_group(name)
    options = MLX_CASES[name][2]
    overrides = options.get("overrides", {})

    def choose(path: str, _: Any) -> Any:
        choice = [True, *(c for p, c in overrides.items() if fnmatch(path, p))][-1]
        routers = ("mlp.gate", "mlp.shared_expert_gate")
        return (
            {"group_size": 64, "bits": 8} if choice is True and path.endswith(routers) else choice
        )

    dtype = tiny.TORCH[tiny.DTYPES[options["scale_dtype"]]] if "scale_dtype" in options else None
    mlx_lm.convert(
        str(source), str(path), quantize=True, q_bits=bits, q_group_size=group, dtype=dtype,
        quant_predicate=choose if overrides else None,
    )  # fmt: skip
    return json.loads((path / "config.json").read_text()), path


def mlx_logits(path: Path) -> np.ndarray:
    """Logits by mlx-lm with every float array widened to float32."""
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm.utils import load_model

    model, _ = load_model(path)
    wide = tree_map(
        lambda a: a.astype(mx.float32) if mx.issubdtype(a.dtype, mx.floating) else a,
        model.parameters(),
    )
    model.update(wide)
    return np.array(model(mx.array(IDS)[None])[0])


def make_quantiser() -> None:
    """``quantiser.json``: digests of ``mx.quantize`` for every dtype, width and group."""
    import mlx.core as mx

    kinds = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
    out = {}
    for kind in KINDS:
        for bits in BITS:
            weights = quantiser_rows(kind, bits)
            array = mx.array(weights.floats()).astype(kinds[kind])
            for group in GROUPS:
                codes, *floats = mx.quantize(array, group, bits)
                parts = [tiny.tensor(np.array(f.astype(mx.float32)), kind) for f in floats]
                out[f"{kind}_q{bits}_g{group}"] = digest(
                    tiny.Tensor("U32", np.array(codes)), *parts
                )
    _save_json("quantiser", out)


def make_fp8() -> None:
    """``fp8.json``: torch's E4M3 of ``fp8_inputs``, and the values of all finite codes."""
    import torch

    coded = torch.tensor(fp8_inputs()).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    codes = torch.tensor(fp8_codes()).view(torch.float8_e4m3fn).float().numpy()
    _save_json(
        "fp8",
        {"encoded": digest(tiny.Tensor("U8", coded)), "decoded": digest(tiny.Tensor("F32", codes))},
    )


def fp8_inputs() -> np.ndarray:
    """Numbers up to 448 with every tie between two neighbouring codes among them."""
    grid = tiny.e4m3()[:127].astype(np.float64)
    ties = (grid[1:] + grid[:-1]) / 2
    normal = np.random.RandomState(3).standard_normal(2000) * 30
    both = np.concatenate([grid, ties, normal.clip(-448, 448)])
    return np.concatenate([both, -both]).astype(np.float32)


def fp8_codes() -> np.ndarray:
    """Every code that is a number."""
    return np.array([c for c in range(256) if c & 127 != 127], np.uint8)


def _save_json(name: str, value: Any) -> None:
    (GOLDEN / f"{name}.json").write_text(json.dumps(value, indent=0, sort_keys=True) + "\n")


def main() -> None:
    """Make everything."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    GOLDEN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        make_quantiser()
        make_fp8()
        make_yarn()
        make_transformers(Path(work))
        make_mlx(Path(work))


if __name__ == "__main__":
    main()
