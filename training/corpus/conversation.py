"""Puts exchanges together into conversations and documents, and holds some wordings out."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from corpus.about import about
from corpus.followup import followup
from corpus.knowledge import knowledge
from corpus.lists import lists
from corpus.numbers import numbers
from corpus.prose import page, story
from corpus.smalltalk import smalltalk, unknown
from corpus.tools import Tool, offer_tools, tool_turn
from corpus.voice import Exchange, Message, Voice
from corpus.writing import writing

HELD_OUT_SHARE = 12
SHARES: list[tuple[Callable[[Voice], Exchange], float]] = [
    (about, 0.22),
    (knowledge, 0.23),
    (smalltalk, 0.11),
    (numbers, 0.14),
    (story, 0.07),
    (unknown, 0.05),
    (lists, 0.08),
    (writing, 0.05),
    (followup, 0.05),
]
SYSTEMS = [
    "You are a helpful assistant.",
    "You are the flashmoe demo model.",
    "You are a friendly assistant.",
    "Be brief.",
    "Answer in one or two sentences.",
    "You are a small language model called flashmoe demo.",
    "Help the user.",
    "You are a kind and helpful assistant.",
    "You are an assistant that can use tools.",
    "Today is a good day. Answer the questions of the user.",
]


@dataclass
class Document:
    """One training document: a conversation, or plain text when ``messages`` is empty."""

    messages: list[Message] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    thinking: bool = False
    text: str = ""

    def held_out(self) -> bool:
        """Returns whether the document belongs to the validation set.

        One wording in ``HELD_OUT_SHARE`` is reserved: a conversation in which the user says it is
        never trained on. Short wordings such as "hello" are always trained.
        """
        said = [m["content"] for m in self.messages if m["role"] == "user"] or [self.text[:60]]
        return any(
            len(s) >= 20 and zlib.crc32(s.lower().strip(" .!?").encode()) % HELD_OUT_SHARE == 0
            for s in said
        )


def roughen(v: Voice, message: Message) -> Message:
    """Returns a user message as people really type: sometimes without capitals or full stop."""
    if message["role"] != "user" or "\n" in message["content"]:
        return message
    text: str = message["content"]
    if v.chance(0.12):
        text = text.lower()
    if v.chance(0.12):
        text = text.rstrip(".?!")
    if v.chance(0.04):
        text = v.pick(["Please: ", "So, ", "And ", "Well, ", "OK, ", "Hi, "]) + text
    return message | {"content": text or message["content"]}


def exchange(v: Voice) -> list[Message]:
    """Returns one exchange without tools."""
    roll = v.rng.random()
    for writer, share in SHARES:
        if roll < share:
            return writer(v)
        roll -= share
    return about(v)


def plain_chat(v: Voice) -> Document:
    """Returns a conversation without tools."""
    messages = [m for _ in range(v.pick([1, 1, 1, 2, 2, 3, 4, 6])) for m in exchange(v)]
    return finish(v, messages, [])


def tool_chat(v: Voice) -> Document:
    """Returns a conversation with tools, some turns of which do not need them."""
    offers = offer_tools(v)
    messages: list[Message] = []
    for _ in range(v.pick([1, 1, 1, 2, 3])):
        messages += tool_turn(v, offers) if v.chance(0.8) else small_exchange(v)
    return finish(v, messages, [o.schema for o in offers])


def small_exchange(v: Voice) -> list[Message]:
    """Returns an exchange that no tool is needed for."""
    return v.pick([smalltalk, knowledge, about, lists, followup])(v)


def finish(v: Voice, messages: list[Message], tools: list[Tool]) -> Document:
    """Adds a system turn and rough edges, and decides whether the assistant thinks aloud."""
    messages = [roughen(v, m) for m in messages]
    thinking = v.chance(0.15)
    if not thinking:
        messages = [{k: x for k, x in m.items() if k != "reasoning_content"} for m in messages]
    if v.chance(0.35):
        messages.insert(0, {"role": "system", "content": v.pick(SYSTEMS)})
    return Document(messages, tools, thinking)


def document(seed: int | str) -> Document:
    """Returns the document of one seed: the same seed always gives the same document."""
    v = Voice(seed)
    roll = v.rng.random()
    if roll < 0.12:
        return Document(text=page(v))
    return tool_chat(v) if roll < 0.45 else plain_chat(v)


def call_errors(made: dict[str, Any], tools: list[Tool]) -> list[str]:
    """Returns what is wrong with a tool call under the schemas of its conversation."""
    schemas = {t["function"]["name"]: t["function"]["parameters"] for t in tools}
    if made["name"] not in schemas:
        return [f"unknown tool {made['name']}"]
    schema = schemas[made["name"]]
    wrong = [f"missing {key}" for key in schema.get("required", []) if key not in made["arguments"]]
    for key, value in made["arguments"].items():
        kinds = {"string": str, "integer": int, "number": (int, float)}
        if key not in schema["properties"]:
            wrong.append(f"undeclared {key}")
        elif not isinstance(value, kinds[schema["properties"][key]["type"]]):  # type: ignore[arg-type]
            wrong.append(f"{key} has the wrong type")
    return wrong
