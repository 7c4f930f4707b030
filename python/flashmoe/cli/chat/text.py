"""Text of a model on its way to a terminal."""

from __future__ import annotations

import re

# Control characters but new line and tab: a terminal obeys them. Directional overrides: they make
# a text look like another.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """A text without what a terminal would obey instead of show.

    Args:
        text: Anything.
    """
    return _UNSAFE.sub("", text)


def finished_blocks(text: str) -> int:
    """How much of a Markdown text will not look different whatever follows.

    Args:
        text: The text so far.

    Returns:
        Characters up to the last empty line outside of a fence.
    """
    end, at, fence = 0, 0, ""
    for line in text.splitlines(keepends=True):
        at += len(line)
        mark = line.lstrip()[:3]
        if fence:
            fence = "" if mark == fence else fence
        elif mark in ("```", "~~~"):
            fence = mark
        elif not line.strip() and line.endswith("\n"):
            end = at
    return end
