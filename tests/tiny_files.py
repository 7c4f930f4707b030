"""Safetensors files for tests: tensors of any dtype written, read back, and broken on purpose."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Config = dict[str, Any]

NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "U32": "<u4", "F8_E4M3": "u1",
         "U8": "u1", "I64": "<i8", "I32": "<i4"}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A tensor as it lies in a file; BF16 and FP8 as their bits in uint16 and uint8."""

    dtype: str
    data: np.ndarray

    def floats(self) -> np.ndarray:
        """The values as float32, exact."""
        if self.dtype == "BF16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        return self.data.astype(np.float32)


def tensor(values: np.ndarray, dtype: str) -> Tensor:
    """Round to nearest even into a file dtype."""
    values = np.ascontiguousarray(values, np.float32)
    if dtype != "BF16":
        return Tensor(dtype, values.astype(NUMPY[dtype]))
    bits = values.view(np.uint32).astype(np.uint64)
    return Tensor(dtype, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16))


def save(
    file: Path, tensors: Mapping[str, Tensor], fmt: str = "pt", *, misaligned: bool = False
) -> None:
    """Write one safetensors file, padded as by Rust's writer, or so that all data lies odd."""
    table: dict[str, Any] = {"__metadata__": {"format": fmt}}
    names = sorted(tensors, key=lambda n: (-tensors[n].data.itemsize, n))
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].data.nbytes
        shape = list(tensors[name].data.shape)
        table[name] = {"dtype": tensors[name].dtype, "shape": shape, "data_offsets": [begin, end]}
    _save_raw(file, table, [tensors[n].data.tobytes() for n in names], odd=misaligned)


def _save_raw(file: Path, table: Config, blobs: list[bytes], *, odd: bool) -> None:
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (1 - len(text) % 2 if odd else -len(text) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.writelines(blobs)


def header(file: Path) -> tuple[Config, bytes]:
    """The header of a safetensors file and the bytes of its data."""
    data = file.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def read(path: Path) -> dict[str, Tensor]:
    """All tensors of a directory, in the order of their files."""
    out: dict[str, Tensor] = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        table, body = header(file)
        for name, entry in table.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                data = np.frombuffer(body[begin:end], NUMPY[entry["dtype"]])
                out[name] = Tensor(entry["dtype"], data.reshape(entry["shape"]))
    return out


def save_shards(path: Path, tensors: dict[str, Tensor], shards: int) -> None:
    if shards == 1:
        save(path / "model.safetensors", tensors)
        return
    names = list(tensors)
    place: dict[str, str] = {}
    for i in range(shards):
        part = names[len(names) * i // shards : len(names) * (i + 1) // shards]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save(path / file, {name: tensors[name] for name in part})
        place |= dict.fromkeys(part, file)
    save_index(path, tensors, place)


def save_index(path: Path, tensors: Mapping[str, Tensor], place: dict[str, str]) -> None:
    total = sum(t.data.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(place.items()))}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def file_of(path: Path, name: str) -> Path:
    """The file of a directory that holds a tensor."""
    for file in sorted(Path(path).glob("*.safetensors")):
        if name in header(file)[0]:
            return file
    raise KeyError(name)


def truncate(file: Path, missing: int = 10) -> None:
    """Cut bytes off the end of a file."""
    data = file.read_bytes()
    file.write_bytes(data[: len(data) - missing])


def edit_header(file: Path, edit: Callable[[Config], object]) -> None:
    """Let ``edit(table)`` change the header of a safetensors file in place; data stays."""
    table, body = header(file)
    edit(table)
    _save_raw(file, table, [body], odd=False)


def rewrite_tensor(path: Path, name: str, values: np.ndarray) -> None:
    """Put other values of the same shape into a tensor of a directory."""
    file = file_of(path, name)
    table, body = header(file)
    entry = table[name]
    values = np.asarray(values)
    if list(values.shape) != entry["shape"]:
        raise ValueError(f"{name}: shape {list(values.shape)} is not {entry['shape']}")
    if entry["dtype"] in ("F32", "F16", "BF16"):
        data = tensor(values, entry["dtype"]).data
    else:
        data = values.astype(NUMPY[entry["dtype"]])
    begin, end = entry["data_offsets"]
    _save_raw(file, table, [body[:begin], data.tobytes(), body[end:]], odd=False)
