"""Headers of safetensors files, read without trusting them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashmoe import strict_json
from flashmoe.errors import ModelFormatError

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 1_000_000
MAX_DIMS = 8
MAX_NAME_BYTES = 512
MAX_BYTES = 2**63 - 1

DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor in a file.

    Attributes:
        name: Its name in the file.
        dtype: As the file spells it, such as ``BF16``.
        shape: Row-major dimensions.
        at: Byte offset from the start of the file; no alignment is promised.
        nbytes: Its size.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    at: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file says of itself.

    Attributes:
        tensors: Its tensors by name.
        metadata: Free strings, such as ``format``.
        file_size: Bytes of the whole file.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    file_size: int


def read_header(path: Path) -> Header:
    """Read the header of a file.

    Raises:
        ModelFormatError: The file is damaged; names the file and the offset or tensor.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        file_size = file.seek(0, 2)
        file.seek(0)
        start = file.read(8)
        return parse_header(
            start + file.read(header_bytes(start, file_size, path.name)), file_size, path.name
        )


def header_bytes(start: bytes, file_size: int, name: str) -> int:
    """Bytes of the header that follows a file's first eight.

    Args:
        start: The first bytes of the file, at least 8 of them.
        file_size: Bytes of the whole file.
        name: The file's name, for messages.

    Raises:
        ModelFormatError: The length at byte 0 cannot be.
    """
    if file_size < 8 or len(start) < 8:
        raise ModelFormatError(
            f"{name}: {file_size} bytes are too few for a safetensors file; download it again"
        )
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise ModelFormatError(
            f"{name}: header length {length} at offset 0 is above {MAX_HEADER_BYTES}; "
            "this is no safetensors file"
        )
    if 8 + length > file_size:
        raise ModelFormatError(
            f"{name}: header length {length} at offset 0 goes past the end of the file "
            f"({file_size} bytes); download it again"
        )
    return length


def parse_header(data: bytes, file_size: int, name: str) -> Header:
    """Read a header out of a file's first bytes.

    Args:
        data: The first bytes of the file: the eight of the length and the whole header.
        file_size: Bytes of the whole file.
        name: The file's name, for messages.

    Raises:
        ModelFormatError: The header is damaged; names the file and the offset or tensor.
    """
    length = header_bytes(data, file_size, name)
    if len(data) < 8 + length:
        raise ModelFormatError(f"{name}: only {len(data)} of {8 + length} header bytes were read")
    entries = _load_json(data[8 : 8 + length], name)
    metadata = _metadata(entries.pop("__metadata__", None), name)
    if len(entries) > MAX_TENSORS:
        raise ModelFormatError(f"{name}: {len(entries)} tensors are above {MAX_TENSORS}")
    start = 8 + length
    tensors = {key: _tensor(key, value, start, name) for key, value in entries.items()}
    _check_cover(tensors, start, file_size, name)
    return Header(tensors, metadata, file_size)


def _load_json(text: bytes, name: str) -> dict[str, Any]:
    def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        whole = dict(pairs)
        if len(whole) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise ModelFormatError(f"{name}: {twice[:MAX_NAME_BYTES]!r} is in the header twice")
        return whole

    def whole(word: str) -> int | float:
        return int(word) if strict_json.finite(word) or word == "0" else -0.0  # -0 is no size

    try:
        entries = strict_json.loads(text, object_pairs_hook=unique, parse_int=whole)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        at = error.pos if isinstance(error, json.JSONDecodeError) else error.start
        raise ModelFormatError(f"{name}: header is not JSON at offset {8 + at}: {error}") from error
    except (RecursionError, ValueError) as error:
        if isinstance(error, ModelFormatError):
            raise
        raise ModelFormatError(f"{name}: header is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise ModelFormatError(f"{name}: header at offset 8 is not a JSON object")
    return entries


def _metadata(value: Any, name: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ModelFormatError(f"{name}: __metadata__ is not an object of strings")
    return value


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_BYTES


def _tensor(key: str, value: Any, start: int, name: str) -> TensorInfo:
    if (
        not key
        or len(key.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES
        or not (key.isprintable())
    ):
        raise ModelFormatError(
            f"{name}: tensor name {key[:80]!r} is not 1 to {MAX_NAME_BYTES} printable bytes"
        )
    what = f"{name}: tensor {key}"
    if not isinstance(value, dict):
        raise ModelFormatError(f"{what}: is not described by an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ModelFormatError(f"{what}: dtype {dtype!r} is unknown")
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise ModelFormatError(f"{what}: shape {shape!r} is not a list of sizes")
    if len(shape) > MAX_DIMS:
        raise ModelFormatError(f"{what}: {len(shape)} dimensions are above {MAX_DIMS}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise ModelFormatError(f"{what}: data_offsets {offsets!r} are not two offsets")
    begin, end = offsets
    total = DTYPE_BITS[dtype]
    for size in shape:
        total *= size
        if total > 8 * MAX_BYTES:
            raise ModelFormatError(f"{what}: shape {shape} of {dtype} overflows 64 bits")
    if total % 8 or begin + total // 8 != end:
        raise ModelFormatError(
            f"{what}: shape {shape} of {dtype} takes {total / 8:g} bytes; "
            f"data_offsets {offsets} give it {end - begin}"
        )
    return TensorInfo(key, dtype, tuple(shape), start + begin, end - begin)


def _check_cover(tensors: dict[str, TensorInfo], start: int, file_size: int, name: str) -> None:
    """The tensors must fill the file from the header to its end."""
    at, last = start, "the header"
    for tensor in sorted(tensors.values(), key=lambda t: (t.at, t.nbytes)):
        if tensor.at != at:
            how = "overlaps" if tensor.at < at else "leaves a hole after"
            raise ModelFormatError(
                f"{name}: tensor {tensor.name} at offset {tensor.at} {how} {last}, "
                f"which ends at {at}"
            )
        at += tensor.nbytes
        last = f"tensor {tensor.name}"
    if at > file_size:
        raise ModelFormatError(
            f"{name}: is truncated: it has {file_size} bytes, its tensors end at {at}; "
            "download it again"
        )
    if at < file_size:
        raise ModelFormatError(
            f"{name}: {file_size - at} bytes after offset {at} belong to no tensor"
        )
