"""A seeded speaker: expands sentence patterns such as ``[Hi|Hello] {name}[!|.]`` into text."""
# ruff: noqa: SIM905

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")
Message = dict[str, Any]
Exchange = list[Message]


class PatternError(ValueError):
    """A sentence pattern has unbalanced brackets."""


class Voice:
    """Draws words, numbers and sentences from one seeded source.

    Patterns: ``[a|b|c]`` picks one alternative (they nest, and may be empty); ``{slot}`` is then
    replaced by the keyword argument of that name. Slot values are never expanded.
    """

    def __init__(self, seed: int | str) -> None:
        self.rng = random.Random(seed)

    def pick(self, items: Sequence[T]) -> T:
        """Returns one of ``items``, all equally likely."""
        return items[self.rng.randrange(len(items))]

    def some(self, items: Sequence[T], count: int) -> list[T]:
        """Returns ``count`` different entries of ``items`` in random order."""
        return self.rng.sample(list(items), count)

    def chance(self, probability: float) -> bool:
        """Returns true with the given probability."""
        return self.rng.random() < probability

    def number(self, low: int, high: int) -> int:
        """Returns an integer in ``low..high``, both included."""
        return self.rng.randint(low, high)

    def say(self, pattern: str, **slots: object) -> str:
        """Expands a pattern.

        Raises:
            PatternError: The brackets do not balance.
        """
        text, end = self._expand(pattern, 0, 0)
        if end != len(pattern):
            raise PatternError(f"unbalanced ']' at {end} in {pattern!r}")
        return text.format(**slots) if slots else text

    def name(self) -> str:
        """Returns an invented name of two to three syllables, such as ``Tolira``."""
        heads = "b c d f g h k l m n p r s t v w z br cl dr fl gr kr pl st tr sh th".split()
        vowels = "a e i o u a e i o ai ea oo".split()
        tails = ["", "", "n", "r", "l", "s", "m", "k", "th", "nd"]
        word = "".join(self.pick(heads) + self.pick(vowels) for _ in range(self.number(1, 3)))
        return (word + self.pick(tails)).capitalize()

    def _expand(self, pattern: str, at: int, depth: int) -> tuple[str, int]:
        """Expands from ``at`` to the end of this bracket level; returns text and position."""
        options: list[str] = []
        parts: list[str] = []
        while at < len(pattern):
            char = pattern[at]
            if char == "[":
                inner, at = self._expand(pattern, at + 1, depth + 1)
                if at >= len(pattern):
                    raise PatternError(f"missing ']' in {pattern!r}")
                parts.append(inner)
            elif char == "]":
                break
            elif char == "|" and depth:
                options.append("".join(parts))
                parts = []
            else:
                parts.append(char)
            at += 1
        options.append("".join(parts))
        if depth:
            return self.pick(options), at
        return options[0], at


def user(text: str) -> Message:
    """Returns a user message."""
    return {"role": "user", "content": text}


def assistant(text: str, reasoning: str | None = None) -> Message:
    """Returns an assistant message, with the thought that led to it if there is one."""
    message: Message = {"role": "assistant", "content": text}
    if reasoning is not None:
        message["reasoning_content"] = reasoning
    return message
