"""Tiny random checkpoints as real directories, written with numpy alone.

``write`` makes what a model's publisher would release, ``quantise_mlx`` what ``mlx_lm.convert``
would make of it, ``fp8`` its FP8 release. Weights come from ``numpy.random.RandomState``, whose
stream is frozen, so that golden data made from a seed stays valid.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from tiny_files import (
    Config,
    Tensor,
    edit_header,
    file_of,
    header,
    read,
    rewrite_tensor,
    save,
    save_index,
    save_shards,
    tensor,
    truncate,
)

__all__ = [
    "FAMILIES",
    "Tensor",
    "affine",
    "e4m3",
    "edit_header",
    "file_of",
    "fp8",
    "header",
    "nearest_e4m3",
    "pack",
    "quantise",
    "quantise_mlx",
    "read",
    "rewrite_tensor",
    "save",
    "tensor",
    "tokenizer",
    "truncate",
    "write",
]

FAMILIES = ("qwen3_5_moe", "qwen3_next", "qwen3_moe")
DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CONVERSATION = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


# ------------------------------------------------------------------------------- random checkpoints


def write(
    path: Path | str,
    family: str,
    *,
    seed: int,
    dtype: str = "f32",
    layout: str | None = None,
    shards: int = 1,
    nested: bool = False,
    extras: bool = False,
    **overrides: Any,
) -> Path:
    """Write a random checkpoint as it would be published.

    Args:
        path: The directory to make.
        family: One of ``FAMILIES``.
        seed: Of the weights; they do not depend on ``layout``, ``nested``, ``shards``.
        dtype: ``f32``, ``bf16`` or ``f16``.
        layout: ``fused`` or ``per_expert``; None: as the family is published.
        shards: Number of files; more than one come with an index.
        nested: ``text_config`` inside the config of a multimodal wrapper (``qwen3_5_moe`` only).
        extras: Also vision and MTP tensors, which a text model leaves alone.
        overrides: Fields of the (text) config; ``...`` leaves a field out.

    Returns:
        The directory.
    """
    path = Path(path)
    path.mkdir(parents=True)
    if nested and family != "qwen3_5_moe":
        raise ValueError(f"{family} has no nested config")
    fused = (layout or ("fused" if family == "qwen3_5_moe" else "per_expert")) == "fused"
    text = _config(family, DTYPES[dtype], overrides)
    (path / "config.json").write_text(json.dumps(_nest(text) if nested else text, indent=2))
    prefix = "model.language_model." if nested else "model."
    draw = _Draw(np.random.RandomState(seed), DTYPES[dtype])
    tensors = {
        (name if name.startswith("lm_head") else prefix + name): value
        for name, value in _parameters(family, text, draw, fused)
    }
    if extras:
        for name, shape in (
            ("model.visual.blocks.0.attn.proj.weight", (32, 32)),
            ("mtp.fc.weight", (text["hidden_size"], 2 * text["hidden_size"])),
            ("mtp.norm.weight", (text["hidden_size"],)),
        ):
            tensors[name] = draw(shape, 0.1)
    save_shards(path, tensors, shards)
    return path


def _config(family: str, dtype: str, overrides: Config) -> Config:
    c: Config = {
        "architectures": [_ARCHITECTURE[family]],
        "model_type": "qwen3_5_moe_text" if family == "qwen3_5_moe" else family,
        "dtype": TORCH[dtype],
        "hidden_size": 128, "num_hidden_layers": 4, "vocab_size": 97,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 48,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False,
        "max_position_embeddings": 4096, "tie_word_embeddings": False,
        "num_experts": 12, "num_experts_per_tok": 4, "moe_intermediate_size": 32,
    }  # fmt: skip
    if family != "qwen3_moe":
        c |= {
            "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
            "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4,
            "full_attention_interval": 4, "shared_expert_intermediate_size": 64,
        }  # fmt: skip
    if family == "qwen3_5_moe":
        c["rope_parameters"] = {
            "rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25,
            "mrope_interleaved": True, "mrope_section": [2, 2, 2],
        }  # fmt: skip
        c["mamba_ssm_dtype"] = "float32"
    else:
        c |= {
            "rope_theta": 1000000, "rope_scaling": None, "norm_topk_prob": True,
            "decoder_sparse_step": 1, "mlp_only_layers": [], "intermediate_size": 96,
        }  # fmt: skip
    if family == "qwen3_next":
        c["partial_rotary_factor"] = 0.25
    if "rope_parameters" in overrides:
        for name in ("rope_theta", "rope_scaling", "partial_rotary_factor"):
            c.pop(name, None)
    elif "rope_scaling" in overrides and family == "qwen3_5_moe":
        del c["rope_parameters"]
        c |= {"rope_theta": 10000000, "partial_rotary_factor": 0.25}
    c |= overrides
    return {name: value for name, value in c.items() if value is not ...}


_ARCHITECTURE = {
    "qwen3_5_moe": "Qwen3_5MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


def _nest(text: Config) -> Config:
    text = dict(text)
    del text["architectures"]
    vision = {
        "model_type": "qwen3_5_moe", "depth": 1, "hidden_size": 32, "num_heads": 2,
        "intermediate_size": 64, "out_hidden_size": text["hidden_size"],
    }  # fmt: skip
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "text_config": text,
        "vision_config": vision,
        "image_token_id": 1, "video_token_id": 2,
        "vision_start_token_id": 3, "vision_end_token_id": 4,
        "tie_word_embeddings": text["tie_word_embeddings"],
    }  # fmt: skip


class _Draw:
    """Normal random tensors, rounded to the dtype of the checkpoint."""

    def __init__(self, stream: np.random.RandomState, dtype: str) -> None:
        self.stream = stream
        self.dtype = dtype

    def __call__(self, shape: tuple[int, ...], std: float, mean: float = 0.0) -> Tensor:
        return tensor(mean + std * self.stream.standard_normal(shape), self.dtype)

    def matrix(self, *shape: int, gain: float = 1.0) -> Tensor:
        """A linear layer ``[..., out, in]`` that keeps the size of its input, by ``gain``."""
        return self(shape, gain / math.sqrt(shape[-1]))


def is_full_attention(family: str, c: Config, layer: int) -> bool:
    """Whether a layer mixes by attention rather than by the delta rule."""
    if family == "qwen3_moe":
        return True
    if c.get("layer_types") is not None:
        return bool(c["layer_types"][layer] == "full_attention")
    return (layer + 1) % int(c.get("full_attention_interval", 4)) == 0


def is_sparse(c: Config, layer: int) -> bool:
    """Whether a layer has experts."""
    step = c.get("decoder_sparse_step", 1)
    return layer not in c.get("mlp_only_layers", ()) and (layer + 1) % step == 0


def _parameters(family: str, c: Config, draw: _Draw, fused: bool) -> Iterator[tuple[str, Tensor]]:
    hidden, vocab = c["hidden_size"], c["vocab_size"]
    centre = 1.0 if family == "qwen3_moe" else 0.0
    yield "embed_tokens.weight", draw((vocab, hidden), 1.0)
    for i in range(c["num_hidden_layers"]):
        at = f"layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}{norm}.weight", draw((hidden,), 0.2, centre)
        if is_full_attention(family, c, i):
            yield from _attention(at + "self_attn.", c, draw, family != "qwen3_moe", centre)
        else:
            yield from _delta(at + "linear_attn.", c, draw, family == "qwen3_next")
        if not is_sparse(c, i):
            yield from _dense(at + "mlp.", hidden, c["intermediate_size"], draw)
            continue
        yield from _experts(at + "mlp.", c, draw, fused)
        if family != "qwen3_moe":
            wide = c["shared_expert_intermediate_size"]
            yield from _dense(at + "mlp.shared_expert.", hidden, wide, draw)
            yield at + "mlp.shared_expert_gate.weight", draw.matrix(1, hidden)
    yield "norm.weight", draw((hidden,), 0.2, centre)
    head = draw.matrix(vocab, hidden, gain=1.5)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", head


def _attention(
    at: str, c: Config, draw: _Draw, gated: bool, centre: float
) -> Iterator[tuple[str, Tensor]]:
    hidden, dim = c["hidden_size"], c["head_dim"]
    heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
    yield at + "q_proj.weight", draw.matrix(heads * dim * (2 if gated else 1), hidden)
    yield at + "k_proj.weight", draw.matrix(kv_heads * dim, hidden)
    yield at + "v_proj.weight", draw.matrix(kv_heads * dim, hidden)
    yield at + "o_proj.weight", draw.matrix(hidden, heads * dim)
    yield at + "q_norm.weight", draw((dim,), 0.2, centre)
    yield at + "k_norm.weight", draw((dim,), 0.2, centre)


def _delta(at: str, c: Config, draw: _Draw, grouped: bool) -> Iterator[tuple[str, Tensor]]:
    hidden, values = c["hidden_size"], c["linear_num_value_heads"]
    key_dim = c["linear_num_key_heads"] * c["linear_key_head_dim"]
    value_dim = values * c["linear_value_head_dim"]
    if grouped:
        yield at + "in_proj_qkvz.weight", draw.matrix(2 * key_dim + 2 * value_dim, hidden)
        yield at + "in_proj_ba.weight", draw.matrix(2 * values, hidden)
    else:
        yield at + "in_proj_qkv.weight", draw.matrix(2 * key_dim + value_dim, hidden)
        yield at + "in_proj_z.weight", draw.matrix(value_dim, hidden)
        yield at + "in_proj_b.weight", draw.matrix(values, hidden)
        yield at + "in_proj_a.weight", draw.matrix(values, hidden)
    taps = c["linear_conv_kernel_dim"]
    yield at + "conv1d.weight", draw((2 * key_dim + value_dim, 1, taps), 0.5)
    decay = draw((values,), 1.0)
    yield at + "A_log", decay if grouped else Tensor("F32", decay.floats())
    yield at + "dt_bias", draw((values,), 1.0, -1.0)
    yield at + "norm.weight", draw((c["linear_value_head_dim"],), 0.2, 1.0)
    yield at + "out_proj.weight", draw.matrix(hidden, value_dim)


def _dense(at: str, hidden: int, wide: int, draw: _Draw) -> Iterator[tuple[str, Tensor]]:
    yield at + "gate_proj.weight", draw.matrix(wide, hidden)
    yield at + "up_proj.weight", draw.matrix(wide, hidden)
    yield at + "down_proj.weight", draw.matrix(hidden, wide)


def _experts(at: str, c: Config, draw: _Draw, fused: bool) -> Iterator[tuple[str, Tensor]]:
    experts, hidden, wide = c["num_experts"], c["hidden_size"], c["moe_intermediate_size"]
    yield at + "gate.weight", draw.matrix(experts, hidden, gain=2.0)
    gate_up = draw.matrix(experts, 2 * wide, hidden)
    down = draw.matrix(experts, hidden, wide)
    if fused:
        yield at + "experts.gate_up_proj", gate_up
        yield at + "experts.down_proj", down
        return
    yield from _split(at, gate_up, down)


def _split(at: str, gate_up: Tensor, down: Tensor) -> Iterator[tuple[str, Tensor]]:
    half = gate_up.data.shape[1] // 2
    for e in range(len(down.data)):
        for name, data in (
            ("gate_proj", gate_up.data[e, :half]),
            ("up_proj", gate_up.data[e, half:]),
            ("down_proj", down.data[e]),
        ):
            yield f"{at}experts.{e}.{name}.weight", Tensor(down.dtype, data.copy())


# ---------------------------------------------------------------------------------- MLX's quantiser
#
# The arithmetic of ``mx.quantize`` (mlx 0.32, CPU), bit for bit: bf16 and f16 inputs are widened
# to float32 and all that follows is float32; divisions are true divisions, roundings are half to
# even; codes come from the float32 scale, and only the stored scale is rounded to the dtype of the
# weights (the bias is one of the weights or 0, hence exact).


def affine(weights: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, ...]:
    """Codes ``[..., in]``, scales and biases ``[..., in / group]`` of float32 weights."""
    w = np.asarray(weights, np.float32)
    w = w.reshape(*w.shape[:-1], w.shape[-1] // group, group)
    n = np.float32(2**bits - 1)
    with np.errstate(over="ignore"):
        high, low = w.max(-1), w.min(-1)
        scale = np.maximum((high - low) / n, np.float32(1e-7))
        below = np.abs(low) > np.abs(high)
        scale, edge = np.where(below, scale, -scale), np.where(below, low, high)
        steps = np.rint(edge / scale)
        exact = steps != 0
        scale = np.where(exact, edge / np.where(exact, steps, np.float32(1)), scale)
        bias = np.where(exact, edge, np.float32(0))
        codes = np.clip(np.rint((w - bias[..., None]) / scale[..., None]), 0, n)
    return codes.reshape(weights.shape).astype(np.uint8), scale, bias


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Each row as one stream of bits, the lowest first, in uint32 words."""
    stream = (codes[..., None] >> np.arange(bits, dtype=np.uint8)) & 1
    stream = stream.reshape(*codes.shape[:-1], -1)
    return np.packbits(stream, axis=-1, bitorder="little").view("<u4")


def quantise(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """The three tensors that ``mx.quantize`` makes of a weight."""
    codes, scale, bias = affine(weight.floats(), bits, group)
    with np.errstate(over="ignore"):
        stored = tensor(scale, weight.dtype), tensor(bias, weight.dtype)
    return Tensor("U32", pack(codes, bits)), *stored


def quantise_mlx(
    src: Path,
    dst: Path,
    bits: int,
    group_size: int,
    *,
    overrides: Mapping[str, Any] | None = None,
    misaligned: bool = True,
    scale_dtype: str | None = None,
) -> Path:
    """Write what ``mlx_lm.convert -q`` makes of a checkpoint.

    Args:
        src: A directory made by ``write``.
        dst: The directory to make.
        bits: 2, 3, 4, 5, 6 or 8.
        group_size: 32, 64 or 128.
        overrides: By pattern of the module path: ``{"bits": b, "group_size": g}``, or False to
            leave it as it is. Later patterns win, and all win over the 8-bit routers.
        misaligned: Let all data start at odd offsets, as MLX's writer may.
        scale_dtype: ``f32``, ``bf16`` or ``f16``, of scales and of all that stays float; None: as
            the checkpoint.
    """
    src, dst = Path(src), Path(dst)
    dst.mkdir(parents=True)
    config = json.loads((src / "config.json").read_text())
    config.pop("vision_config", None)
    entry: Config = {"group_size": group_size, "bits": bits, "mode": "affine"}
    out: dict[str, Tensor] = {}
    for name, value in _mlx_tensors(read(src), config).items():
        if scale_dtype and not (name.endswith("A_log") and name.startswith("language_model.")):
            value = tensor(value.floats(), DTYPES[scale_dtype])
        path = name.removesuffix(".weight")
        choice = _choice(path, value, group_size, overrides or {})
        if choice is False:
            out[name] = value
            continue
        if isinstance(choice, dict):
            entry[path] = choice
        how = {"group_size": group_size, "bits": bits} | (choice if choice is not True else {})
        parts = quantise(value, how["bits"], how["group_size"])
        out |= {f"{path}.{part}": t for part, t in zip(_PARTS, parts, strict=True)}
    config["quantization"] = config["quantization_config"] = entry
    (dst / "config.json").write_text(json.dumps(dict(sorted(config.items())), indent=4))
    save(dst / "model.safetensors", out, "mlx", misaligned=misaligned)
    save_index(dst, out, dict.fromkeys(out, "model.safetensors"))
    _copy_text(src, dst)
    return dst


_PARTS = ("weight", "scales", "biases")
_SHIFTED = ("input_layernorm", "post_attention_layernorm", "model.norm", "q_norm", "k_norm")


def _choice(path: str, value: Tensor, group: int, overrides: Mapping[str, Any]) -> Any:
    """What to do with a module: True, False, or its own bits and group."""
    if value.data.ndim < 2 or path.endswith("conv1d") or value.data.shape[-1] % group:
        return False
    choice: Any = True
    if path.endswith(("mlp.gate", "mlp.shared_expert_gate")):
        choice = {"group_size": 64, "bits": 8}
    for pattern, wanted in overrides.items():
        if fnmatch(path, pattern):
            choice = dict(wanted) if isinstance(wanted, Mapping) else wanted
    return choice


def _mlx_tensors(tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Names, stacked experts, moved convolutions and shifted norms of MLX."""
    family = config["model_type"]
    tied = config.get("text_config", config)["tie_word_embeddings"]
    out: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, value in tensors.items():
        if name.startswith(("mtp.", "model.visual")) or (tied and name == "lm_head.weight"):
            continue
        if family.startswith("qwen3_5_moe"):
            if name.startswith("model.language_model."):
                name = name.replace("model.language_model.", "model.", 1)
            name = "language_model." + name
        if name.endswith("conv1d.weight"):
            value = Tensor(value.dtype, np.ascontiguousarray(np.moveaxis(value.data, 2, 1)))
        if family != "qwen3_moe" and name.removesuffix(".weight").endswith(_SHIFTED):
            value = tensor(value.floats() + np.float32(1), value.dtype)
        at, _, rest = name.partition(".mlp.experts.")
        switch = f"{at}.mlp.switch_mlp."
        if not rest:
            out[name] = value
        elif rest == "gate_up_proj":
            half = value.data.shape[1] // 2
            out[switch + "gate_proj.weight"] = Tensor(value.dtype, value.data[:, :half].copy())
            out[switch + "up_proj.weight"] = Tensor(value.dtype, value.data[:, half:].copy())
        elif rest == "down_proj":
            out[switch + "down_proj.weight"] = value
        else:
            expert, _, part = rest.partition(".")
            stacks.setdefault(switch + part, {})[int(expert)] = value.data
            out[switch + part] = value  # for its dtype; stacked below
    for name, parts in stacks.items():
        out[name] = Tensor(out[name].dtype, np.stack([parts[e] for e in sorted(parts)]))
    return out


# -------------------------------------------------------------------------------------- FP8 release


def e4m3() -> np.ndarray:
    """The values of all 256 codes, float32; 0x7F and 0xFF are NaN."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    value = np.where(exponent == 0, mantissa / 8 * 2.0**-6,
                     (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))  # fmt: skip
    value[(code & 127) == 127] = np.nan
    return np.where(code & 128, -value, value).astype(np.float32)


def fp8(src: Path, dst: Path, block: int = 128) -> Path:
    """Write the FP8 release of a checkpoint: experts apart, bf16 scales by ``block × block``."""
    src, dst = Path(src), Path(dst)
    dst.mkdir(parents=True)
    out: dict[str, Tensor] = {}
    kept: list[str] = []
    for name, value in _unfused(read(src)).items():
        path = name.removesuffix(".weight")
        plain = path.endswith(("mlp.gate", "shared_expert_gate", "embed_tokens", "lm_head",
                               "in_proj_a", "in_proj_b", "in_proj_ba", "conv1d"))  # fmt: skip
        if value.data.ndim != 2 or plain or name.startswith(("mtp.", "model.visual")):
            out[name] = value if name.endswith("A_log") else tensor(value.floats(), "BF16")
            kept += [path] if value.data.ndim == 2 else []
            continue
        out[name], out[name + "_scale_inv"] = _blocks(value.floats(), block)
    config = json.loads((src / "config.json").read_text())
    config.get("text_config", config)["dtype"] = "bfloat16"
    config["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
        "weight_block_size": [block, block], "modules_to_not_convert": kept,
    }  # fmt: skip
    (dst / "config.json").write_text(json.dumps(config, indent=2))
    save_shards(dst, out, 2)
    _copy_text(src, dst)
    return dst


def _blocks(w: np.ndarray, block: int) -> tuple[Tensor, Tensor]:
    rows, columns = (-(-n // block) for n in w.shape)
    padded = np.zeros((rows * block, columns * block), np.float32)
    padded[: w.shape[0], : w.shape[1]] = w
    most = np.abs(padded).reshape(rows, block, columns, block).max((1, 3))
    scale = tensor(np.maximum(most / 448, 1e-12), "BF16")
    wide = scale.floats().repeat(block, 0).repeat(block, 1)[: w.shape[0], : w.shape[1]]
    return Tensor("F8_E4M3", nearest_e4m3(w / wide)), scale


def nearest_e4m3(values: np.ndarray) -> np.ndarray:
    """The codes nearest to finite float32 values, the even one at a tie, 448 beyond the last."""
    grid = e4m3()[:127]
    middle = (grid[1:] + grid[:-1]) / 2
    size = np.abs(values)
    code = np.searchsorted(middle, size, side="left")
    code += np.isin(size, middle) & (code % 2 == 1)
    return (code | np.where(np.signbit(values), 128, 0)).astype(np.uint8)


def _unfused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name.endswith("experts.gate_up_proj"):
            at = name.removesuffix("experts.gate_up_proj")
            out |= dict(_split(at, value, tensors[at + "experts.down_proj"]))
        elif not name.endswith("experts.down_proj"):
            out[name] = value
    return out


# --------------------------------------------------------------------------------------------- text


def tokenizer(path: Path | str, vocab: int) -> None:
    """Write a byte-level BPE tokenizer of exactly ``vocab`` ids, and a chat template.

    The last three ids are ``<|endoftext|>``, ``<|im_start|>`` and ``<|im_end|>``.
    """
    path = Path(path)
    letters = "etaoinshrdlcumwfgypbvkjxqz"
    pairs = [(a, b) for a in letters for b in letters]
    plain = vocab - 256 - 3
    if not 0 <= plain <= len(pairs):
        raise ValueError(f"vocab must be 259 to {259 + len(pairs)}, not {vocab}")
    words = _byte_letters() + [a + b for a, b in pairs[:plain]]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    added = [
        {"id": len(words) + i, "content": text, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": True}
        for i, text in enumerate(specials)
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                  "use_regex": True}  # fmt: skip
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False, "vocab": {word: i for i, word in enumerate(words)},
        "merges": [[a, b] for a, b in pairs[:plain]],
    }  # fmt: skip
    whole = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None,
        "decoder": byte_level, "model": model,
    }  # fmt: skip
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None,
        "added_tokens_decoder": {str(a.pop("id")): a for a in json.loads(json.dumps(added))},
        "add_prefix_space": False, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False), "utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), "utf-8")
    (path / "chat_template.jinja").write_text(CONVERSATION, "utf-8")


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte, by byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = iter(range(256, 512))
    return [chr(b) if b in shown else chr(next(hidden)) for b in range(256)]


def _copy_text(src: Path, dst: Path) -> None:
    for file in src.iterdir():
        if file.name.startswith(("tokenizer", "chat_template", "generation_config")):
            shutil.copy(file, dst / file.name)
