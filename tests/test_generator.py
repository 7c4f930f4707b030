"""Streams, answers, stopping, threads and Ctrl-C on a tiny model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import flashmoe
import reference
import tiny
from conftest import tokens
from flashmoe import Generator, Model, Sampler
from flashmoe.errors import (
    ArgumentError,
    CancelledError,
    ClosedError,
    ContextLengthError,
    PromptError,
    TemplateError,
    TokenizerError,
)

GREEDY = Sampler(temperature=0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("generator") / "model"
    tiny.write(path, "qwen3_5_moe", seed=31, vocab_size=320)
    tiny.tokenizer(path, 320)
    return path


@pytest.fixture
def model(path):
    with Model(path, kv_dtype="f32") as model:
        yield model


def greedy_reference(path, ids, n):
    """Greedy decoding by evaluating the whole text again for each token, in float64."""
    ids = list(ids)
    for _ in range(n):
        ids.append(int(reference.logits(path, np.array(ids))[-1].argmax()))
    return ids[-n:]


def test_greedy_tokens(path, model):
    prompt = tokens(20, seed=5, vocab=200).tolist()
    out = Generator(model, lambda logits: int(logits.argmax())).generate(prompt, max_tokens=12)
    ends = model.tokenizer.eos_token_ids
    want = greedy_reference(path, prompt, 12)
    cut = next((i + 1 for i, t in enumerate(want) if t in ends), 12)
    assert out.token_ids == want[:cut]
    p = reference.logits(path, np.array(prompt + out.token_ids))
    for i, (token, logprob) in enumerate(zip(out.token_ids, out.logprobs, strict=True)):
        row = p[len(prompt) - 1 + i]
        assert logprob == pytest.approx(row[token] - np.log(np.exp(row).sum()), abs=1e-4)


def test_stream_equals_generate(model):
    generator = Generator(model, GREEDY)
    whole = generator.generate("hello", max_tokens=30)
    chunks = list(generator.stream("hello", max_tokens=30))
    assert "".join(c.text for c in chunks) == whole.text
    assert [c.token_id for c in chunks] == whole.token_ids
    assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == whole.finish_reason
    visible = [t for t in whole.token_ids if t not in model.tokenizer.eos_token_ids]
    assert whole.text == model.tokenizer.decode(visible)


def test_every_call_begins_anew(model):
    generator = Generator(model, GREEDY)
    first = generator.generate("one", max_tokens=8).token_ids
    generator.generate("another prompt", max_tokens=3)
    assert generator.generate("one", max_tokens=8).token_ids == first


def scripted(ids):
    """A sampler that says these tokens."""
    queue = list(ids)
    return lambda logits: queue.pop(0)


def test_stops_at_an_end_token(model):
    end = sorted(model.tokenizer.eos_token_ids)[0]
    said = model.tokenizer.encode("abc")
    out = Generator(model, scripted([*said, end, *said])).generate("x")
    assert (out.text, out.finish_reason) == ("abc", "stop")
    assert out.token_ids == [*said, end]


def test_stop_string_across_tokens(model):
    said = [i for c in "hello END more" for i in model.tokenizer.encode(c)]
    out = Generator(model, scripted(said)).generate("x", stop=["END"], max_tokens=50)
    assert (out.text, out.finish_reason) == ("hello ", "stop")


def test_length(model):
    said = [i for c in "abcdef" for i in model.tokenizer.encode(c)]
    out = Generator(model, scripted(said)).generate("x", max_tokens=3)
    assert (out.text, out.finish_reason) == ("abc", "length")


def test_characters_are_never_split(model):
    said = model.tokenizer.encode("aé😀b")
    chunks = list(Generator(model, scripted(said)).stream("x", max_tokens=len(said)))
    assert "".join(c.text for c in chunks) == "aé😀b"
    assert all("\ufffd" not in c.text for c in chunks)


def test_chat_renders_the_template(model):
    messages = [{"role": "user", "content": "hi"}]
    generator = Generator(model, GREEDY)
    prompt = generator.render(messages)
    assert "hi" in prompt
    ids = model.tokenizer.encode(prompt)
    assert (
        generator.chat(messages, max_tokens=4).token_ids
        == generator.generate(ids, max_tokens=4).token_ids
    )


def test_stats(model):
    seen = []
    generator = Generator(model, Sampler(seed=5))
    out = generator.generate(
        tokens(100).tolist(), max_tokens=5, progress=lambda d, n: seen.append((d, n))
    )
    s = out.stats
    assert s.prompt_tokens == 100 and 1 <= s.completion_tokens <= 5 and s.seed == 5
    assert 0 < s.time_to_first_token < 60 and s.prefill_tokens_per_second > 0
    assert 0 <= s.expert_hit_rate <= 1 and s.expert_bytes_read > 0
    assert s.peak_memory > 10_000_000 and s.experts_per_token == s.native_experts_per_token
    assert seen[-1] == (100, 100)


@pytest.mark.parametrize(
    ("prompt", "error", "words"),
    [
        ("", PromptError, "empty"),
        ([], PromptError, "empty"),
        ([1, 2, 5000], PromptError, "token 5000 at position 2"),
        ([-1], PromptError, "outside the vocabulary"),
        ([1.5], PromptError, "whole numbers"),
        ([1] * 100000, ContextLengthError, "leave room for an answer"),
    ],
    ids=str,
)
def test_bad_prompts(model, prompt, error, words):
    generator = Generator(model, GREEDY)
    with pytest.raises(error, match=words):
        generator.generate(prompt, max_tokens=2)
    assert generator.generate([1, 2, 3], max_tokens=2).token_ids


def test_bad_arguments(model):
    with pytest.raises(ArgumentError, match="max_tokens"):
        Generator(model).generate([1], max_tokens=0)
    with pytest.raises(ArgumentError, match="sampler chose token 320"):
        Generator(model, lambda logits: 320).generate([1])


def test_without_a_tokenizer(tmp_path):
    tiny.write(tmp_path / "bare", "qwen3_moe", seed=1)
    with Model(tmp_path / "bare") as model:
        out = Generator(model, GREEDY).generate([1, 2, 3], max_tokens=4)
        assert len(out.token_ids) == 4 and out.text == ""
        with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
            Generator(model).generate("text")


def test_without_a_template(path, tmp_path):
    import shutil

    bare = tmp_path / "model"
    shutil.copytree(path, bare)
    for name in ("chat_template.jinja",):
        (bare / name).unlink(missing_ok=True)
    config = bare / "tokenizer_config.json"
    import json

    data = json.loads(config.read_text())
    data.pop("chat_template", None)
    config.write_text(json.dumps(data))
    with Model(bare) as model, pytest.raises(TemplateError, match="no chat template"):
        Generator(model).chat([{"role": "user", "content": "hi"}])


def test_threads_get_the_answers_of_one(model):
    prompts = [tokens(10, seed=i, vocab=200).tolist() for i in range(8)]
    want = [Generator(model, GREEDY).generate(p, max_tokens=6).token_ids for p in prompts]
    got: list = [None] * len(prompts)
    shared = Generator(model, GREEDY)

    def work(i):
        generator = shared if i % 2 else Generator(model, GREEDY)
        got[i] = generator.generate(prompts[i], max_tokens=6).token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == want


def test_cancel_from_another_thread(model):
    generator = Generator(
        model, Sampler(seed=1, logit_bias=dict.fromkeys(model.tokenizer.eos_token_ids, -1e9))
    )
    failure: list[BaseException] = []

    def work():
        try:
            generator.generate([1, 2, 3], max_tokens=100000)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.1)
    generator.cancel()
    thread.join(10)
    assert not thread.is_alive() and isinstance(failure[0], CancelledError)
    assert generator.generate([1, 2, 3], max_tokens=2).token_ids


def test_a_stream_left_behind_does_not_block(model):
    said = [i for c in "abcdefgh" for i in model.tokenizer.encode(c)]
    generator = Generator(model, scripted(said * 3))
    left = generator.stream("x", max_tokens=8)
    assert next(left).text == "a"
    assert generator.generate("x", max_tokens=2).text == "bc"  # `left` is still referred to
    with pytest.raises(CancelledError, match="took this answer's place"):
        next(left)
    for _ in generator.stream("x", max_tokens=8):
        break
    assert generator.generate("x", max_tokens=2).text == "ef"
    whole = generator.stream("x", max_tokens=2)
    assert "".join(c.text for c in whole) == "gh"
    generator.generate("x", max_tokens=1)
    assert list(whole) == []  # it had ended by itself
    with pytest.raises(ArgumentError, match="callback"):
        generator.generate("x", progress=lambda *_: generator.generate("x"))
    assert generator.generate("x", max_tokens=1).token_ids


def test_closed(path):
    model = Model(path)
    generator = Generator(model)
    generator.generate([1], max_tokens=1)
    model.close()
    model.close()
    with pytest.raises(ClosedError):
        generator.generate([1], max_tokens=1)
    with pytest.raises(ClosedError):
        model.info()
    generator.close()
    with pytest.raises(ClosedError):
        generator.generate([1])
    assert "closed" in repr(model)


CTRL_C = """
import sys, threading, time, os, signal
from flashmoe import Generator, Model, Sampler
model = Model(sys.argv[1])
generator = Generator(model, Sampler(temperature=0))
want = generator.generate([1, 2, 3], max_tokens=3).token_ids
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    while True:
        model.logits(list(range(97)) * 5)
except KeyboardInterrupt:
    late = time.monotonic() - start - 0.2
assert late < 1, late
assert generator.generate([1, 2, 3], max_tokens=3).token_ids == want
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
print("stopped")
"""


def test_ctrl_c_stops_and_leaves_all_usable(path):
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "stopped\n", done.stderr


def test_a_handler_that_does_not_raise_lets_it_go_on(model):
    """Only an exception ends the call: a program's own SIGINT handler may decide otherwise."""
    ids = tokens(300, vocab=200)
    want = model.logits(ids)
    hits = []
    before = signal.signal(signal.SIGINT, lambda *_: hits.append(1))
    timer = threading.Timer(0.02, lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        timer.start()
        while not hits:
            assert np.array_equal(model.logits(ids), want)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)


def test_from_pretrained_is_the_same_call(path):
    with flashmoe.Model.from_pretrained(path, memory="1GB", threads=1) as model:
        assert model.info()["threads"] == 1 and model.info()["memory"] == 10**9
