"""Checkpoint directories: every byte a manifest places is the byte the checkpoint meant."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layouts
from flashmoe import _core
from flashmoe.checkpoint import Checkpoint, build_manifest, open_checkpoint
from flashmoe.errors import ModelFormatError, UnsupportedModelError
from flashmoe.manifest import Manifest, Tensor

COMBINATIONS = [
    # family, experts, format, prefix, head, shards, nested
    ("qwen3_5_moe", "fused", "BF16", "model.language_model.", "lm_head", 3, True),
    ("qwen3_5_moe", "fused", "F32", "model.", "lm_head", 1, False),
    ("qwen3_5_moe", "separate", "F16", "model.", "", 5, False),
    ("qwen3_5_moe", "stacked", "BF16", "language_model.model.", "language_model.lm_head", 1, True),
    (
        "qwen3_5_moe",
        "stacked",
        "affine:4:32:BF16",
        "language_model.model.",
        "language_model.lm_head",
        3,
        True,
    ),
    ("qwen3_5_moe", "stacked", "affine:3:32:F16", "language_model.model.", "", 1, False),
    ("qwen3_5_moe", "separate", "fp8:32:32:BF16", "model.language_model.", "lm_head", 4, True),
    ("qwen3_5_moe", "separate", "fp8:128:128:F32", "model.language_model.", "lm_head", 1, True),
    ("qwen3_next", "separate", "BF16", "model.", "lm_head", 2, False),
    ("qwen3_next", "stacked", "affine:2:32:F32", "model.", "lm_head", 1, False),
    ("qwen3_next", "stacked", "affine:5:32:BF16", "model.", "", 2, False),
    ("qwen3_next", "separate", "fp8:24:16:F32", "model.", "lm_head", 3, False),
    ("qwen3_moe", "separate", "BF16", "model.", "lm_head", 3, False),
    ("qwen3_moe", "fused", "F32", "model.", "", 1, False),
    ("qwen3_moe", "stacked", "affine:8:32:BF16", "model.", "lm_head", 1, False),
    ("qwen3_moe", "separate", "fp8:16:16:BF16", "model.", "lm_head", 1, False),
]


def rows_of(path: Path, manifest: Manifest, tensor: Tensor, part: str) -> np.ndarray:
    """Bytes of every row of a tensor's part, read where the manifest says."""
    out = []
    for file, at, nbytes in tensor.spans(part):
        with (path / manifest.files[file].path).open("rb") as f:
            f.seek(at)
            out.append(f.read(nbytes))
    data = np.frombuffer(b"".join(out), np.uint8)
    high = tensor.quant.block[0] if part == "scales" and tensor.quant.kind == "fp8" else 1
    rows = data.reshape(-(-tensor.rows // high), -1)
    return rows[np.arange(tensor.rows) // high]


def same_quant(got: str, want: str) -> bool:
    """Equal formats, where ``*`` stands for any height of FP8's blocks."""
    return re.fullmatch(re.escape(want).replace(r"\*", r"\d+"), got) is not None


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(map(str, c[:3])))
def test_every_byte_is_where_the_manifest_says(tmp_path, combination):
    family, experts, quant, prefix, head, shards, nested = combination
    path = tmp_path / "model"
    want = layouts.write(path, family, experts, quant, prefix, head, shards, nested)
    before = {p.name: p.stat().st_mtime_ns for p in path.iterdir()}
    checkpoint = open_checkpoint(path)
    assert {p.name: p.stat().st_mtime_ns for p in path.iterdir()} == before
    manifest = checkpoint.manifest

    assert set(manifest.tensors) == set(want.tensors)
    for name, (kind, parts) in want.tensors.items():
        tensor = manifest.tensors[name]
        assert same_quant(tensor.quant.text, kind), name
        assert tensor.add == (name in want.add), name
        assert set(tensor.quant.parts) == set(parts), name
        for part, rows in parts.items():
            assert np.array_equal(rows_of(path, manifest, tensor, part), rows), (name, part)

    assert [e.layer for e in manifest.experts] == sorted(want.experts)
    for one in manifest.experts:
        for got, kind in zip((one.gate, one.up, one.down), want.quants[one.layer], strict=True):
            assert same_quant(got.text, kind)
        layout = manifest.record_layout(one.layer)
        places = want.experts[one.layer]
        assert {x.part for x in one.extents} == set(places) == set(layout.parts)
        for extent in one.extents:
            nbytes = layout.parts[extent.part].nbytes
            for expert, data in enumerate(places[extent.part]):
                file, at = extent.place(expert)
                whole = (path / manifest.files[file].path).read_bytes()
                assert whole[at : at + nbytes] == data, (one.layer, extent.part, expert)

    assert Manifest.parse(manifest.to_text()) == manifest
    kinds = {"fp8": "fp8", "stacked": "mlx"}
    assert checkpoint.kind == kinds.get(quant[:3], kinds.get(experts, "safetensors"))
    assert build_manifest(checkpoint.config, checkpoint.headers) == manifest


@pytest.mark.parametrize(
    "combination",
    [c for c in COMBINATIONS if not c[2].startswith("fp8")],
    ids=lambda c: "-".join(map(str, c[:3])),
)
def test_the_core_reads_the_same(tmp_path, combination):
    """The core takes every manifest, and counts the same bytes."""
    path = tmp_path / "model"
    layouts.write(path, *combination)
    manifest = open_checkpoint(path).manifest
    model = _core.Model(
        manifest.to_text(),
        str(path),
        device="cpu",
        memory=1 << 30,
        threads=1,
        experts_per_token=0,
        kv="f32",
        read="buffered",
    )
    info = model.info()
    model.close()
    assert 0 <= info["resident_bytes"] - manifest.resident_bytes <= 64  # slack for wide reads
    image = max(manifest.expert_bytes(e.layer) for e in manifest.experts)
    assert 0 <= info["expert_bytes"] - image < 4096  # a slot may end on a page


def test_what_is_ignored(tmp_path):
    """Vision towers and multi-token prediction, even in a shard of their own."""
    path = tmp_path / "model"
    layouts.write(path, shards=2)
    want = open_checkpoint(path).manifest
    change_index(
        path, extra={"mtp.fc.weight": "extra.safetensors", "model.visual.x": "extra.safetensors"}
    )
    some = ("BF16", (2, 2), bytes(8))
    layouts.save(path / "extra.safetensors", {"mtp.fc.weight": some, "model.visual.x": some})
    assert open_checkpoint(path).manifest == want


def test_norms_of_mlx_without_any_convolution(tmp_path):
    """The config's quantization, or the files' metadata, tell where no convolution does."""
    maker = attention_only(tmp_path / "hf", {"format": "pt"})
    assert maker.manifest.tensors["norm"].add == 1
    assert attention_only(tmp_path / "mlx", {"format": "mlx"}).manifest.tensors["norm"].add == 0


def attention_only(path: Path, meta: dict[str, str]) -> Checkpoint:
    layouts.write(path)
    config = json.loads((path / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    (path / "config.json").write_text(json.dumps(config))
    kept = {}
    for name, value in tensors(path).items():
        if "layers." not in name or ".1." in name:
            kept[name.replace("layers.1.", "layers.0.")] = value
    layouts.save(path / "model.safetensors", kept, **meta)
    return open_checkpoint(path)


# refusals: each case changes one sound checkpoint, and the words of the error are checked


def tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The tensors of ``model.safetensors``, by name."""
    data = (path / "model.safetensors").read_bytes()
    n = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + n])
    table.pop("__metadata__", None)
    return {
        k: (
            v["dtype"],
            tuple(v["shape"]),
            data[8 + n + v["data_offsets"][0] : 8 + n + v["data_offsets"][1]],
        )
        for k, v in table.items()
    }


def change_index(path: Path, extra: dict[str, str] | None = None, drop: str | None = None) -> None:
    file = path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"] |= extra or {}
    if drop:
        del index["weight_map"][drop]
    file.write_text(json.dumps(index))


ROUTER = "model.layers.0.mlp.gate.weight"
SOME = ("BF16", (3, 5), bytes(30))
TENSOR_CASES: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "missing",
        {ROUTER: None},
        ModelFormatError,
        r"layers\.0\.mlp\.gate\.weight \[6, 64\] is missing",
    ),
    (
        "misshapen",
        {ROUTER: SOME},
        ModelFormatError,
        r"mlp\.gate\.weight has shape \[3, 5\]; it must be \[6, 64\]",
    ),
    (
        "extra",
        {"model.layers.0.mlp.surprise": SOME},
        UnsupportedModelError,
        r"model\.layers\.0\.mlp\.surprise",
    ),
    (
        "layer beyond the last",
        {"model.layers.4.input_layernorm.weight": SOME},
        UnsupportedModelError,
        r"layers\.4\.input_layernorm",
    ),
    (
        "bias",
        {"model.layers.1.self_attn.q_proj.bias": SOME},
        UnsupportedModelError,
        r"q_proj\.bias",
    ),
    (
        "integers",
        {ROUTER: ("I32", (6, 64), bytes(1536))},
        UnsupportedModelError,
        r"mlp\.gate\.weight is stored as I32",
    ),
    (
        "no embedding",
        {"model.embed_tokens.weight": None},
        ModelFormatError,
        "no .*model.embed_tokens.weight",
    ),
    (
        "no head",
        {"lm_head.weight": None},
        ModelFormatError,
        r"lm_head\.weight \[96, 64\] is missing",
    ),
    (
        "no experts",
        {"model.layers.0.mlp.experts.gate_up_proj": None},
        ModelFormatError,
        r"experts\.0\.gate_proj\.weight",
    ),
    (
        "gptq",
        {
            "model.layers.1.self_attn.k_proj.weight": None,
            "model.layers.1.self_attn.k_proj.qweight": SOME,
        },
        UnsupportedModelError,
        "GPTQ or AWQ.*flashmoe convert",
    ),
    (
        "nvfp4",
        {
            "model.layers.1.self_attn.k_proj.weight": ("U8", (64, 32), bytes(2048)),
            "model.layers.1.self_attn.k_proj.weight_scale_2": SOME,
        },
        UnsupportedModelError,
        "NVFP4",
    ),
    (
        "compressed",
        {
            "model.layers.1.self_attn.k_proj.weight": None,
            "model.layers.1.self_attn.k_proj.weight_packed": SOME,
        },
        UnsupportedModelError,
        "compressed-tensors",
    ),
    (
        "fp8 unannounced",
        {ROUTER: ("F8_E4M3", (6, 64), bytes(384))},
        UnsupportedModelError,
        "weight_block_size",
    ),
    (
        "two roots",
        {"model.language_model.embed_tokens.weight": SOME},
        ModelFormatError,
        "more than one of",
    ),
    (
        "mixed convolutions",
        {"model.layers.0.linear_attn.conv1d.weight": ("BF16", (256, 4, 1), bytes(2048))},
        ModelFormatError,
        "two different checkpoints",
    ),
]


@pytest.mark.parametrize(
    ("changes", "kind", "words"), [c[1:] for c in TENSOR_CASES], ids=[c[0] for c in TENSOR_CASES]
)
def test_tensors_are_refused(tmp_path, changes, kind, words):
    path = tmp_path / "model"
    layouts.write(path)
    changed = {**tensors(path), **changes}
    layouts.save(path / "model.safetensors", {k: v for k, v in changed.items() if v is not None})
    with pytest.raises(kind, match=words):
        open_checkpoint(path)


K = "language_model.model.layers.1.self_attn.k_proj"
MLX_CASES: list[tuple[str, dict[str, Any], dict[str, Any], type[Exception], str]] = [
    ("no scales", {f"{K}.scales": None}, {}, ModelFormatError, r"k_proj\.scales.*is missing"),
    ("no biases", {f"{K}.biases": None}, {}, ModelFormatError, r"k_proj\.biases.*is missing"),
    (
        "group of 16",
        {f"{K}.scales": ("BF16", (64, 4), bytes(512))},
        {},
        ModelFormatError,
        r"k_proj\.weight \[64, 8\] with scales \[64, 4\] for rows of 64",
    ),
    (
        "group that does not divide",
        {f"{K}.scales": ("BF16", (64, 3), bytes(384))},
        {},
        ModelFormatError,
        "group size in",
    ),
    ("7 bits", {f"{K}.weight": ("U32", (64, 14), bytes(3584))}, {}, ModelFormatError, "no bits in"),
    (
        "scales of another type",
        {f"{K}.scales": ("F32", (64, 2), bytes(512))},
        {},
        ModelFormatError,
        "BF16, its scales are F32",
    ),
    (
        "mxfp4 by shape",
        {f"{K}.scales": ("U8", (64, 2), bytes(128)), f"{K}.biases": None},
        {},
        UnsupportedModelError,
        "mxfp4.*q-mode affine",
    ),
    ("mode", {}, {"mode": "mxfp4"}, UnsupportedModelError, "mode 'mxfp4'.*mlx_lm.convert"),
    (
        "mode of a module",
        {},
        {K: {"mode": "nvfp4"}},
        UnsupportedModelError,
        f"'nvfp4' of {re.escape(K)}",
    ),
    (
        "override",
        {},
        {K: {"bits": 8, "group_size": 32}},
        ModelFormatError,
        f"{re.escape(K)} bits 8.*make it 4",
    ),
    ("override false", {}, {K: False}, ModelFormatError, "not quantised, but it has scales"),
    ("odd entry", {}, {K: 4}, ModelFormatError, "must be an object, true or false"),
]


@pytest.mark.parametrize(
    ("changes", "said", "kind", "words"), [c[1:] for c in MLX_CASES], ids=[c[0] for c in MLX_CASES]
)
def test_mlx_is_refused(tmp_path, changes, said, kind, words):
    path = tmp_path / "model"
    layouts.write(
        path,
        "qwen3_5_moe",
        "stacked",
        "affine:4:32:BF16",
        "language_model.model.",
        "language_model.lm_head",
    )
    changed = {**tensors(path), **changes}
    layouts.save(path / "model.safetensors", {k: v for k, v in changed.items() if v is not None})
    config = json.loads((path / "config.json").read_text())
    config["quantization"] |= said
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(kind, match=words):
        open_checkpoint(path)


def test_config_default_gives_way_to_shapes(tmp_path):
    """The top-level bits are a default; what is stored decides."""
    path = tmp_path / "model"
    layouts.write(
        path,
        "qwen3_5_moe",
        "stacked",
        "affine:4:32:BF16",
        "language_model.model.",
        "language_model.lm_head",
    )
    config = json.loads((path / "config.json").read_text())
    config["quantization"] = {"bits": 2, "group_size": 128, "some.path": True}
    (path / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(path).manifest.tensors["layers.1.k"].quant.text == "affine:4:32:bf16"


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"quant_method": "gptq", "bits": 4}, "'gptq'.*flashmoe convert"),
        ({"quant_method": "awq", "bits": 4}, "'awq'"),
        ({"quant_method": "compressed-tensors"}, "'compressed-tensors'"),
        ({"quant_method": "modelopt"}, "'modelopt'"),
        ({"quant_method": "mxfp4"}, "'mxfp4'"),
        ({"quant_method": "fp8", "weight_block_size": None}, "weight_block_size None"),
        ({"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128]}, "e5m2"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_quantisation_methods_are_refused(tmp_path, entry, words):
    path = tmp_path / "model"
    layouts.write(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": entry}))
    with pytest.raises(UnsupportedModelError, match=words):
        open_checkpoint(path)


def test_fp8_scales_of_another_shape(tmp_path):
    path = tmp_path / "model"
    layouts.write(path, "qwen3_moe", "separate", "fp8:32:32:BF16")
    name = "model.layers.0.self_attn.k_proj.weight_scale_inv"
    layouts.save(path / "model.safetensors", {**tensors(path), name: SOME})
    with pytest.raises(
        ModelFormatError, match=r"weight_scale_inv has shape \[3, 5\]; it must be \[2, 2\]"
    ):
        open_checkpoint(path)


def test_experts_of_two_formats(tmp_path):
    path = tmp_path / "model"
    layouts.write(path, "qwen3_moe", "separate", "BF16")
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    layouts.save(
        path / "model.safetensors", {**tensors(path), name: ("F16", (32, 64), bytes(4096))}
    )
    with pytest.raises(
        ModelFormatError, match=r"experts\.3\.up_proj\.weight is F16, expert 0's is BF16"
    ):
        open_checkpoint(path)


def test_tied_with_a_head(tmp_path):
    path = tmp_path / "model"
    layouts.write(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(UnsupportedModelError, match=r"tie_word_embeddings.*lm_head\.weight"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "a/b.safetensors", "..", "/etc/passwd", "a b.safetensors", ""]
)
def test_shard_names_stay_inside(tmp_path, name):
    path = tmp_path / "model"
    layouts.write(path, shards=2)
    change_index(path, extra={ROUTER: name})
    with pytest.raises(ModelFormatError, match=r"is not a plain name inside the model directory"):
        open_checkpoint(path)


def test_index_and_shards_disagree(tmp_path):
    path = tmp_path / "model"
    layouts.write(path, shards=2)
    change_index(path, extra={"ghost.weight": "model-00001-of-00002.safetensors"})
    with pytest.raises(ModelFormatError, match=r"ghost.weight is not in model-00001-of-00002"):
        open_checkpoint(path)
    change_index(path, drop="ghost.weight")
    open_checkpoint(path)
    change_index(path, drop=ROUTER)
    with pytest.raises(
        ModelFormatError,
        match=r"mlp\.gate\.weight is in model-0000\d-of-00002.safetensors, not in no file",
    ):
        open_checkpoint(path)


def test_tensor_in_two_shards(tmp_path):
    path = tmp_path / "model"
    layouts.write(path, shards=2)
    (path / "model.safetensors.index.json").unlink()
    open_checkpoint(path)  # by the pattern of the names
    headers = open_checkpoint(path).headers
    config = json.loads((path / "config.json").read_text())
    with pytest.raises(ModelFormatError, match=r"is in two shards"):
        build_manifest(
            config, {**headers, "again.safetensors": headers["model-00001-of-00002.safetensors"]}
        )


def test_missing_shard(tmp_path):
    path = tmp_path / "model"
    layouts.write(path, shards=3)
    (path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"model-00002-of-00003\.safetensors.*download"):
        open_checkpoint(path)
    (path / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelFormatError, match=r"2 files where .* is one of 3"):
        open_checkpoint(path)


def test_index_wins_over_file_names(tmp_path):
    path = tmp_path / "model"
    layouts.write(path, shards=2)
    layouts.save(path / "model-stale.safetensors", {ROUTER: SOME})
    assert len(open_checkpoint(path).manifest.files) == 2


@pytest.mark.parametrize(
    ("file", "data", "words"),
    [
        ("config.json", None, "no config.json"),
        ("config.json", b"{", "is not JSON"),
        ("config.json", b"\xff", "not UTF-8 at offset 0"),
        ("config.json", b"[]", "not a JSON object"),
        ("config.json", b"[" * 100_000, "is not JSON"),
        ("model.safetensors", None, "no model.safetensors"),
        ("model.safetensors.index.json", b"{}", "no weight_map"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 1}}', "gives a the file 1"),
        ("hf_quant_config.json", b"{}", "ModelOpt"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_other_files_are_refused(tmp_path, file, data, words):
    path = tmp_path / "model"
    layouts.write(path)
    if data is None:
        (path / file).unlink()
    else:
        (path / file).write_bytes(data)
    with pytest.raises(ModelFormatError, match=words):
        open_checkpoint(path)


def test_no_directory(tmp_path):
    with pytest.raises(ModelFormatError, match=r"not a directory"):
        open_checkpoint(tmp_path / "absent")


def test_gguf_is_named(tmp_path):
    path = tmp_path / "model"
    layouts.write(path)
    os.rename(path / "model.safetensors", path / "model.gguf")
    with pytest.raises(ModelFormatError, match=r"model\.gguf is in a format"):
        open_checkpoint(path)


def test_packed_directory(tmp_path):
    """A manifest beside a config is read, not made; its files must be the ones it describes."""
    path = tmp_path / "model"
    layouts.write(path)
    manifest = open_checkpoint(path).manifest
    (path / "manifest.fm").write_text(manifest.to_text())
    checkpoint = open_checkpoint(path)
    assert checkpoint.kind == "packed"
    assert checkpoint.manifest == manifest
    os.truncate(path / "model.safetensors", 1000)
    with pytest.raises(ModelFormatError, match=r"has 1000 bytes, manifest.fm says"):
        open_checkpoint(path)
    (path / "manifest.fm").write_text("flashmoe version=1\nnonsense\n")
    with pytest.raises(ModelFormatError, match=r"manifest\.fm.*line 2: nonsense"):
        open_checkpoint(path)
