"""Reading while computing: the same bits, experts read once, residents used, guesses counted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import tiny
from conftest import tokens
from flashmoe import _core
from flashmoe.checkpoint import open_checkpoint

EXPERTS, LAYERS = 8, 4


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    where = tmp_path_factory.mktemp("overlap") / "hf"
    tiny.write(where, "qwen3_5_moe", seed=5, num_experts=EXPERTS, num_experts_per_tok=2)
    return where


def open_model(path, **options) -> _core.Model:
    return _core.Model(open_checkpoint(path).manifest.to_text(), str(path), **options)


def run(model: _core.Model, ids, decode: int) -> tuple[np.ndarray, dict, dict]:
    """All logits of a prompt's end and of greedy decoding; the figures of both."""
    session = _core.Session(model)
    logits = np.empty((1, model.info()["vocab_size"]), np.float32)
    for first in range(0, len(ids), model.info()["prefill_rows"]):
        step = ids[first : first + model.info()["prefill_rows"]]
        session.eval(step, logits[: first + len(step) == len(ids)])
    prefill = session.stats()
    out = [logits.copy()]
    for _ in range(decode):
        session.eval(logits.argmax(-1).astype(np.int32), logits)
        out.append(logits.copy())
    stats = session.stats()
    session.close()
    return np.concatenate(out), prefill, stats


def layers_with_experts(path) -> int:
    lines = open_checkpoint(path).manifest.to_text().splitlines()
    return sum(line.startswith("experts ") for line in lines)


@pytest.mark.parametrize("eviction", ["lru", "lfu", "slru", "static"])
def test_the_bits_do_not_depend_on_overlap_guesses_or_eviction(path, eviction):
    ids = tokens(300)
    want, _, _ = run(open_model(path, threads=1, overlap=False), ids, 8)
    for slots, overlap, guess, rows in itertools.product(
        (2, 3, 5, 9, 16, 0), (False, True), (False, True), (64, 128)
    ):
        model = open_model(
            path, threads=2, read_threads=3, expert_slots=slots, eviction=eviction,
            overlap=overlap, guess=guess, prefill_rows=rows,
        )  # fmt: skip
        for again in range(2):  # with what the first time left in the slots
            got, _, stats = run(model, ids, 8)
            assert np.array_equal(got, want), (slots, overlap, guess, rows, again)
            assert (overlap and guess) or stats["experts_guessed"] == 0
        model.close()


def test_a_chunk_reads_every_expert_once(path):
    moe = layers_with_experts(path)
    size = 0
    for slots in (2, 4, 8, 12, 20, 0):
        for overlap in (False, True):
            model = open_model(path, expert_slots=slots, prefill_rows=128, overlap=overlap)
            size = model.info()["expert_file_bytes"]
            _, stats, _ = run(model, tokens(128), 0)
            assert stats["experts_used"] == moe * EXPERTS
            assert stats["bytes_read"] == size, (slots, overlap)
            model.close()


def test_the_second_sweep_finds_what_stayed(path):
    """LRU alone would find nothing: every expert goes just before it is needed again."""
    moe = layers_with_experts(path)
    slots = moe * EXPERTS * 3 // 4
    for eviction in ("lru", "lfu", "slru", "static"):
        model = open_model(path, expert_slots=slots, prefill_rows=128, eviction=eviction)
        for sweep in range(4):
            _, stats, _ = run(model, tokens(128), 0)
            if sweep:
                assert stats["experts_hit"] >= slots // 2 - 2, (eviction, sweep)
                assert stats["bytes_read"] <= model.info()["expert_file_bytes"]
        model.close()


def test_guesses_are_counted(path):
    model = open_model(path, expert_slots=12, prefill_rows=64)
    _, before, after = run(model, tokens(64), 60)
    size = model.info()["expert_file_bytes"] // (layers_with_experts(path) * EXPERTS)
    guessed = after["experts_guessed"]
    assert before["experts_guessed"] == 0 < guessed
    assert 0 < after["guesses_used"] <= guessed
    read = after["bytes_read"] // size
    missed = after["experts_used"] - after["experts_hit"]
    wasted = after["guess_bytes_wasted"] // size
    assert wasted <= guessed - after["guesses_used"] <= wasted + 4  # the last may not be settled
    assert 0 <= read - missed - wasted <= 4
    model.close()


def test_closing_and_cancelling_with_reads_in_flight(path):
    ids = tokens(128)
    want, _, _ = run(open_model(path), ids, 2)
    for _ in range(10):
        model = open_model(path, expert_slots=12, prefill_rows=128)
        session = _core.Session(model)
        session.cancel()
        with pytest.raises(Exception, match="cancelled"):
            session.eval(ids, np.empty((0, 97), np.float32))
        session.close()
        assert np.array_equal(run(model, ids, 2)[0], want)
        model.close()
