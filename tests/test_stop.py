"""Stop strings, found at every way to cut the text into pieces."""

from __future__ import annotations

import itertools
import random

import pytest

from flashmoe.stop import StopMatcher


def reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Scan prefix by prefix: the first one that ends with a stop decides."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def run(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    """Feed the pieces and check what is emitted on the way."""
    matcher = StopMatcher(stops)
    emitted, fed = "", ""
    for piece in pieces:
        text, stopped = matcher.push(piece)
        emitted, fed = emitted + text, fed + piece
        if stopped:
            assert matcher.matched in stops
            assert matcher.flush() == ""
            return emitted, matcher.matched
        held = fed[len(emitted) :]
        assert fed == emitted + held
        assert held == max(
            (s[:n] for s in stops for n in range(len(s)) if fed.endswith(s[:n])), key=len
        )
    return emitted + matcher.flush(), matcher.matched


def splits(text: str) -> list[list[str]]:
    cuts = range(1, len(text))
    return [
        [text[a:b] for a, b in itertools.pairwise([0, *chosen, len(text)])]
        for count in range(len(text))
        for chosen in itertools.combinations(cuts, count)
    ]


@pytest.mark.parametrize(
    ("text", "stops"),
    [
        ("Hi<|im_end|>x"[:11], ["<|im"]),
        ("aabaabaaab", ["aabaaab"]),
        ("xabcdy", ["abcd", "bc"]),
        ("xabcy", ["abc", "bc", "c"]),
        ("abababac", ["ababac", "zz"]),
        ("never here", ["hex", "ere!"]),
        ("a\n\nUser", ["\n\nUser"]),
        ("日本🙂語", ["🙂語"]),
        ("stop", ["stop"]),
    ],
)
def test_every_split_gives_the_same(text: str, stops: list[str]) -> None:
    for pieces in splits(text):
        assert run(pieces, stops) == reference(text, stops), pieces


def test_random_texts_against_the_definition() -> None:
    generator = random.Random(5)
    ended = 0
    for _ in range(3000):
        alphabet = "ab" if generator.random() < 0.5 else "abc"
        text = "".join(generator.choices(alphabet, k=generator.randrange(1, 40)))
        stops = [
            "".join(generator.choices(alphabet, k=generator.randrange(1, 7)))
            for _ in range(generator.randrange(1, 4))
        ]
        pieces, rest = [], text
        while rest:
            size = generator.randrange(0, 6)
            pieces.append(rest[:size])
            rest = rest[size:]
        expected = reference(text, stops)
        assert run(pieces, stops) == expected, (text, stops, pieces)
        ended += expected[1] is not None
    assert 500 < ended < 2900


def test_text_passes_at_once_when_nothing_can_match() -> None:
    matcher = StopMatcher(["###"])
    assert matcher.push("hello ") == ("hello ", False)
    assert matcher.push("wor#") == ("wor", False)
    assert matcher.push("ld##") == ("#ld", False)
    assert matcher.flush() == "##"
    assert matcher.push("#x") == ("#x", False)


def test_no_stops_holds_nothing_back() -> None:
    matcher = StopMatcher()
    assert matcher.push("anything") == ("anything", False)
    assert matcher.flush() == ""


def test_after_the_end_nothing_more_comes() -> None:
    matcher = StopMatcher("END")
    assert matcher.push("abENDcd") == ("ab", True)
    assert matcher.push("more") == ("", True)
    assert matcher.flush() == ""
    assert matcher.matched == "END"


def test_bad_stops_are_refused() -> None:
    with pytest.raises(ValueError, match="stop string is empty"):
        StopMatcher(["ok", ""])
    with pytest.raises(TypeError, match="must be a string, not int"):
        StopMatcher([7])  # type: ignore[list-item]


def test_a_long_repetitive_text_stays_linear() -> None:
    matcher = StopMatcher(["a" * 2000 + "b"])
    emitted = sum(len(matcher.push("a" * 100)[0]) for _ in range(2000))
    assert emitted == 200_000 - 2000
    assert len(matcher.flush()) == 2000
