"""Whole model directories: a config, the headers of its shards, an index or a manifest."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import layouts
from flashmoe.checkpoint import INDEX_NAME, MANIFEST_NAME, open_checkpoint
from flashmoe.manifest import Manifest
from flashmoe.safetensors import DTYPE_BITS
from fuzz import by_hand
from fuzz.files import CONFIG_KEYS, scratch
from fuzz.harness import Target
from fuzz.mutate import json_mutator

LARGEST = 1 << 40
"""Of a file, which has a header and then nothing that takes room."""

_NAME = re.compile(r"[\w-][\w.-]{0,80}", re.ASCII)


def _shard(tensors: Mapping[str, Any]) -> tuple[bytes, int]:
    """The header of a file, and the size that it gives the file.

    Args:
        tensors: Dtype and shape of each, which then lie one after another; what is no such pair is
            written as it is.
    """
    table, at = {}, 0
    for name, said in tensors.items():
        table[name] = said
        if isinstance(said, list) and len(said) == 2 and isinstance(said[1], list):
            bits = DTYPE_BITS.get(str(said[0]), 8)
            for size in said[1]:
                bits *= size if type(size) is int else 1
            table[name] = {
                "dtype": said[0],
                "shape": said[1],
                "data_offsets": [at, at + bits // 8],
            }
            at += bits // 8
    text = json.dumps(table).encode(errors="surrogatepass")
    return struct.pack("<Q", len(text)) + text, 8 + len(text) + at


def _write(folder: Path, said: Mapping[str, Any]) -> None:
    """Make a directory: an object is a shard (or JSON), a text is what the file holds."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, value in said.items():
        if not _NAME.fullmatch(name):
            continue
        if isinstance(value, str):
            (folder / name).write_bytes(value.encode(errors="surrogatepass"))
        elif isinstance(value, dict) and name.endswith(".safetensors"):
            head, size = _shard(value)
            (folder / name).write_bytes(head)
            with (folder / name).open("r+b") as file:
                file.truncate(min(max(size, len(head)), LARGEST))
        elif isinstance(value, int) and not isinstance(value, bool):
            with (folder / name).open("wb") as file:
                file.truncate(min(max(value, 0), LARGEST))
        else:
            (folder / name).write_bytes(json.dumps(value).encode())


def check_directory(data: bytes) -> None:
    """A directory, as a JSON object of files, opened in place."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(said, dict):
        return
    folder = scratch() / "directory"
    try:
        _write(folder, said)
    except (ValueError, RecursionError):  # an integer that Python does not print
        return
    checkpoint = open_checkpoint(folder)
    sizes = {file.path: file.nbytes for file in checkpoint.manifest.files}
    for tensor in checkpoint.manifest.tensors.values():
        for part in tensor.quant.parts:
            for file, at, nbytes in islice(tensor.spans(part), 100):
                path = checkpoint.manifest.files[file].path
                assert 0 <= at <= at + nbytes <= sizes[path], f"{tensor.name} lies outside"
                assert (folder / path).stat().st_size == sizes[path]
    assert Manifest.parse(checkpoint.manifest.to_text()) == checkpoint.manifest


def _read(folder: Path) -> dict[str, Any]:
    """A directory as an input."""
    said: dict[str, Any] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".json":
            said[file.name] = json.loads(file.read_text())
            continue
        data = file.read_bytes()
        table = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        said[file.name] = {
            name: [value["dtype"], value["shape"]] if "dtype" in value else value
            for name, value in table.items()
        }
    return said


def _smaller(said: dict[str, Any]) -> dict[str, Any]:
    """A directory with three layers and two experts left."""
    config = said["config.json"].get("text_config", said["config.json"])
    config |= {"num_hidden_layers": 3, "num_experts": 2}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:3]
    by_expert = re.compile(r"mlp\.gate\.|\.experts\.[dg]|switch_mlp")
    gone = re.compile(r"\.layers\.3\.|\.experts\.[2-9]\.")
    for tensors in said.values():
        tensors = tensors.get("weight_map", tensors)
        for tensor in [tensor for tensor in tensors if gone.search(tensor)]:
            del tensors[tensor]
        for tensor, stored in tensors.items():
            if by_expert.search(tensor) and stored[1][0] == layouts.E:
                stored[1][0] = 2
    return said


_LAYOUTS: tuple[dict[str, Any], ...] = (
    {
        "family": "qwen3_5_moe",
        "experts": "fused",
        "prefix": "model.language_model.",
        "nested": True,
    },
    {"family": "qwen3_next", "experts": "separate", "quant": "fp8:32:32:BF16", "shards": 2},
    {"family": "qwen3_moe", "experts": "stacked", "quant": "affine:4:32:F16"},
)


def _seeds() -> list[bytes]:
    seeds = []
    for index, layout in enumerate(_LAYOUTS):
        folder = scratch() / f"layout{index}"
        shutil.rmtree(folder, ignore_errors=True)
        layouts.write(folder, **layout)
        seeds.append(_smaller(_read(folder)))
    manifest = (Path(__file__).parent / "corpus" / "manifest" / "seed-packed").read_text()
    sizes = dict(re.findall(r"path=(\S+) bytes=(\d+)", manifest))
    packed = {name: int(size) for name, size in sizes.items()}
    seeds.append({"config.json": {}, MANIFEST_NAME: manifest, **packed})
    return [json.dumps(seed).encode() for seed in seeds]


def _odd() -> list[bytes]:
    tables = zip(_seeds(), (by_hand.FUSED, by_hand.FP8, by_hand.STACKED), strict=False)
    return [by_hand.edited(seed, *changes) for seed, table in tables for changes in table]


_KEYS = (
    *CONFIG_KEYS, *DTYPE_BITS, "config.json", INDEX_NAME, MANIFEST_NAME, "hf_quant_config.json",
    "model.safetensors", "model-00001-of-00002.safetensors", "model.gguf", "weight_map",
    "model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.experts.0.gate_proj.weight",
    "model.layers.0.self_attn.q_proj.qweight", "model.layers.0.linear_attn.conv1d.weight",
)  # fmt: skip


TARGETS = (Target("directory", _seeds, check_directory, json_mutator(_KEYS), _odd),)
