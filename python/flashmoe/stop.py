"""Finds stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text through until one of several stop strings is complete.

    Text that could still turn out to be the beginning of a stop string is held
    back, so nothing emitted ever has to be taken back. The result does not
    depend on how the text is cut into pieces: the stop string that is complete
    first wins, and of two that complete together the longer one.

    Attributes:
        matched: The stop string that ended the text, ``None`` before that.
    """

    def __init__(self, stops: Sequence[str] | str = ()) -> None:
        """Prepare the search.

        Args:
            stops: Stop strings, none of them empty. A single string is one stop.

        Raises:
            ValueError: A stop string is empty.
            TypeError: A stop is not a string.
        """
        self._patterns = [_Pattern(stop) for stop in ([stops] if isinstance(stops, str) else stops)]
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next piece of text.

        Args:
            text: Any number of characters.

        Returns:
            The text that is certain to come before every stop string, and whether a
            stop string is complete. After that every push returns ``("", True)``.
        """
        if self.matched is not None:
            return "", True
        buffer = self._held + text
        for position, character in enumerate(text, start=len(self._held) + 1):
            complete = [pattern.text for pattern in self._patterns if pattern.advance(character)]
            if complete:
                self.matched = max(complete, key=len)
                self._held = ""
                return buffer[: position - len(self.matched)], True
        holding = max((pattern.length for pattern in self._patterns), default=0)
        certain = len(buffer) - holding
        self._held = buffer[certain:]
        return buffer[:certain], False

    def flush(self) -> str:
        """End the text.

        Returns:
            What was held back: the beginning of a stop string that never came.
        """
        held, self._held = self._held, ""
        for pattern in self._patterns:
            pattern.length = 0
        return held


class _Pattern:
    """One stop string, and how much of it the text ends with (Knuth-Morris-Pratt).

    Attributes:
        text: The stop string.
        length: Characters of it that the text so far ends with.
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"a stop must be a string, not {type(text).__name__}")
        if not text:
            raise ValueError("a stop string is empty: it would end every answer at once")
        self.text = text
        self.length = 0
        self._shorter = [0] * len(text)  # [i]: next shorter match once text[i] does not follow
        border = 0
        for i in range(1, len(text)):
            self._shorter[i] = border
            while border and text[i] != text[border]:
                border = self._shorter[border]
            border += text[i] == text[border]

    def advance(self, character: str) -> bool:
        """Take one character; tell whether the stop string is now complete."""
        while self.length and character != self.text[self.length]:
            self.length = self._shorter[self.length]
        self.length += character == self.text[self.length]
        return self.length == len(self.text)
