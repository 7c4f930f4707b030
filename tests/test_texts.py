"""Texts come back from tokens, and streams are what is decoded in one piece: few of many cases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flashmoe.tokenizer import Tokenizer
from reliability.texts import Kind, kinds, round_trips, streams

CASES = 2000


@pytest.fixture(scope="module")
def known() -> Iterator[list[Kind]]:
    with kinds() as known:
        yield known


def test_texts_come_back(known: list[Kind]) -> None:
    assert [round_trips(kind, CASES) for kind in known] == [0] * len(known)


def test_streams_are_what_is_decoded_in_one_piece(known: list[Kind]) -> None:
    assert [streams(kind, CASES) for kind in known] == [0] * len(known)


def test_what_is_wrong_is_counted(known: list[Kind], monkeypatch: pytest.MonkeyPatch) -> None:
    right = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda *a, **k: right(*a, **k).replace("a", "b"))
    assert round_trips(known[0], 50) > 0
    assert streams(known[0], 50) > 0
