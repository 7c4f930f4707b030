"""Several sequences together: the bits of each alone, every expert read once, all or nothing."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

import tiny
import tiny_files
from conftest import tokens
from flashmoe import Generator, Model, Sampler, _core
from flashmoe.errors import (
    ArgumentError,
    BudgetError,
    CancelledError,
    ClosedError,
    ContextLengthError,
    NumericalError,
    PromptError,
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
        model = core_model(path, prefill_rows=512, overlap=False)
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
        model = core_model(path, overlap=False)
        session = _core.Session(model)
        session.eval(ids, none)
        apart += bytes_read(session)
    model = core_model(path, overlap=False)
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

    threads = [
        threading.Thread(target=work, args=(order,), daemon=True)
        for order in (sessions, sessions[::-1])
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join(20)
    assert not any(t.is_alive() for t in threads)


# ---- Generator.generate_batch ---------------------------------------------------------------


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def speaking(request, tmp_path_factory):
    """A checkpoint of every family with a tokenizer."""
    path = tmp_path_factory.mktemp("speaking") / "model"
    tiny.write(path, request.param, seed=31, vocab_size=320)
    tiny.tokenizer(path, 320)
    return path


PROMPTS = [
    "hello",
    tokens(130, seed=2, vocab=200).tolist(),
    "a",
    "hello",
    tokens(64, seed=3, vocab=200).tolist(),
    tokens(200, seed=4, vocab=200).tolist(),
    "another prompt",
]


def one_by_one(model, samplers, prompts=PROMPTS, **options):
    return [
        Generator(model, sampler).generate(prompt, **options)
        for prompt, sampler in zip(prompts, samplers, strict=True)
    ]


def same(got, want):
    """The same to the bit; stats apart, which are of another run."""
    assert got == [replace(w, stats=g.stats) for g, w in zip(got, want, strict=True)]
    assert [g.stats.seed for g in got] == [w.stats.seed for w in want]


@pytest.mark.parametrize("size", [1, 2, 3, None])
def test_every_answer_is_the_one_it_gets_alone(speaking, size):
    samplers = [
        Sampler(temperature=0, seed=7),
        *(Sampler(temperature=1.5, seed=i) for i in range(6)),
    ]
    options = {"max_tokens": 20}
    with Model(speaking) as model:
        texts = [answer.text for answer in one_by_one(model, samplers, **options)]
        ends = {c: sum(c in t for t in texts) for c in sorted(set("".join(texts)))}
        most = max(n for n in ends.values() if n < len(texts))
        options["stop"] = [next(c for c in ends if ends[c] == most)]  # ends many, but not all
        want = one_by_one(model, samplers, **options)
        ended = []
        got = Generator(model).generate_batch(
            PROMPTS, samplers=samplers, batch_size=size,
            on_answer=lambda i, answer: ended.append((i, answer)), **options,
        )  # fmt: skip
        same(got, want)
        assert sorted(i for i, _ in ended) == list(range(len(PROMPTS)))
        assert all(got[i] is answer for i, answer in ended)
        if size == 1:
            assert [i for i, _ in ended] == list(range(len(PROMPTS)))
        assert {g.finish_reason for g in got} == {"stop", "length"}
        assert len({len(g.token_ids) for g in got}) > 2  # so places were taken over


def test_one_sampler_starts_every_answer_anew(speaking):
    with Model(speaking) as model:
        sampler = Sampler(temperature=2, seed=9, repetition_penalty=1.3, presence_penalty=0.2)
        want = one_by_one(model, [sampler] * len(PROMPTS), max_tokens=12)
        same(Generator(model, sampler).generate_batch(PROMPTS, max_tokens=12), want)
        fresh = Generator(model, Sampler(temperature=2)).generate_batch(["a"] * 3, max_tokens=2)
        assert len({g.stats.seed for g in fresh}) == 3


def squeezed(path, kv_tokens, sessions, more_slots=0):
    """A model whose budget has room for so much beside the fewest experts and some more."""
    free = core_model(path, prefill_rows=64)
    i = free.info()
    free.close()
    budget = i["resident_bytes"] + i["scratch_bytes"] + i["state_bytes"] * sessions
    budget += i["kv_bytes_per_token"] * kv_tokens
    budget += i["expert_bytes"] * (i["min_expert_slots"] + more_slots)
    model = Model(path, memory=budget)
    assert model.info()["prefill_rows"] == 64
    return model


class Watch:
    """Counts the sessions that are open at a time, and the rows they evaluate."""

    def __init__(self, monkeypatch):
        self.most = self.tokens = self.steps = 0
        inner = _core.eval_together

        def eval_together(sessions, feed, logits):
            inner(sessions, feed, logits)
            self.most = max(self.most, len(sessions))
            self.tokens += sum(len(f) for f in feed)
            self.steps += 1

        monkeypatch.setattr(_core, "eval_together", eval_together)


@pytest.mark.parametrize("size", [7, None])
def test_sequences_without_memory_wait(speaking, size, monkeypatch):
    greedy = [Sampler(temperature=0, seed=7)] * len(PROMPTS)
    with squeezed(speaking, 2 * 256 + 60, sessions=2) as model:
        want = one_by_one(model, greedy, max_tokens=10)
        watch = Watch(monkeypatch)
        generator = Generator(model, greedy[0])
        generator.generate("hello", max_tokens=2)  # what it holds between calls, a batch may use
        got = generator.generate_batch(PROMPTS, max_tokens=10, batch_size=size)
        same(got, want)
        assert watch.most == 2 if size else watch.most in (1, 2)
        info = model.info()
        assert info["held_bytes"] <= info["memory"]


def test_by_default_experts_keep_half_of_their_memory(speaking, monkeypatch):
    with squeezed(speaking, 256, sessions=1, more_slots=10) as model:
        slots = model.info()["expert_slots"]
        assert slots < model.info()["expert_file_bytes"] // model.info()["expert_bytes"]
        fewest, most = [], []
        for size, seen in ((None, fewest), (7, most)):
            watch = Watch(monkeypatch)
            Generator(model, lambda logits: 5).generate_batch(
                PROMPTS, max_tokens=2, batch_size=size,
                on_answer=lambda *_, seen=seen: seen.append(model.info()["expert_slots"]),
            )  # fmt: skip
            seen.append(watch.most)
        assert min(fewest[:-1]) >= slots // 2 and fewest[-1] < most[-1]


def test_a_cache_that_cannot_grow_makes_the_youngest_begin_again(tmp_path, monkeypatch):
    """Three sequences outgrow a budget for four steps of the KV cache; bits stay the same."""
    tiny.write(tmp_path / "m", "qwen3_next", seed=5, max_position_embeddings=1024)
    prompts = [tokens(n, seed=n).tolist() for n in (240, 230, 220)]
    samplers = [Sampler(temperature=1, seed=i) for i in range(3)]
    with Model(tmp_path / "m") as free:
        want = one_by_one(free, samplers, prompts, max_tokens=60)
    with squeezed(tmp_path / "m", 4 * 256 + 60, sessions=3) as model:
        watch = Watch(monkeypatch)
        got = Generator(model).generate_batch(
            prompts, samplers=samplers, max_tokens=60, batch_size=3
        )
        same(got, want)
        assert watch.most == 3
        assert watch.tokens > sum(len(p) for p in prompts) + 3 * 59  # some rows came twice
        assert all(g.stats.prompt_tokens == len(p) for g, p in zip(got, prompts, strict=True))
        before = [w.stats.expert_bytes_read for w in got]
        assert all(b >= 0 for b in before) and sum(before) > 0


def test_one_that_never_fits_says_so(tmp_path):
    tiny.write(tmp_path / "m", "qwen3_moe", seed=5, max_position_embeddings=2048)
    prompts = [tokens(10).tolist(), tokens(600).tolist()]
    with squeezed(tmp_path / "m", 300, sessions=1) as model:
        done = []
        with pytest.raises(BudgetError, match=r"^prompt 1: sessions would hold") as caught:
            Generator(model, Sampler(temperature=0)).generate_batch(
                prompts, max_tokens=3, batch_size=2, on_answer=lambda i, _: done.append(i)
            )
        assert caught.value.sequence == 1 and done == [0]
        assert model.info()["held_bytes"] <= model.info()["memory"]


def test_identical_prompts_read_the_bytes_of_one(speaking):
    read = []
    for n in (1, 6):
        with Model(speaking, overlap=False) as model:  # nothing is read that is not asked for
            out = Generator(model, Sampler(temperature=0)).generate_batch(
                ["hello"] * n, max_tokens=8
            )
            read.append(sum(g.stats.expert_bytes_read for g in out))
            assert all(0 <= g.stats.expert_hit_rate <= 1 for g in out)
    assert read[0] == read[1] > 0


def test_prompts_share_steps(speaking, monkeypatch):
    """Short prompts are evaluated in one step, and then a step makes a token of each."""
    with Model(speaking) as model:
        watch = Watch(monkeypatch)
        prompts = [tokens(20, seed=i, vocab=200).tolist() for i in range(8)]
        Generator(model, lambda logits: 5).generate_batch(prompts, max_tokens=5)
        assert (watch.steps, watch.most, watch.tokens) == (5, 8, 8 * 24)


@pytest.mark.parametrize(
    ("prompts", "options", "error", "words"),
    [
        ("one text", {}, ArgumentError, "give a list"),
        (["a"], {"max_tokens": 0}, ArgumentError, "max_tokens"),
        (["a"], {"batch_size": 0}, ArgumentError, "batch_size"),
        (["a"], {"samplers": []}, ArgumentError, "0 samplers for 1 prompts"),
        (["a"], {"stop": [""]}, ValueError, "stop string is empty"),
        (["a", ""], {}, PromptError, "^prompt 1: the prompt is empty"),
        (["a", [1], [1, 5000]], {}, PromptError, "^prompt 2: token 5000 at position 1"),
        ([[1] * 100000, "a"], {}, ContextLengthError, "^prompt 0: the prompt has 100000 tokens"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_what_cannot_be_is_said_before_anything_runs(
    speaking, monkeypatch, prompts, options, error, words
):
    with Model(speaking) as model:
        generator = Generator(model)
        watch = Watch(monkeypatch)
        with pytest.raises(error, match=words) as caught:
            generator.generate_batch(prompts, **{"max_tokens": 3, **options})
        if words.startswith("^prompt"):
            assert caught.value.sequence == int(words[8])
        if error is ContextLengthError:
            assert caught.value.num_tokens == 100000
        assert watch.steps == 0
        assert generator.generate_batch([], max_tokens=3) == []


def test_a_failure_names_its_prompt(speaking):
    with Model(speaking) as model:
        generator = Generator(model, Sampler(temperature=0))
        samplers = [Sampler(temperature=0), lambda _: 320, Sampler(temperature=0)]
        with pytest.raises(
            ArgumentError, match=r"^prompt 1: the sampler chose token 320"
        ) as caught:
            generator.generate_batch(["a", "b", "c"], samplers=samplers)
        assert caught.value.sequence == 1
        want = generator.generate("a", max_tokens=3)
        held = model.info()["held_bytes"]
        with pytest.raises(ArgumentError, match="callback"):
            generator.generate_batch(["a"], on_answer=lambda *_: generator.generate("a"))
        assert generator.generate("a", max_tokens=3).token_ids == want.token_ids
        assert model.info()["held_bytes"] == held


def endless(model):
    return Sampler(seed=1, logit_bias=dict.fromkeys(model.tokenizer.eos_token_ids, -1e9))


@pytest.mark.parametrize("how", ["cancel", "close", "close model"])
def test_another_thread_ends_it(speaking, how):
    model = Model(speaking)
    generator = Generator(model, endless(model))
    held = model.info()["held_bytes"]
    failure: list[BaseException] = []

    def work():
        try:
            generator.generate_batch([[1, 2, 3]] * 4, max_tokens=100000)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.2)
    {"cancel": generator.cancel, "close": generator.close, "close model": model.close}[how]()
    thread.join(10)
    assert not thread.is_alive() and isinstance(failure[0], (CancelledError, ClosedError))
    if how == "cancel":
        assert isinstance(failure[0], CancelledError)
        assert len(generator.generate_batch(["a", "b"], max_tokens=2)) == 2
    if how != "close model":
        assert model.info()["held_bytes"] == held
    model.close()


def test_ctrl_c_stops_it_and_leaves_all_usable(speaking):
    with Model(speaking) as model:
        generator = Generator(model, endless(model))
        held = model.info()["held_bytes"]
        timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            generator.generate_batch([[1, 2, 3]] * 4, max_tokens=100000)
        assert time.monotonic() - start < 5
        timer.join()
        assert model.info()["held_bytes"] == held
        same(
            generator.generate_batch(["hello"], max_tokens=3),
            [generator.generate("hello", max_tokens=3)],
        )
