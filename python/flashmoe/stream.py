"""What a call gives piece by piece, and how a later call ends it."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Generator as PyGenerator
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar

from flashmoe.errors import ArgumentError, CancelledError

if TYPE_CHECKING:
    from flashmoe.answer import Chunk
    from flashmoe.reply import ReplyParser

T = TypeVar("T")


class Stream(Generic[T]):
    """The items of a call, chunks or answers, which a later call of the same thread may end.

    A stream that nobody reads on, because its loop was left by ``break`` or an exception, would
    otherwise keep the generator's turn for as long as something refers to it.
    """

    def __init__(self, items: PyGenerator[T, None, None]) -> None:
        self._items = items
        self._thread = threading.get_ident()
        self._replaced = False

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        if self._replaced:
            raise CancelledError("a later call on the same generator took this answer's place")
        return next(self._items)

    def close(self) -> None:
        """End the answer here."""
        self._items.close()

    def replace(self) -> None:
        """End it for a later call of the same thread; one of another thread waits its turn."""
        state = inspect.getgeneratorstate(self._items)
        if self._thread != threading.get_ident() or state == inspect.GEN_CLOSED:
            return
        if state == inspect.GEN_RUNNING:
            raise ArgumentError("a callback of an answer cannot start another with its generator")
        self._replaced = True
        self._items.close()


def parsed(chunks: Iterator[Chunk], parser: ReplyParser) -> Iterator[Chunk]:
    """Chunks of a chat with their deltas.

    Args:
        chunks: Of one answer.
        parser: Not used before.
    """
    for chunk in chunks:
        deltas = parser.push(chunk.text)
        reason = chunk.finish_reason
        if reason is not None:
            deltas += parser.finish()
            if reason == "stop" and parser.tool_calls:
                reason = "tool_calls"
        yield replace(chunk, deltas=tuple(deltas), finish_reason=reason)
