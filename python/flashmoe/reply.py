"""An answer's parts: what the model thought, what it says, and which tools it calls."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flashmoe.tool_calls import parse_call, tool_style

__all__ = ["Delta", "ReplyParser", "ToolCall", "starts_in_reasoning", "tool_calls_of", "tool_style"]

_THINK, _THOUGHT, _CALL, _CALLED = "<think>", "</think>", "<tool_call>", "</tool_call>"
_FUNCTION = "<function="
_MOST_TRIES = 16
"""Ends of a call that are tried, for an argument may hold the end's text."""


@dataclass(frozen=True)
class ToolCall:
    """A tool that the model wants to be called.

    Attributes:
        id: Tells calls apart.
        name: Of the tool.
        arguments: By name.
    """

    id: str
    name: str
    arguments: dict[str, Any]

    @property
    def arguments_json(self) -> str:
        """The arguments as OpenAI's API has them."""
        return json.dumps(self.arguments, ensure_ascii=False)

    def as_message(self) -> dict[str, Any]:
        """The call as it stands in an assistant's message."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True)
class Delta:
    """What a token adds to an answer.

    Attributes:
        kind: Of the text. ``"tool_name"`` is the first of a call, ``"tool_arguments"`` is JSON.
        text: To be joined with that of the same kind, and of the same call.
        index: Which call.
        id: Of the call.
    """

    kind: Literal["reasoning", "content", "tool_name", "tool_arguments"]
    text: str
    index: int = 0
    id: str = ""


def tool_calls_of(deltas: Sequence[Delta]) -> list[ToolCall]:
    """The calls that deltas tell.

    Args:
        deltas: All of an answer, in order.
    """
    names = [delta for delta in deltas if delta.kind == "tool_name"]
    arguments = [""] * len(names)
    for delta in deltas:
        if delta.kind == "tool_arguments":
            arguments[delta.index] += delta.text
    return [
        ToolCall(name.id, name.text, json.loads(text))
        for name, text in zip(names, arguments, strict=True)
    ]


def starts_in_reasoning(prompt: str) -> bool:
    """Whether an answer to this prompt begins with what the model thinks.

    Args:
        prompt: As the template renders it.
    """
    return prompt.rstrip().endswith(_THINK)


class ReplyParser:
    """Takes an answer's text as it comes and tells its parts.

    What comes out, joined by kind, does not depend on how the text is cut. Text that is no call
    although it begins like one comes back as content.

    Attributes:
        in_reasoning: The model is thinking.
        reasoning: What it thought so far.
        content: What it said so far.
        tool_calls: Its calls so far.
    """

    def __init__(
        self,
        *,
        style: str | None,
        in_reasoning: bool,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Begin an answer.

        Args:
            style: How calls are written, of :func:`tool_style`; ``None``: none are looked for.
            in_reasoning: Of :func:`starts_in_reasoning`.
            tools: That were offered.
        """
        self.in_reasoning = in_reasoning
        self.reasoning = self.content = ""
        self.tool_calls: list[ToolCall] = []
        self._style = style
        self._tools = tools
        self._held = ""
        self._searched = 0  # of what is held, no end of a call was found before this
        self._tries: list[int] = []  # ends of the call under way that were none
        self._in_call = False
        self._space = ""  # before the call under way
        self._fresh = not in_reasoning  # nothing was said yet: it may begin to think
        self._skip = in_reasoning  # spaces before the next part belong to none

    def push(self, text: str) -> list[Delta]:
        """Take more text.

        Args:
            text: Any number of characters.
        """
        self._held += text
        deltas: list[Delta] = []
        while self._step(deltas, last=False):
            pass
        return deltas

    def finish(self) -> list[Delta]:
        """End the answer; what was held back. May be called twice."""
        deltas: list[Delta] = []
        while self._step(deltas, last=True):
            pass
        return deltas

    def _step(self, deltas: list[Delta], *, last: bool) -> bool:
        """Take one part off what is held; whether there may be more."""
        if self._skip:
            self._held = self._held.lstrip()
            self._skip = not self._held
        if not self._held and not (self._in_call and last):
            return False
        if self._in_call:
            return self._take_call(deltas, last)
        if self.in_reasoning:
            return self._take_until((_THOUGHT,), "reasoning", deltas, last)
        if self._fresh:
            start = self._held.lstrip()
            if start.startswith(_THINK):
                self._held = start[len(_THINK) :]
                self.in_reasoning, self._fresh, self._skip = True, False, True
                return True
            if _THINK.startswith(start) and not last:
                return False
            self._fresh = False
        tags = (_CALL, _FUNCTION) if self._style else ()
        return self._take_until(tags, "content", deltas, last)

    def _take_until(
        self,
        tags: tuple[str, ...],
        kind: Literal["reasoning", "content"],
        deltas: list[Delta],
        last: bool,
    ) -> bool:
        """Tell what comes before the first tag."""
        found = [(at, tag) for tag in tags if (at := self._held.find(tag)) >= 0]
        if found:
            at, tag = min(found)
            text = self._held[:at].rstrip()
            self._tell(kind, text, deltas)
            self._space = self._held[len(text) : at]
            self._held = self._held[at + (len(tag) if tag != _FUNCTION else 0) :]
            self._in_call = kind == "content"
            self._searched, self._tries = 0, []
            self.in_reasoning, self._skip = False, kind == "reasoning"
            return True
        certain = len(self._held) if last else self._certain(tags)
        text = self._held[:certain]
        if last and kind == "reasoning":
            text = text.rstrip()
        self._tell(kind, text, deltas)
        self._held = self._held[certain:] if not last else ""
        return False

    def _certain(self, tags: tuple[str, ...]) -> int:
        """How much of what is held is before every tag, and not space that one may follow."""
        if not tags:
            return len(self._held)
        most = len(self._held)
        for tag in tags:
            for n in range(min(len(tag) - 1, len(self._held)), 0, -1):
                if self._held.endswith(tag[:n]):
                    most = min(most, len(self._held) - n)
                    break
        return len(self._held[:most].rstrip())

    def _tell(self, kind: Literal["reasoning", "content"], text: str, deltas: list[Delta]) -> None:
        if not text:
            return
        deltas.append(Delta(kind, text))
        if kind == "reasoning":
            self.reasoning += text
        else:
            self.content += text

    def _take_call(self, deltas: list[Delta], last: bool) -> bool:
        """Tell the call that is held, once its end is there."""
        while len(self._tries) < _MOST_TRIES:
            end = self._held.find(_CALLED, self._searched)
            if end < 0:
                self._searched = max(self._searched, len(self._held) - len(_CALLED) + 1)
                break
            self._searched = end + len(_CALLED)
            if self._call(self._held[:end], deltas, whole=True):
                self._after_call(self._held[self._searched :])
                return True
            self._tries.append(end)
        if not last and len(self._tries) < _MOST_TRIES:
            return False
        return self._end_badly(deltas)

    def _end_badly(self, deltas: list[Delta]) -> bool:
        """A call that lacks its end, or nothing that is a call: then it is content."""
        end = self._tries[0] if self._tries else len(self._held)
        rest = self._held[end + len(_CALLED) :]
        if self._call(self._held[:end], deltas, whole=False):
            self._after_call(rest)
            return True
        opening = self._space + ("" if self._held.startswith(_FUNCTION) else _CALL)
        closing = _CALLED if self._tries else ""
        self._tell("content", opening + self._held[:end] + closing, deltas)
        self._held, self._in_call = rest, False
        return True

    def _after_call(self, rest: str) -> None:
        self._held, self._in_call, self._skip = rest, False, True

    def _call(self, text: str, deltas: list[Delta], *, whole: bool) -> bool:
        parsed = parse_call(text, self._style or "hermes", self._tools, whole=whole)
        if parsed is None:
            return False
        call = ToolCall(f"call_{secrets.token_hex(12)}", *parsed)
        index = len(self.tool_calls)
        self.tool_calls.append(call)
        deltas.append(Delta("tool_name", call.name, index, call.id))
        deltas.append(Delta("tool_arguments", call.arguments_json, index, call.id))
        return True
