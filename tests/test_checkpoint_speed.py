"""Opening a large model in place takes no noticeable time."""

from __future__ import annotations

import time

import numpy as np

import layouts
from flashmoe.checkpoint import open_checkpoint
from flashmoe.safetensors import Header, TensorInfo


def headers_of(shapes: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Header]:
    """One header with tensors of these types and shapes, one after another."""
    infos, at = {}, 8
    for name, (dtype, shape) in shapes.items():
        nbytes = int(np.prod(shape)) * layouts.SIZES[dtype]
        infos[name] = TensorInfo(name, dtype, shape, at, nbytes)
        at += nbytes
    return {"model.safetensors": Header(infos, {}, at)}


def test_opening_a_large_model_is_quick(tmp_path, monkeypatch):
    """Seconds of this process for 40 layers of 256 experts, each tensor by itself."""
    path = tmp_path / "model"
    for name, value in {
        "LAYERS": 40,
        "E": 256,
        "H": 4,
        "V": 8,
        "HEADS": 1,
        "KV": 1,
        "DIM": 2,
        "WIDE": 2,
    }.items():
        monkeypatch.setattr(layouts, name, value)
    layouts.write(path, "qwen3_moe", "separate", "BF16", shards=4)
    start = time.process_time()
    manifest = open_checkpoint(path).manifest
    seconds = time.process_time() - start
    assert len(manifest.experts) == 39
    assert seconds < 3
