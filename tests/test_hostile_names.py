"""File names that come from files: whatever they are, nothing outside the directory is opened."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import tiny
from flashmoe import _core, demo_model_path, verify
from flashmoe.checkpoint import INDEX_NAME, MANIFEST_NAME, open_checkpoint
from flashmoe.errors import FlashMoEError, ModelFormatError
from flashmoe.hub import RemoteCheckpoint
from flashmoe.manifest import check_file_name

SECRET = "flashmoe-secret"
DOTS = (
    "..",
    "‥",
    "․․",
    "．．",
    "%2e%2e",
    "..%00",
    "..;",
    "..\\",
    ". .",
    "\u202e..",
    ". ",
    " ..",
    "...",
    "....",
)
HARMLESS = {f"%2e%2e%2f{SECRET}"}  # nothing decodes it: a plain name
SLASHES = ("/", "//", "\\", "∕", "⁄", "／", "%2f", "\x00/", "/./", "\n/")


def hostile_names() -> list[str]:
    """Names that lead elsewhere, cannot be written down, or mean something else elsewhere."""
    names = [f"{dots}{slash}{SECRET}" for dots in DOTS for slash in SLASHES]
    names += [
        "", ".", "..", "/", "//", "/etc/passwd", f"/tmp/{SECRET}", f"{SECRET}/../../{SECRET}",
        f"a/../../{SECRET}", f"./{SECRET}", f"a/{SECRET}", f"a\\..\\..\\{SECRET}", "C:\\Windows",
        "C:/x", "C:x",
        "\\\\host\\share\\x", "\\\\?\\C:\\x", "//host/share", "file:///etc/passwd", "~/x",
        "~root/x",
        "x\x00.safetensors", "\x00", "x\n", "x\r\n", "x\ty", "x y", " x", "x ", "\x1b[2J", "\x7f",
        "é.safetensors", "😀", "\ud800", "\udcff", "\u200b", "\ufeffx", "a" * 256, "a" * 4096,
        "a" * 65536,
        "../" * 1000 + "x", "/" * 5000, "a:b", "x:$DATA", "..a/..", "a..b", "model..safetensors",
        "model-00001-of-00002.safetensors/..", "/proc/self/environ", "/dev/stdin",
        "/proc/self/fd/0",
    ]  # fmt: skip
    names += [f"{'../' * depth}{SECRET}" for depth in range(1, 12)]
    names += [f"{'x/../' * depth}../{SECRET}" for depth in range(1, 6)]
    return [name for name in dict.fromkeys(names) if name not in HARMLESS]


NAMES = hostile_names()
TYPES: tuple[Any, ...] = (None, 1, 1.5, True, [], ["x"], {}, {"path": "x"})

_watchers: list[list[str]] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(args[0], (str, bytes, os.PathLike)):
        for opened in _watchers:
            opened.append(os.path.abspath(os.fsdecode(args[0])))


sys.addaudithook(_audit)


@contextmanager
def only_inside(directory: Path) -> Iterator[None]:
    """Nothing of the test's own folder is opened but what is in the model directory."""
    opened: list[str] = []
    _watchers.append(opened)
    try:
        yield
    finally:
        _watchers.remove(opened)
    inside, around = str(directory) + os.sep, str(directory.parent)
    outside = [
        p for p in opened if SECRET in p or (p.startswith(around) and not p.startswith(inside))
    ]
    assert not outside, outside


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in a folder of its own, secrets beside it and above."""
    base = tmp_path_factory.mktemp("hostile") / "a" / "b"
    base.mkdir(parents=True)
    path = tiny.write(base / "model", "qwen3_moe", seed=1)
    for folder in (base, base.parent, base.parent.parent):
        shutil.copy(path / "model.safetensors", folder / SECRET)
    return path


def write_index(model: Path, name: Any) -> None:
    tensors = json.loads((model / "tensors.json").read_text())
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
    (model / INDEX_NAME).write_text(json.dumps(index))


def test_there_are_enough() -> None:
    assert len(NAMES) >= 200


@pytest.mark.parametrize("name", NAMES, ids=lambda n: repr(n)[:30])
def test_no_plain_name(name: str) -> None:
    with pytest.raises(ModelFormatError):
        check_file_name(name)


def test_index(model: Path) -> None:
    names = [n for n in tiny.header(model / "model.safetensors")[0] if n != "__metadata__"]
    (model / "tensors.json").write_text(json.dumps(names))
    for name in (*NAMES, *TYPES):
        write_index(model, name)
        with only_inside(model), pytest.raises(ModelFormatError):
            open_checkpoint(model)
    (model / INDEX_NAME).unlink()


def test_manifest(tmp_path: Path) -> None:
    """The Python reader and the core's own refuse; the core has nothing before it here."""
    packed = tmp_path / "packed"
    shutil.copytree(demo_model_path(), packed)
    shutil.copy(packed / "resident.bin", tmp_path / SECRET)
    text = (packed / MANIFEST_NAME).read_text()
    for name in NAMES:
        hostile = text.replace("path=resident.bin", f"path={name}", 1)
        (packed / MANIFEST_NAME).write_bytes(
            hostile.encode(errors="surrogateescape" if "\udcff" in name else "surrogatepass")
        )
        with only_inside(packed), pytest.raises(ModelFormatError):
            open_checkpoint(packed)
        if "\ud800" in name or "\udcff" in name:
            continue  # no text of UTF-8, which the core is given
        with pytest.raises(FlashMoEError):
            _core.Model(hostile, str(packed))


def test_hub_files() -> None:
    """What an index on the hub names, and files that a repository has."""
    for name in NAMES:
        remote = RemoteCheckpoint.__new__(RemoteCheckpoint)
        remote.repo_id = "acme/tiny"
        remote._files = {INDEX_NAME: None, name: None}
        remote._json = lambda index, name=name: {"weight_map": {"a": name}}
        with pytest.raises(ModelFormatError):
            remote._shards()
        remote._files = {f"model{name}.safetensors": None}
        if any(c in name for c in "/\\\x00\n") or not name.isascii():
            with pytest.raises(ModelFormatError):
                remote._shards()


def test_list_of_checksums(tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    shutil.copytree(demo_model_path(), packed)
    (tmp_path / SECRET).write_bytes(b"")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for name in NAMES:
        if not name or "\n" in name or "\r" in name:
            continue
        (packed / "SHA256SUMS").write_bytes(f"{empty}  {name}\n".encode(errors="surrogatepass"))
        with only_inside(packed), contextlib.suppress(ModelFormatError):
            assert not verify(packed, progress=False).ok


def test_the_watch_sees_what_leaves(model: Path) -> None:
    with pytest.raises(AssertionError, match=SECRET), only_inside(model):
        (model.parent / SECRET).read_bytes()
