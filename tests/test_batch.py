"""Several sequences together: the bits of each alone, every expert read once, all or nothing."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import tiny
import tiny_files
from conftest import tokens
from flashmoe import _core
from flashmoe.errors import (
    ArgumentError,
    CancelledError,
    ClosedError,
    ContextLengthError,
    NumericalError,
)
from test_exact import core_model

VOCAB = 97
LENGTHS = (1, 40, 64, 65, 130)


def alone(model: _core.Model, ids: np.ndarray, decode: int) -> np.ndarray:
    """Prefill in one go, then greedy decode, all by itself: logits ``[1 + decode, VOCAB]``."""
    session = _core.Session(model)
    logits = np.empty((1, VOCAB), np.float32)
    rows = model.info()["prefill_rows"]
    for first in range(0, len(ids), rows):
        last = min(len(ids), first + rows)
        session.eval(ids[first:last], logits[: last == len(ids)])
    out = [logits.copy()]
    for _ in range(decode):
        session.eval(logits.argmax(-1).astype(np.int32), logits)
        out.append(logits.copy())
    session.close()
    return np.concatenate(out)


def bytes_read(*sessions: _core.Session) -> int:
    return sum(s.stats()["bytes_read"] for s in sessions)


@pytest.fixture(scope="module", params=[*tiny.FAMILIES, "mlx"])
def path(request, tmp_path_factory):
    """A checkpoint of every family, and a quantised one."""
    base = tmp_path_factory.mktemp("batch")
    if request.param != "mlx":
        tiny.write(base / "hf", request.param, seed=41)
        return base / "hf"
    tiny.write(base / "hf", "qwen3_5_moe", seed=21, hidden_size=128, moe_intermediate_size=64)
    tiny.quantise_mlx(base / "hf", base / "mlx", 4, 64)
    return base / "mlx"


@pytest.mark.parametrize("table", _core.kernels())
@pytest.mark.parametrize("slots", ["few", "all"])
def test_every_sequence_gets_the_bits_it_gets_alone(path, kernels, table, slots):
    """Prompts of all lengths join one after another, so prefill and decode rows share steps."""
    kernels(table)
    probe = core_model(path)
    fewest = probe.info()["min_expert_slots"]
    probe.close()
    model = core_model(
        path, expert_slots=fewest if slots == "few" else 0, prefill_rows=256, threads=2
    )
    prompts = [tokens(n, seed=n) for n in LENGTHS]
    decode = 8
    want = [alone(model, ids, decode) for ids in prompts]

    sessions: list[_core.Session] = []
    fed: list[np.ndarray] = []
    rows = [np.empty((1, VOCAB), np.float32) for _ in prompts]
    got: list[list[np.ndarray]] = [[] for _ in prompts]
    while any(len(g) <= decode for g in got):
        if len(sessions) < len(prompts):
            fed.append(prompts[len(sessions)])
            sessions.append(_core.Session(model))
        live = [i for i in range(len(sessions)) if len(got[i]) <= decode]
        _core.eval_together(
            [sessions[i] for i in live], [fed[i] for i in live], [rows[i] for i in live]
        )
        for i in live:
            got[i].append(rows[i].copy())
            fed[i] = rows[i].argmax(-1).astype(np.int32)
    for i, ids in enumerate(prompts):
        assert np.array_equal(np.concatenate(got[i]), want[i]), len(ids)
        assert sessions[i].position == len(ids) + decode
        sessions[i].close()
    model.close()


def test_logits_of_any_rows_of_any_sequence(path):
    """More rows than are multiplied with the vocabulary at once, cut unevenly."""
    model = core_model(path, prefill_rows=128)
    prompts, wanted = [tokens(n, seed=n) for n in (30, 20, 9, 40)], (11, 0, 9, 5)
    want = []
    for ids, n in zip(prompts, wanted, strict=True):
        session = _core.Session(model)
        want.append(np.empty((n, VOCAB), np.float32))
        session.eval(ids, want[-1])
        session.close()
    sessions = [_core.Session(model) for _ in prompts]
    got = [np.zeros((n, VOCAB), np.float32) for n in wanted]
    _core.eval_together(sessions, prompts, got)
    for a, b in zip(got, want, strict=True):
        assert np.array_equal(a, b)


def test_an_expert_is_read_once_for_all(path):
    """A batch of one prompt eight times reads the bytes of one."""
    ids = tokens(50, seed=3)
    read = []
    for n in (1, 8):
        model = core_model(path, prefill_rows=512)
        sessions = [_core.Session(model) for _ in range(n)]
        logits = [np.empty((1, VOCAB), np.float32) for _ in range(n)]
        feed = [ids] * n
        for _ in range(6):
            _core.eval_together(sessions, feed, logits)
            feed = [row.argmax(-1).astype(np.int32) for row in logits]
        read.append(bytes_read(*sessions))
        stats = [s.stats() for s in sessions]
        assert all(s["experts_hit"] <= s["experts_used"] for s in stats)
        assert max(s["bytes_read"] for s in stats) - min(s["bytes_read"] for s in stats) <= 6
    assert read[0] == read[1] > 0


def test_different_sequences_read_the_union(path):
    """What the rows of a step read together is what one sequence of all those experts would."""
    expert = core_model(path).info()["expert_bytes"]
    apart = together = 0
    feed = [tokens(1, seed=i) for i in range(6)]
    none = np.empty((0, VOCAB), np.float32)
    for ids in feed:
        model = core_model(path)
        session = _core.Session(model)
        session.eval(ids, none)
        apart += bytes_read(session)
    model = core_model(path)
    sessions = [_core.Session(model) for _ in feed]
    _core.eval_together(sessions, feed, [none] * 6)
    together = bytes_read(*sessions)
    assert expert <= together < apart


def test_refusals_leave_everyone_where_they_were(path):
    model, other = core_model(path, prefill_rows=64), core_model(path)
    a, b, stranger = _core.Session(model), _core.Session(model), _core.Session(other)
    one, none = tokens(1), np.empty((0, VOCAB), np.float32)
    want = alone(model, tokens(30), 2)

    def refuse(error, words, sessions, feed, sequence):
        with pytest.raises(error, match=words) as caught:
            _core.eval_together(sessions, feed, [none] * len(feed))
        assert getattr(caught.value, "sequence", None) == sequence
        assert a.position == b.position == stranger.position == 0

    refuse(ValueError, "needs tokens", [a, b], [one], None)
    refuse(ValueError, "needs tokens", [], [], None)
    refuse(ArgumentError, "twice", [a, b, a], [one] * 3, 2)
    refuse(ArgumentError, "one model", [a, stranger], [one] * 2, 1)
    refuse(ArgumentError, "vocabulary", [a, b], [one, one + VOCAB], 1)
    refuse(ArgumentError, "40 tokens, and 40 of other", [a, b], [tokens(40)] * 2, 1)
    refuse(ArgumentError, "not in 1 .. 64", [a, b], [one, tokens(65)], 1)
    with pytest.raises(TypeError):
        _core.eval_together([a, b], [one, one], [none.astype(np.float64)] * 2)
    b.cancel()
    refuse(CancelledError, "cancelled", [a, b], [one] * 2, 1)
    logits = [np.empty((1, VOCAB), np.float32) for _ in range(2)]
    _core.eval_together([a, b], [tokens(30)] * 2, logits)
    assert np.array_equal(logits[0], want[:1]) and np.array_equal(logits[1], want[:1])
    b.close()
    with pytest.raises(ClosedError) as caught:
        _core.eval_together([a, b], [one] * 2, [none] * 2)
    assert caught.value.sequence == 1 and a.position == 30


def test_a_full_context_names_its_sequence(tmp_path):
    tiny.write(tmp_path / "m", "qwen3_moe", seed=2, max_position_embeddings=64)
    model = core_model(tmp_path / "m", prefill_rows=128)
    a, b = _core.Session(model), _core.Session(model)
    none = np.empty((0, VOCAB), np.float32)
    with pytest.raises(ContextLengthError) as caught:
        _core.eval_together([a, b], [tokens(20), tokens(65)], [none] * 2)
    assert caught.value.sequence == 1 and a.position == b.position == 0


def test_a_number_that_is_not_finite_names_its_sequence(tmp_path):
    """Token 5 alone drives the values of the first layer beyond float16."""
    tiny.write(tmp_path / "m", "qwen3_moe", seed=2)

    tensors = tiny_files.read(tmp_path / "m")
    name = "model.embed_tokens.weight"
    embed = tensors[name].floats().copy()
    embed[:, 0] = 0
    embed[5, 0] = 1
    tiny_files.rewrite_tensor(tmp_path / "m", name, embed)
    name = "model.layers.0.self_attn.v_proj.weight"
    values = tensors[name].floats().copy()
    values[:, 0] = 1e6
    tiny_files.rewrite_tensor(tmp_path / "m", name, values)
    model = core_model(tmp_path / "m")
    sound, wrong = np.array([1, 2, 3], np.int32), np.array([1, 5, 3], np.int32)
    sessions = [_core.Session(model) for _ in range(3)]
    logits = [np.empty((1, VOCAB), np.float32) for _ in sessions]
    with pytest.raises(NumericalError, match="layer 0") as caught:
        _core.eval_together(sessions, [sound, sound, wrong], logits)
    assert caught.value.sequence == 2
    assert [s.position for s in sessions] == [0, 0, 0]
    _core.eval_together(sessions[:2], [sound, sound], logits[:2])
    assert np.array_equal(logits[0], alone(model, sound, 0))


def test_two_threads_may_take_the_same_sessions(path):
    """Taken in opposite orders they wait for each other's end, never for each other."""
    model = core_model(path)
    sessions = [_core.Session(model) for _ in range(3)]
    none = np.empty((0, VOCAB), np.float32)
    until = time.monotonic() + 0.5

    def work(order):
        while time.monotonic() < until:
            _core.eval_together(order, [tokens(1)] * 3, [none] * 3)
            order[0].reset()

    threads = [threading.Thread(target=work, args=(o,)) for o in (sessions, sessions[::-1])]
    for t in threads:
        t.start()
    for t in threads:
        t.join(20)
    assert not any(t.is_alive() for t in threads)
