"""A checkpoint directory, opened in place: its files found, its manifest made or read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flashmoe.build import build_manifest, is_mlx
from flashmoe.errors import ModelFormatError, UnsupportedModelError
from flashmoe.families import text_config
from flashmoe.manifest import Manifest, check_file_name
from flashmoe.quantization import CONVERT_HINT, read_quantization
from flashmoe.safetensors import Header, read_header

__all__ = [
    "INDEX_NAME",
    "MANIFEST_NAME",
    "Checkpoint",
    "build_manifest",
    "open_checkpoint",
    "read_config_json",
    "read_index",
]

INDEX_NAME = "model.safetensors.index.json"
MANIFEST_NAME = "manifest.fm"
MAX_JSON_BYTES = 256 << 20

Kind = Literal["safetensors", "mlx", "packed", "fp8"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model directory and what is in it.

    Attributes:
        path: The directory.
        config: Its ``config.json``.
        headers: Headers of its safetensors files by name; empty for a packed directory.
        manifest: Where everything lies.
        kind: ``safetensors``, ``mlx``, ``fp8`` (can only be converted), or ``packed``.
    """

    path: Path
    config: dict[str, Any]
    headers: dict[str, Header]
    manifest: Manifest
    kind: Kind


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a model directory; nothing is written to it.

    Args:
        path: A directory with ``config.json`` and safetensors files, or a packed one.

    Raises:
        UnsupportedModelError: A family, field, format or tensor that flashmoe does not run
            exactly, by name.
        ModelFormatError: A file is missing, damaged or contradicts another.
        OSError: A file cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise ModelFormatError(f"{path} is not a directory; a model is a directory of files")
    if (path / MANIFEST_NAME).exists():
        return _open_packed(path)
    config = read_config_json(path)
    if (path / "hf_quant_config.json").exists() and "quantization_config" not in config:
        raise UnsupportedModelError(
            f"{path}: hf_quant_config.json means ModelOpt's formats (NVFP4, FP8), which are not "
            f"supported: {CONVERT_HINT}"
        )
    headers = _read_headers(path)
    manifest = build_manifest(config, headers)
    return Checkpoint(path, config, headers, manifest, _kind(config, headers, manifest))


def _kind(config: dict[str, Any], headers: dict[str, Header], manifest: Manifest) -> Kind:
    quants = {t.quant.kind for t in manifest.tensors.values()}
    quants |= {q.kind for e in manifest.experts for q in (e.gate, e.up, e.down)}
    if "fp8" in quants:
        return "fp8"
    mlx = is_mlx(read_quantization(config, text_config(config)), headers)
    return "mlx" if mlx else "safetensors"


def _open_packed(path: Path) -> Checkpoint:
    if (path / MANIFEST_NAME).stat().st_size > MAX_JSON_BYTES:
        raise ModelFormatError(f"{path / MANIFEST_NAME}: more than {MAX_JSON_BYTES} bytes of text")
    try:
        text = (path / MANIFEST_NAME).read_bytes().decode("ascii")
    except UnicodeDecodeError as error:
        raise ModelFormatError(
            f"{path / MANIFEST_NAME}: offset {error.start} is not plain text; convert again"
        ) from error
    try:
        manifest = Manifest.parse(text)
    except ModelFormatError as error:
        raise type(error)(f"{path / MANIFEST_NAME}: {error}") from error
    for file in manifest.files:
        if not (path / file.path).is_file():
            raise ModelFormatError(f"{path}: {file.path} is missing; convert again")
        size = (path / file.path).stat().st_size
        if size != file.nbytes:
            raise ModelFormatError(
                f"{path / file.path}: has {size} bytes, {MANIFEST_NAME} says {file.nbytes}; "
                "convert again"
            )
    return Checkpoint(path, read_config_json(path), {}, manifest, "packed")


def _load_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelFormatError(f"{path}: more than {MAX_JSON_BYTES} bytes of JSON")
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path}: is not UTF-8 at offset {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFormatError(f"{path}: is not a JSON object")
    return value


def read_config_json(path: Path) -> dict[str, Any]:
    """The ``config.json`` of a directory.

    Raises:
        ModelFormatError: It is missing or no JSON object.
    """
    if not (path / "config.json").is_file():
        raise ModelFormatError(f"{path} has no config.json; it is not a model directory")
    return _load_json(path / "config.json")


def read_index(path: Path) -> dict[str, str]:
    """Which file each tensor is in, by a ``model.safetensors.index.json``.

    Raises:
        ModelFormatError: It is malformed, or names a file outside the directory.
    """
    weight_map = _load_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFormatError(f"{path}: has no weight_map")
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise ModelFormatError(f"{path}: weight_map gives {tensor} the file {file!r}")
    for file in set(weight_map.values()):
        try:
            check_file_name(file)
        except ModelFormatError as error:
            raise ModelFormatError(f"{path}: {error}") from error
    return weight_map


def _read_headers(path: Path) -> dict[str, Header]:
    index = path / INDEX_NAME
    if index.is_file():
        weight_map = read_index(index)
        names: Sequence[str] = sorted(set(weight_map.values()))
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise ModelFormatError(
                f"{path}: {', '.join(missing[:5])} of {len(missing)} missing shards; "
                "download the rest of the model"
            )
        headers = {name: read_header(path / name) for name in names}
        _compare_index(index, weight_map, headers)
        return headers
    return {name: read_header(path / name) for name in _shard_names(path)}


def _shard_names(path: Path) -> list[str]:
    """The safetensors files of a directory without an index."""
    names = sorted(p.name for p in path.glob("model*.safetensors"))
    if not names:
        others = sorted(p.name for p in path.iterdir() if p.suffix in (".gguf", ".bin", ".pth"))
        hint = f"; {others[0]} is in a format that flashmoe does not read" if others else ""
        raise ModelFormatError(f"{path} has no model.safetensors and no {INDEX_NAME}{hint}")
    for name in names:
        check_file_name(name)
        numbered = re.search(r"-(\d{5})-of-(\d{5})\.safetensors$", name)
        if numbered and int(numbered[2]) != len(names):
            raise ModelFormatError(
                f"{path}: {len(names)} files where {name} is one of {int(numbered[2])}; "
                "download the rest of the model"
            )
    return names


def _compare_index(index: Path, weight_map: dict[str, str], headers: dict[str, Header]) -> None:
    for name, file in weight_map.items():
        if name not in headers[file].tensors:
            raise ModelFormatError(f"{index}: tensor {name} is not in {file}")
    for file, header in headers.items():
        for name in header.tensors:
            if weight_map.get(name) != file:
                said = weight_map.get(name, "no file")
                raise ModelFormatError(f"{index}: tensor {name} is in {file}, not in {said}")
