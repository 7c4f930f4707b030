"""Safetensors headers: what the reference reader takes is taken, what is damaged is named."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from flashmoe.errors import ModelFormatError
from flashmoe.safetensors import parse_header, read_header


def one(dtype: Any = "F32", shape: Any = (2, 3), offsets: Any = (0, 24), **more: Any) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def file_of(header: Any, body: int = 24) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(body)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_offsets_and_metadata(tmp_path):
    header = {
        "b": one("U8", [3], [0, 3]),
        "__metadata__": {"format": "mlx"},
        "a": one("BF16", [2, 1, 2], [3, 11]),
        "scalar": one("F64", [], [11, 19]),
        "none": one("F32", [4, 0], [19, 19]),
        "half": one("F4", [10], [19, 24]),
    }
    data = file_of(header)
    got = read_header(write(tmp_path / "x.safetensors", data))
    start = len(data) - 24
    assert got.file_size == len(data)
    assert got.metadata == {"format": "mlx"}
    assert {n: (t.dtype, t.shape, t.at - start, t.nbytes) for n, t in got.tensors.items()} == {
        "b": ("U8", (3,), 0, 3),
        "a": ("BF16", (2, 1, 2), 3, 8),
        "scalar": ("F64", (), 11, 8),
        "none": ("F32", (4, 0), 19, 0),
        "half": ("F4", (10,), 19, 5),
    }
    assert parse_header(data[:-24], len(data), "x") == got  # as read from afar


@pytest.mark.parametrize(
    "data",
    [
        file_of({}, 0),
        file_of(json.dumps({"a": one()}).encode() + b"   "),
        file_of({"__metadata__": None, "a": one()}),
        file_of({"a": one(extra={"more": [1]})}),
        file_of({"a" * 512: one()}),
        file_of({"a": one("F32", [1, 1, 1, 1, 1, 1, 2, 3])}),
    ],
    ids=["empty", "spaces", "null metadata", "extra fields", "long name", "eight dimensions"],
)
def test_accepted(tmp_path, data):
    read_header(write(tmp_path / "x.safetensors", data))


GOOD = file_of({"a": one()})
DAMAGED = [
    ("empty", b"", "0 bytes are too few"),
    ("seven bytes", bytes(7), "7 bytes are too few"),
    (
        "length past the end",
        struct.pack("<Q", 10**6) + GOOD[8:],
        "header length 1000000 at offset 0 goes past the end",
    ),
    (
        "length above the cap",
        struct.pack("<Q", 2**63) + GOOD[8:],
        "header length 9223372036854775808 at offset 0 is above",
    ),
    ("truncated", GOOD[:-1], "is truncated: it has .* its tensors end at"),
    ("trailing", GOOD + b"x", "1 bytes after offset .* belong to no tensor"),
    ("not json", file_of(b"{'a': 1}"), "header is not JSON at offset 9"),
    ("trailing word", file_of(b"{} x", 0), "header is not JSON at offset 11"),
    ("not utf-8", file_of(b'{"\xff": 1}', 0), "not JSON at offset 10"),
    ("deep", file_of(b"[" * 100_000, 0), "header is not JSON"),
    ("long number", file_of(b'{"a": ' + b"9" * 5000 + b"}", 0), "contains 9999"),
    ("list", file_of([1], 0), "not a JSON object"),
    ("nan", file_of(b'{"a": NaN}', 0), "contains NaN"),
    ("twice", file_of(b'{"a": {}, "b": {}, "a": {}}', 0), "'a' is in the header twice"),
    (
        "twice inside",
        file_of(b'{"a": {"dtype": "U8", "dtype": "I8"}}', 0),
        "'dtype' is in the header twice",
    ),
    (
        "metadata number",
        file_of({"__metadata__": {"a": 1}}, 0),
        "__metadata__ is not an object of strings",
    ),
    ("metadata list", file_of({"__metadata__": []}, 0), "__metadata__ is not"),
    ("tensor number", file_of({"a": 3}, 0), "tensor a: is not described by an object"),
    ("no dtype", file_of({"a": {"shape": [1], "data_offsets": [0, 4]}}, 4), "tensor a: dtype None"),
    ("dtype", file_of({"a": one("I4")}), "tensor a: dtype 'I4' is unknown"),
    ("dtype list", file_of({"a": one(["F32"])}), "tensor a: dtype .* is unknown"),
    (
        "negative size",
        file_of({"a": one("F32", [-2, -3])}),
        "tensor a: shape .* is not a list of sizes",
    ),
    ("float size", file_of({"a": one("F32", [6.0])}), "not a list of sizes"),
    ("true size", file_of({"a": one("F32", [6, True])}), "not a list of sizes"),
    ("huge size", file_of({"a": one("F32", [2**64])}), "not a list of sizes"),
    ("overflow", file_of({"a": one("F32", [2**32, 2**32])}), "overflows 64 bits"),
    ("overflow to right", file_of({"a": one("U8", [2**62, 2**62, 2**62])}), "overflows 64 bits"),
    ("dimensions", file_of({"a": one("F32", [1] * 9)}), "tensor a: 9 dimensions are above 8"),
    ("size", file_of({"a": one("F32", [2, 2])}), "takes 16 bytes; data_offsets .* give it 24"),
    ("backwards", file_of({"a": one("F32", [0], [24, 0])}), "takes 0 bytes"),
    ("bits", file_of({"a": one("F4", [3], [0, 1])}, 1), "takes 1.5 bytes"),
    ("one offset", file_of({"a": one(offsets=[24])}), "are not two offsets"),
    ("negative offset", file_of({"a": one(offsets=[-24, 0])}), "are not two offsets"),
    (
        "overlap",
        file_of({"a": one(), "b": one("U8", [4], [20, 24])}),
        "tensor b at offset .* overlaps tensor a",
    ),
    ("same place", file_of({"a": one(), "b": one()}), "overlaps tensor"),
    (
        "hole",
        file_of({"a": one("U8", [4], [0, 4]), "b": one("U8", [4], [20, 24])}),
        "tensor b at offset .* leaves a hole after tensor a",
    ),
    ("late start", file_of({"a": one("U8", [4], [20, 24])}), "leaves a hole after the header"),
    ("empty name", file_of({"": one()}), "tensor name '' is not 1 to 512"),
    ("long name", file_of({"a" * 513: one()}), "is not 1 to 512"),
    ("line break", file_of({"a\nb": one()}), "is not 1 to 512 printable"),
    ("surrogate", file_of(b'{"\\ud800": {}}', 0), "half a character"),
]


@pytest.mark.parametrize(("data", "words"), [d[1:] for d in DAMAGED], ids=[d[0] for d in DAMAGED])
def test_damaged(tmp_path, data, words):
    with pytest.raises(ModelFormatError, match=words) as caught:
        read_header(write(tmp_path / "x.safetensors", data))
    assert "x.safetensors" in str(caught.value)


def test_too_many_tensors(monkeypatch):
    monkeypatch.setattr("flashmoe.safetensors.MAX_TENSORS", 2)
    three = file_of({n: one("U8", [0], [0, 0]) for n in "abc"}, 0)
    with pytest.raises(ModelFormatError, match=r"3 tensors are above 2"):
        parse_header(three, len(three), "x")


def test_part_of_a_header():
    with pytest.raises(ModelFormatError, match=r"only 20 of .* header bytes were read"):
        parse_header(GOOD[:20], len(GOOD), "x")


def test_every_byte_flipped():
    """Whatever one byte becomes, the answer is a header or an error that names the file."""
    for i in range(len(GOOD) - 24):
        for value in (0, 0x22, 0x30, 0x7B, 0xFF):
            data = GOOD[:i] + bytes([value]) + GOOD[i + 1 :]
            message = ""
            try:
                header = parse_header(data, len(data), "x")
            except ModelFormatError as error:
                message = str(error)
            else:
                assert all(t.at + t.nbytes <= len(data) for t in header.tensors.values())
            assert not message or message.startswith("x: ")
