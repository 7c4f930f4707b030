"""Texts to tokens and back, and tokens to a stream of text, for each kind of tokenizer.

    python tests/reliability/texts.py                     100,000 of each
    python tests/reliability/texts.py --cases 2000        what the tests do

Ends with 1 if a text came back as another, or a stream was not what is decoded in one piece.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tokenizers import normalizers

sys.path.insert(0, str(Path(__file__).parents[1]))

import flashmoe
from flashmoe.tokenizer import Tokenizer
from test_tokenizer import gemma_like_backend, qwen_backend, save

CASES = 100_000
_RANGES = (
    (0x20, 0x7F), (0, 0x20), (0x80, 0x250), (0x300, 0x370), (0x590, 0x780), (0x900, 0xE80),
    (0x1100, 0x1200), (0x2000, 0x2070), (0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4),
    (0xE000, 0xF900), (0xFE00, 0xFE10), (0x1F300, 0x1FAFF), (0xF0000, 0xF0100), (0, 0x110000),
)  # fmt: skip
"""Of characters: scripts, marks that join the one before, private use, and all there are."""
_WORDS = (
    "<|im_end|>", "<|im_start|>user\n", "<think>", "</think>", "<tool_call>", "日本", "<é>",
    "  ", "\n\n", "\r\n", "\t", "'s", "\ufeff", "\u200d", "👩‍👩‍👧‍👦", "e\u0301", "\x00",
    "1234567890", "<", "<0x0A>",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A tokenizer, and how texts are compared on their way there and back.

    Attributes:
        name: Of the kind.
        tokenizer: One of the kind.
        form: Makes texts that mean the same the same.
    """

    name: str
    tokenizer: Tokenizer
    form: Callable[[str], str]


@contextmanager
def kinds() -> Iterator[list[Kind]]:
    """The demo model's tokenizer, which composes characters, one of bytes, and one of pieces."""
    plain = qwen_backend()
    plain.normalizer = normalizers.Sequence([])
    fallback = gemma_like_backend()
    fallback.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    with tempfile.TemporaryDirectory() as folder:
        exact, falling = (
            Tokenizer.from_directory(save(Path(folder) / name, backend))
            for name, backend in (("plain", plain), ("fallback", fallback))
        )
        yield [
            Kind("demo", Tokenizer.from_directory(flashmoe.demo_model_path()), _composed),
            Kind("bytes", exact, _same),
            Kind("pieces", falling, _same),
        ]


def _same(text: str) -> str:
    return text


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def random_text(rng: random.Random) -> str:
    """A text of up to a hundred characters, rarely of tens of thousands: any that UTF-8 has.

    Args:
        rng: Randomness.
    """
    pieces = []
    for _ in range(rng.randrange(12)):
        low, high = rng.choice(_RANGES)
        codes = (rng.randrange(low, high) for _ in range(rng.randrange(9)))
        pieces.append("".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000))
        pieces.append(rng.choice(_WORDS) if rng.random() < 0.3 else "")
    return "".join(pieces) * (1 if rng.random() < 0.9999 else 500)


def round_trips(kind: Kind, cases: int, seed: int = 1) -> int:
    """Encode and decode texts; how many came back as another text.

    Args:
        kind: The tokenizer.
        cases: How many texts.
        seed: Of the texts.
    """
    rng, wrong = random.Random(f"texts {seed}"), 0
    for _ in range(cases):
        # a space, where texts are pieces; an added token whose letter stands for a byte
        text = random_text(rng).replace("▁", "_").replace("<é>", "é")
        back = kind.tokenizer.decode(kind.tokenizer.encode(text), skip_special_tokens=False)
        if kind.form(back) != kind.form(text):
            wrong += 1
            print(f"{kind.name}: {text[:200]!r} came back as {back[:200]!r}")
    return wrong


def streams(kind: Kind, cases: int, seed: int = 1) -> int:
    """Decode sequences of tokens one by one; how many were another text, or not whole characters.

    Args:
        kind: The tokenizer.
        cases: How many sequences.
        seed: Of the sequences.
    """
    rng, wrong, tokenizer = random.Random(f"tokens {seed}"), 0, kind.tokenizer
    everything = range(tokenizer.vocab_size + 40)  # ids past the vocabulary have no text
    single = [i for i in everything if len(tokenizer.id_to_token(i) or "") in (1, 6)]  # bytes
    for case in range(cases):
        ids = rng.choices(single if case % 2 else everything, k=rng.randrange(0, 24))
        if case % 3 == 0:  # a text that is cut anywhere, and goes on with another
            ids = tokenizer.encode(random_text(rng))[: rng.randrange(1, 40)] + ids
        skip = bool(case & 4)
        stream = tokenizer.stream(skip_special_tokens=skip)
        pieces = [*map(stream.push, ids), stream.flush()]
        whole = tokenizer.decode(ids, skip_special_tokens=skip)
        if "".join(pieces) != whole or not all(map(_is_utf8, pieces)):
            wrong += 1
            print(f"{kind.name}: {ids} is streamed as {pieces!r}, decoded as {whole!r}")
    return wrong


def _is_utf8(piece: str) -> bool:
    try:
        piece.encode()
    except UnicodeEncodeError:
        return False
    return True


def main() -> int:
    """Run both for each kind of tokenizer; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=CASES, help="of each for each tokenizer")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    bad = 0
    with kinds() as known:
        for kind in known:
            for what, run in (("texts there and back", round_trips), ("streams", streams)):
                start = time.monotonic()
                wrong = run(kind, args.cases, args.seed)
                took = time.monotonic() - start
                print(
                    f"{kind.name}: {args.cases:,} {what}, {wrong} wrong, {took:.0f} s", flush=True
                )
                bad += wrong
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
