"""The same bits for every budget, thread count and way of reading."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import flashmoe
import tiny
from conftest import tokens
from flashmoe import _core, reading
from flashmoe.checkpoint import open_checkpoint
from flashmoe.conversion import convert


def core_model(path, **options) -> _core.Model:
    """The engine on a checkpoint, every option at hand."""
    text = open_checkpoint(path).manifest.to_text()
    return _core.Model(text, str(path), **options)


def run(path, ids, decode: int, **options) -> np.ndarray:
    """Prefill, then greedy decode: all logits of the last prompt token and after."""
    model = core_model(path, **options)
    rows, vocab = model.info()["prefill_rows"], model.info()["vocab_size"]
    session = _core.Session(model)
    logits = np.empty((1, vocab), np.float32)
    for first in range(0, len(ids), rows):
        last = min(first + rows, len(ids))
        session.eval(ids[first:last], logits[: last == len(ids)])
    out = [logits.copy()]
    for _ in range(decode):
        session.eval(logits.argmax(-1).astype(np.int32), logits)
        out.append(logits.copy())
    session.close()
    model.close()
    return np.concatenate(out)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    base = tmp_path_factory.mktemp("exact")
    tiny.write(base / "hf", "qwen3_5_moe", seed=21, hidden_size=128, moe_intermediate_size=64)
    tiny.quantise_mlx(base / "hf", base / "mlx", 4, 64)
    return base / "mlx"


@pytest.mark.parametrize("table", _core.kernels())
def test_bits_do_not_depend_on_memory_threads_or_reads(quantised, monkeypatch, table):
    monkeypatch.setenv("FLASHMOE_KERNELS", table)
    ids = tokens(200)
    with flashmoe.Model(quantised) as model:
        fewest = model.info()["min_expert_slots"]
    want = run(quantised, ids, 12, threads=1, prefill_rows=256)
    for slots, threads, rows, (read, split) in itertools.product(
        (fewest, fewest + 1, 0), (1, 2, 3), (64, 128), (("buffered", 1), ("direct", 4))
    ):
        got = run(
            quantised, ids, 12, expert_slots=slots, threads=threads, prefill_rows=rows,
            read=read, read_split=split, read_threads=3,
        )  # fmt: skip
        assert np.array_equal(got, want), (slots, threads, rows, read)


@pytest.mark.parametrize("way", reading.WAYS)
def test_bits_do_not_depend_on_the_way_of_reading(quantised, tmp_path, way):
    """With the fewest slots nearly every pick is read anew, in parts or as whole records."""
    ids = tokens(200)
    with flashmoe.Model(quantised) as model:
        fewest = model.info()["min_expert_slots"]
    want = run(quantised, ids, 12, threads=1, prefill_rows=256)
    convert(quantised, tmp_path / "packed", progress=False)
    for path, split, in_flight in itertools.product(
        (quantised, tmp_path / "packed"), reading.SPLITS, (1, 5)
    ):
        try:
            got = run(
                path, ids, 12, expert_slots=fewest, threads=2, prefill_rows=64,
                read=way, read_split=split, read_threads=in_flight,
            )  # fmt: skip
        except flashmoe.UnsupportedModelError as error:
            pytest.skip(str(error))
        assert np.array_equal(got, want), (path.name, split, in_flight)


def test_a_shared_budget_squeezes_the_slots_not_the_answer(quantised):
    """Sessions and their KV rows take slots away while they run; the logits stay the same."""
    ids = tokens(300)
    want = run(quantised, ids, 8)
    free = core_model(quantised)
    i = free.info()
    budget = i["resident_bytes"] + i["scratch_bytes"] + i["state_bytes"] * 2
    budget += i["kv_bytes_per_token"] * 768 + i["expert_bytes"] * (i["min_expert_slots"] + 3)
    free.close()
    model = core_model(quantised, memory=budget, prefill_rows=i["prefill_rows"])
    before = model.info()["expert_slots"]
    others = _core.Session(model)
    session = _core.Session(model)
    logits = np.empty((1, 97), np.float32)
    rows = model.info()["prefill_rows"]
    for first in range(0, len(ids), rows):
        last = min(first + rows, len(ids))
        session.eval(ids[first:last], logits[: last == len(ids)])
    assert np.array_equal(logits, want[:1])
    assert model.info()["expert_slots"] < before
    assert model.info()["held_bytes"] <= budget
    session.close()
    others.close()
    assert model.info()["expert_slots"] == before
    model.close()


@pytest.mark.parametrize("table", _core.kernels())
def test_bits_do_not_depend_on_how_keys_are_split(quantised, monkeypatch, table):
    """Few rows split a long context over the threads, many rows do not; both merge alike."""
    monkeypatch.setenv("FLASHMOE_KERNELS", table)
    ids = tokens(1100 if table == "ref" else 2300)
    want = run(quantised, ids, 3, threads=1, prefill_rows=512)
    for threads, rows in ((3, 64), (8, 512), (3, 320)):
        got = run(quantised, ids, 3, threads=threads, prefill_rows=rows)
        assert np.array_equal(got, want), (threads, rows)
