"""Writes what ``flashmoe eval demo`` measures on: held-out text, and turns that need a tool."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from corpus.conversation import document
from rendering import render

BETWEEN = "<|endoftext|>"
TEXT_BYTES = 20_000
PROMPTS = 60


def text(nbytes: int) -> str:
    """Returns held-out documents as the model sees them, up to ``nbytes`` characters or more."""
    parts: list[str] = []
    for seed in count():
        drawn = document(f"validation-{seed}")
        if drawn.held_out():
            parts.append(render(drawn) + BETWEEN)
        if sum(map(len, parts)) >= nbytes:
            return "".join(parts)
    raise AssertionError("count() has no end")


def tool_turns() -> Iterator[dict[str, Any]]:
    """Yields held-out turns that need a tool, in the order in which ``talk.py`` asks them."""
    for seed in count():
        drawn = document(f"validation-{seed}")
        at = next((i for i, m in enumerate(drawn.messages) if m.get("tool_calls")), None)
        if at is None or not drawn.held_out() or drawn.thinking:
            continue
        yield {
            "messages": drawn.messages[:at],
            "tools": drawn.tools,
            "expected": [call["function"] for call in drawn.messages[at]["tool_calls"]],
        }


def main() -> None:
    """Writes ``text.txt`` and ``prompts.jsonl``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text-bytes", type=int, default=TEXT_BYTES)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "text.txt").write_text(text(options.text_bytes), encoding="utf-8")
    lines = [
        json.dumps(turn, ensure_ascii=False, separators=(",", ":")) + "\n"
        for turn, _ in zip(tool_turns(), range(options.prompts), strict=False)
    ]
    (options.folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
