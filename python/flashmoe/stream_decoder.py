"""Turns token ids into text one id at a time, without ever cutting a character."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import tokenizers


class StreamDecoder(Protocol):
    """Text of a growing sequence of token ids.

    The pieces joined are what decoding the whole sequence at once gives, for every
    sequence of ids. A piece never holds half a character, nor a replacement
    character that a later token could still complete. Work is linear in the ids.
    """

    def push(self, token_id: int) -> str:
        """Take one token id and return the text that it makes final, often none."""

    def flush(self) -> str:
        """End the sequence and return the text that was still waiting."""


def make_stream_decoder(
    decoder: tokenizers.decoders.Decoder | None,
    visible_token: Callable[[int], str | None],
    decode: Callable[[list[int]], str],
) -> StreamDecoder:
    """Choose the decoder for a tokenizer.

    Args:
        decoder: The tokenizer's decoder.
        visible_token: Stored text of an id, ``None`` if it does not show in the output.
        decode: Text of a whole sequence of ids, nothing left out.
    """
    stages = _decoder_stages(decoder)
    if stages and all(stage["type"] == "ByteLevel" for stage in stages):
        return _ByteStream(visible_token)
    return _PieceStream(visible_token, decode, stages)


def _decoder_stages(decoder: tokenizers.decoders.Decoder | None) -> list[dict[str, Any]]:
    """The steps of a decoder, sequences unfolded."""
    if decoder is None:
        return []
    unfolded: list[dict[str, Any]] = []
    waiting = [json.loads(decoder.__getstate__())]
    while waiting:
        stage = waiting.pop(0)
        if stage["type"] == "Sequence":
            waiting[:0] = stage["decoders"]
        else:
            unfolded.append(stage)
    return unfolded


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = sorted(set(range(256)) - printable)
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update((chr(0x100 + i), byte) for i, byte in enumerate(hidden))
    return alphabet


_ALPHABET = _byte_alphabet()


class _ByteStream:
    """Byte-level vocabularies: a token is a few bytes, the text is their UTF-8."""

    def __init__(self, visible_token: Callable[[int], str | None]) -> None:
        self._visible_token = visible_token
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        token = self._visible_token(token_id)
        if token is None:
            return ""
        return self._utf8.decode(self._token_bytes(token))

    def flush(self) -> str:
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest

    def _token_bytes(self, token: str) -> bytes:
        try:
            return bytes([_ALPHABET[character] for character in token])
        except KeyError:  # an added token outside the byte alphabet stands for itself
            return token.encode()


_LOCAL = frozenset({"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece"})


class _PieceStream:
    """Other vocabularies: a token is a piece of text, apart from runs of ``<0xNN>`` bytes.

    A piece is decoded together with the last one before it that has text, because the
    first piece of a text is treated differently (its leading space is dropped). A run
    of byte tokens is decoded as one, since one bad byte changes the whole run, so it
    waits for the token that ends it. Where a piece depends on more, the text is
    complete only at the end, and comes as one.
    """

    def __init__(
        self,
        visible_token: Callable[[int], str | None],
        decode: Callable[[list[int]], str],
        stages: list[dict[str, Any]],
    ) -> None:
        self._visible_token = visible_token
        self._decode = decode
        self._is_local = _is_local(stages)
        self._context: list[int] = []
        self._waiting: list[int] = []

    def push(self, token_id: int) -> str:
        token = self._visible_token(token_id)
        if token is None:
            return ""
        self._waiting.append(token_id)
        if not self._is_local or _is_byte_token(token):
            return ""
        return self._take_waiting()

    def flush(self) -> str:
        text = self._take_waiting()
        self._context = []
        return text

    def _take_waiting(self) -> str:
        both = self._context + self._waiting
        text = self._decode(both)[len(self._decode(self._context)) :]
        self._context = self._waiting if text else both
        self._waiting = []
        return text


def _is_local(stages: list[dict[str, Any]]) -> bool:
    """Whether a token's text depends on nothing but the piece before it."""
    fused = False
    for stage in stages:
        kind = stage["type"]
        one_space = kind == "Strip" and stage["start"] <= 1 and not stage["stop"]
        if kind not in _LOCAL or (fused and not one_space):
            return False
        fused |= kind == "Fuse"
    return True


def _is_byte_token(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")
