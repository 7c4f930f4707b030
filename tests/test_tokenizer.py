"""Tokenizers: ids of the library, streaming equal to one-shot decoding, errors with names."""

from __future__ import annotations

import json
import random
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Backend

import flashmoe
from flashmoe.errors import TokenizerError
from flashmoe.tokenizer import Tokenizer

QWEN35_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog; it's 2026, isn't it?",
    "def f(x):\n\treturn {'a': [1, 2.5e-3], \"b\": None}\r\n\r\n",
    "नमस्ते दुनिया — สวัสดี 12.5kg 日本語のテキスト 🙂👩‍👩‍👧‍👦 don\u2019t I'LL",
    "Größe Köln naïve x\u0308 \u00a0 tabs\t\tend   ",
] * 3
TEXTS = [
    *CORPUS[:4],
    "",
    " ",
    "\n\n  \r\n",
    "Hello<|im_end|>\n<|im_start|>user\n<think>x</think>",
    "e\u0301 vs \u00e9, \u1112\u1161\u11ab, \ufb01",
    "\x00\x01\u200b\ufeff\U0010ffff",
    "a" * 5000,
]


def qwen_backend() -> Backend:
    backend = Backend(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN35_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=420,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"):
        backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])
    for text in ("<think>", "</think>", "<é>", "日本"):
        backend.add_tokens([AddedToken(text, special=False, normalized=False)])
    return backend


def gemma_like_backend() -> Backend:
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for piece in ("▁", "▁a", "a", "b", "▁bc", "é", "日", "<0xZZ>", "▁▁", "<0x", "日本"):
        vocab[piece] = len(vocab)
    backend = Backend(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    backend.add_special_tokens([AddedToken("<eos>", special=True)])
    return backend


def save(path: Path, backend: Backend, **files: Any) -> Path:
    """A checkpoint directory with tokenizer.json and the given JSON files."""
    path.mkdir(exist_ok=True)
    backend.save(str(path / "tokenizer.json"))
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_directory(save(tmp_path_factory.mktemp("qwen"), qwen_backend()))


def test_ids_and_text_equal_the_library(qwen: Tokenizer) -> None:
    backend = qwen_backend()
    for text in TEXTS:
        ids = backend.encode(text, add_special_tokens=False).ids
        assert qwen.encode(text) == ids
        for skip in (True, False):
            expected = backend.decode(ids, skip_special_tokens=skip)
            assert qwen.decode(ids, skip_special_tokens=skip) == expected
    assert qwen.decode(qwen.encode("Größe 日本 🙂")) == "Größe 日本 🙂"


def test_combining_marks_stay_with_their_letters(qwen: Tokenizer) -> None:
    split = qwen_backend().pre_tokenizer.pre_tokenize_str("नमस्ते दुनिया")
    assert len(split) == 2
    assert qwen.encode("x\u0308") == qwen.encode("ẍ")


def test_special_tokens_are_added_on_request_only(tmp_path: Path) -> None:
    backend = qwen_backend()
    begin = backend.token_to_id("<|endoftext|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", begin)]
    )
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    tokenizer = Tokenizer.from_directory(save(tmp_path, backend))
    plain = tokenizer.encode("one two three four five six")
    assert len(plain) > 4
    assert begin not in plain
    assert tokenizer.encode("one two three four five six", add_special_tokens=True) == [
        begin,
        *plain,
    ]


def test_vocabulary_size_is_the_highest_id_and_one(qwen: Tokenizer) -> None:
    assert qwen.token_to_id("日本") == qwen.vocab_size - 1
    assert qwen.id_to_token(qwen.vocab_size - 1) == "日本"
    assert qwen.id_to_token(qwen.vocab_size) is None
    assert qwen.token_to_id("no such token") is None


# Streaming -----------------------------------------------------------------------------


def stream(tokenizer: Tokenizer, ids: list[int], skip: bool) -> list[str]:
    decoder = tokenizer.stream(skip_special_tokens=skip)
    return [*map(decoder.push, ids), decoder.flush()]


def check_streaming(tokenizer: Tokenizer, ids: list[int], skip: bool) -> None:
    """The pieces joined are the one-shot text, and each is final when it comes."""
    pieces = stream(tokenizer, ids, skip)
    whole = tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(pieces) == whole, ids
    for piece in pieces:
        piece.encode()  # whole characters only


def test_twenty_thousand_random_sequences(qwen: Tokenizer) -> None:
    generator = random.Random(1)
    everything = range(qwen.vocab_size + 40)  # ids past the vocabulary have no text
    single = [i for i in everything if len(qwen.id_to_token(i) or "") == 1]
    high = [i for i in single if ord(qwen.id_to_token(i) or "") >= 0x7F]
    replaced = 0
    for turn in range(20_000):
        pool = (everything, single, high)[turn % 3]
        ids = generator.choices(pool, k=generator.randrange(0, 14))
        check_streaming(qwen, ids, skip=bool(turn & 1))
        replaced += "\ufffd" in qwen.decode(ids)
    assert replaced > 5000  # the fuzz does reach invalid UTF-8


def test_random_sequences_with_byte_fallback(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(save(tmp_path, gemma_like_backend()))
    generator = random.Random(2)
    everything = range(tokenizer.vocab_size + 5)
    pieces = range(257, tokenizer.vocab_size)
    for turn in range(6000):
        pool = everything if turn % 2 else pieces
        ids = generator.choices(pool, k=generator.randrange(0, 12))
        if turn % 3 == 0:
            ids += [byte + 1 for byte in "é🙂".encode()[: generator.randrange(7)]]
        check_streaming(tokenizer, ids, skip=bool(turn & 2))


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        decoders.Metaspace(),
        decoders.WordPiece(),
        decoders.BPEDecoder(suffix="b"),
        decoders.CTC(pad_token="a"),
        decoders.Sequence([decoders.ByteLevel(), decoders.Replace("a", "bb")]),
    ],
)
def test_other_decoders_stream_exactly(tmp_path: Path, decoder: Any) -> None:
    backend = gemma_like_backend()
    if decoder is not None:
        backend.decoder = decoder
    tokenizer = Tokenizer(backend)
    generator = random.Random(3)
    for turn in range(500):
        ids = generator.choices(range(tokenizer.vocab_size), k=generator.randrange(0, 12))
        check_streaming(tokenizer, ids, skip=bool(turn & 1))


@pytest.mark.parametrize(
    "steps",
    [
        [decoders.Fuse(), decoders.Strip(" ", 1, 0)],
        [decoders.Fuse(), decoders.Strip(" ", 2, 0)],
        [decoders.Replace("a", ""), decoders.Fuse(), decoders.Strip(" ", 1, 0)],
        [decoders.Fuse(), decoders.Replace(" b", "")],
        [decoders.Metaspace()],
        [decoders.WordPiece()],
    ],
)
def test_tokens_without_text_stream_exactly(steps: list[Any]) -> None:
    pieces = ["", "a", "\u2581", "b", "ab", "\u2581a", "<0xC3>", "<0xA9>"]
    backend = Backend(models.Unigram([(piece, -1.0) for piece in pieces], 0, False))
    first = [decoders.Replace("\u2581", " "), decoders.ByteFallback()]
    backend.decoder = decoders.Sequence([*first, *steps])
    tokenizer = Tokenizer(backend)
    generator = random.Random(4)
    for turn in range(3000):
        ids = generator.choices(range(tokenizer.vocab_size), k=generator.randrange(0, 9))
        check_streaming(tokenizer, ids, skip=bool(turn & 1))


def test_a_split_emoji_appears_whole_and_at_once(qwen: Tokenizer) -> None:
    alphabet = {qwen.decode([i]): i for i in range(256)}
    assert "\ufffd" in alphabet  # lone bytes have no text of their own
    byte_ids = [qwen.token_to_id(c) for c in "ðŁĻĤ"]  # the bytes F0 9F 99 82 of 🙂
    assert None not in byte_ids
    assert stream(qwen, [*byte_ids, qwen.encode("!")[0]], skip=True) == (
        ["", "", "", "🙂", "!", ""]
    )
    assert stream(qwen, byte_ids[:3], skip=True) == ["", "", "", "\ufffd"]
    cut = stream(qwen, [*byte_ids[:3], qwen.encode("!")[0]], skip=True)
    assert cut == ["", "", "", "\ufffd!", ""]


def test_streaming_can_go_on_after_a_flush(qwen: Tokenizer) -> None:
    decoder = qwen.stream()
    decoder.push(qwen.token_to_id("ð") or 0)
    assert decoder.flush() == "\ufffd"
    assert decoder.push(qwen.encode("a")[0]) == "a"
    assert decoder.flush() == ""


def test_streaming_keeps_no_history(qwen: Tokenizer) -> None:
    decoder = qwen.stream()
    ids = qwen.encode(CORPUS[2])
    tracemalloc.start()
    for _ in range(300):
        for token_id in ids:
            decoder.push(token_id)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 50_000


# Files beside the tokenizer ------------------------------------------------------------


def test_added_tokens_of_the_configuration_complete_the_file(tmp_path: Path) -> None:
    backend = qwen_backend()
    first = backend.get_vocab_size()
    config = {
        "added_tokens_decoder": {
            str(first + 1): {"content": "<tts_b>", "special": False},
            str(first): {"content": "<tts_a>", "special": True},
            str(first - 1): {"content": "日本", "special": False},
        }
    }
    tokenizer = Tokenizer.from_directory(save(tmp_path, backend, tokenizer_config=config))
    assert tokenizer.encode("x<tts_b><tts_a>日本")[1:] == [first + 1, first, first - 1]
    assert tokenizer.decode([first, first + 1]) == "<tts_b>"
    assert "".join(stream(tokenizer, [first, first + 1], skip=True)) == "<tts_b>"
    assert tokenizer.vocab_size == first + 2


def test_a_hole_between_added_tokens_is_filled(tmp_path: Path) -> None:
    backend = qwen_backend()
    save(tmp_path, backend)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    hole = stored["added_tokens"].pop(4)
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    config = {"added_tokens_decoder": {str(t["id"]): t for t in [*stored["added_tokens"], hole]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_directory(tmp_path)
    for text in TEXTS:
        assert tokenizer.encode(text) == backend.encode(text).ids


def test_added_tokens_that_disagree_are_refused(tmp_path: Path) -> None:
    backend = qwen_backend()
    config = {"added_tokens_decoder": {str(backend.get_vocab_size() + 3): {"content": "<far>"}}}
    path = save(tmp_path, backend, tokenizer_config=config)
    with pytest.raises(TokenizerError, match=r"'<far>' should have id \d+, but in tokenizer.json"):
        Tokenizer.from_directory(path)
    taken = {"added_tokens_decoder": {str(backend.token_to_id("<think>")): {"content": "<other>"}}}
    with pytest.raises(TokenizerError, match="'<other>' should have id"):
        Tokenizer.from_directory(save(tmp_path, backend, tokenizer_config=taken))


@pytest.mark.parametrize(
    ("generation", "config", "eos_token", "expected"),
    [
        ({"eos_token_id": 5}, {}, None, {5}),
        ({"eos_token_id": [5, 6]}, {"eos_token_id": 7}, None, {5, 6, 7}),
        ({}, {"text_config": {"eos_token_id": [8, 9]}, "eos_token_id": None}, None, {8, 9}),
        ({"eos_token_id": 5}, {"text_config": {"eos_token_id": 6}}, "<|im_end|>", {5, 6, "im"}),
        ({}, {}, {"content": "<|im_end|>", "special": True}, {"im"}),
        ({}, {}, None, set()),
    ],
)
def test_end_tokens_are_the_union_of_all_sources(
    tmp_path: Path, generation: Any, config: Any, eos_token: Any, expected: set[Any]
) -> None:
    backend = qwen_backend()
    path = save(
        tmp_path,
        backend,
        generation_config=generation,
        config=config,
        tokenizer_config={"eos_token": eos_token, "bos_token": None},
    )
    tokenizer = Tokenizer.from_directory(path)
    im_end = backend.token_to_id("<|im_end|>")
    assert tokenizer.eos_token_ids == {im_end if i == "im" else i for i in expected}
    assert tokenizer.eos_token == ("<|im_end|>" if eos_token else None)
    assert tokenizer.bos_token is None


def test_special_tokens_map_counts_without_added_tokens_only(tmp_path: Path) -> None:
    files = {"special_tokens_map": {"eos_token": "<|im_end|>", "pad_token": {"content": "<é>"}}}
    backend = qwen_backend()
    tokenizer = Tokenizer.from_directory(save(tmp_path / "old", backend, **files))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<é>")
    files["tokenizer_config"] = {"added_tokens_decoder": {}, "eos_token": "<|endoftext|>"}
    tokenizer = Tokenizer.from_directory(save(tmp_path / "new", backend, **files))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|endoftext|>", None)


def test_generation_defaults(tmp_path: Path) -> None:
    def defaults(name: str, generation: Any) -> dict[str, float]:
        path = save(tmp_path / name, qwen_backend(), generation_config=generation)
        return Tokenizer.from_directory(path).generation_defaults

    sampling = {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
    assert defaults("on", {**sampling, "do_sample": True, "eos_token_id": 3}) == sampling
    assert defaults("absent", {**sampling, "min_p": None}) == sampling
    assert defaults("off", {**sampling, "do_sample": False}) == {**sampling, "temperature": 0.0}
    assert defaults("none", {}) == {}
    with pytest.raises(TokenizerError, match=r"generation_config.json: top_k is 'many'"):
        defaults("bad", {"top_k": "many"})


def test_the_chat_template_comes_along(tmp_path: Path) -> None:
    config = {"chat_template": "{{ eos_token }}{{ messages[0].content }}", "eos_token": "<é>"}
    path = save(tmp_path, qwen_backend(), tokenizer_config=config)
    template = Tokenizer.from_directory(path).chat_template
    assert template is not None
    assert template.render([{"role": "user", "content": "hi"}]) == "<é>hi"
    assert Tokenizer.from_directory(save(tmp_path / "b", qwen_backend())).chat_template is None


# Refusals ------------------------------------------------------------------------------


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: missing"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: text.replace('"type":"BPE"', '"type":"NoSuchModel"'),
        lambda text: text.replace('"merges":[', '"merges":[["no","such"],'),
    ],
)
def test_a_broken_tokenizer_is_named(tmp_path: Path, change: Any) -> None:
    file = tmp_path / "tokenizer.json"
    text = qwen_backend().to_str(pretty=False)
    assert change(text) != text
    file.write_text(change(text), encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: broken"):
        Tokenizer.from_directory(tmp_path)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, qwen_backend())
    size = Tokenizer.from_directory(path).vocab_size
    assert Tokenizer.from_directory(path, num_logits=size).vocab_size == size
    message = f"highest token id is {size - 1}, but the model has only {size - 1}"
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_directory(path, num_logits=size - 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": ["x"]}, r"tokenizer_config\.json: holds list"),
        ({"tokenizer_config": {"eos_token": "<gone>"}}, "'<gone>' is not a token"),
        ({"tokenizer_config": {"eos_token": 5}}, "eos_token is 5, not a token's text"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {}}}}, "added_tokens_decoder is not"),
        (
            {"tokenizer_config": {"added_tokens_decoder": {"9": {"content": "\udfff"}}}},
            "added_tokens_decoder is not",
        ),
        ({"tokenizer_config": {"eos_token": "\udfff"}}, "eos_token: 'utf-8'"),
        ({"generation_config": {"eos_token_id": "5"}}, r"generation_config\.json: eos_token_id"),
        ({"generation_config": {"eos_token_id": [5, -1]}}, r"generation_config\.json: eos_token"),
        ({"config": {"eos_token_id": True}}, r"config\.json: eos_token_id is True"),
    ],
)
def test_broken_companions_are_named(tmp_path: Path, files: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_directory(save(tmp_path, qwen_backend(), **files))


def test_unreadable_json_is_named(tmp_path: Path) -> None:
    path = save(tmp_path, qwen_backend())
    (path / "generation_config.json").write_bytes(b"{\xff")
    with pytest.raises(TokenizerError, match=r"generation_config\.json: cannot be read as JSON"):
        Tokenizer.from_directory(path)


def test_impossible_text_and_ids_are_refused(qwen: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="surrogates not allowed"):
        qwen.encode("a\ud800b")
    for bad in (-1, 1 << 40):
        with pytest.raises(TokenizerError, match="cannot be decoded"):
            qwen.decode([bad])
        with pytest.raises(TokenizerError, match="not a token id"):
            qwen.stream().push(bad)


def test_a_rust_panic_becomes_an_error() -> None:
    backend = gemma_like_backend()
    backend.decoder = decoders.Sequence(  # stripping the end of an empty piece panics
        [decoders.Replace("a", ""), decoders.Strip(" ", 0, 1)]
    )
    empty = backend.token_to_id("a")
    with pytest.raises(BaseException, match="index out of bounds") as panic:
        backend.decode([empty])
    assert not isinstance(panic.value, Exception)
    tokenizer = Tokenizer(backend)
    with pytest.raises(TokenizerError, match="cannot be decoded: index out of bounds"):
        tokenizer.decode([empty])
    with pytest.raises(TokenizerError, match="cannot be decoded: index out of bounds"):
        tokenizer.stream().push(empty)


def test_long_texts_are_encoded_alike_and_hold_up_no_thread() -> None:
    tokenizer = Tokenizer.from_directory(flashmoe.demo_model_path())
    text = "The routed experts stay on the disk; <|im_end|> they are read. 世界🙂\n" * 9000
    stop, gaps = threading.Event(), []

    def tick() -> None:
        last = time.monotonic()
        while not stop.is_set():
            time.sleep(0.001)
            last, before = time.monotonic(), last
            gaps.append(last - before)

    ticking = threading.Thread(target=tick)
    ticking.start()
    start = time.monotonic()
    ids = tokenizer.encode(text, add_special_tokens=True)
    took = time.monotonic() - start
    stop.set()
    ticking.join()
    assert max(gaps) < 0.5 * took
    assert ids == tokenizer._backend.encode(text, add_special_tokens=True).ids
