"""A text in windows, each token of it scored once, with a bounded part of it before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flashmoe.errors import ArgumentError


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a text that a model reads from an empty state.

    Attributes:
        first: The first token read.
        scored: The first token whose probability counts.
        last: Behind the last token.
    """

    first: int
    scored: int
    last: int


def windows(n: int, length: int, context: int) -> Iterator[Window]:
    """Cut a text so that every token but the first is scored once.

    Args:
        n: Tokens of the text.
        length: Most tokens of a window.
        context: Tokens at its start that were scored before and only come before the others.

    Yields:
        Windows in order. The first has no context but its first token.

    Raises:
        ArgumentError: A window has no room for a token to score.
    """
    if not 1 <= context < length:
        raise ArgumentError(
            f"a window of {length} tokens with a context of {context} scores nothing; "
            "the context must be 1 or more, and less than the window"
        )
    scored = 1
    while scored < n:
        first = max(0, scored - context)
        last = min(n, first + length)
        yield Window(first, scored, last)
        scored = last
