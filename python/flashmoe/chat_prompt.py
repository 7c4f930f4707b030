"""A conversation as text and tokens, in which only the template writes control tokens.

Rendered as one text and then encoded, a message that holds the text of a control token, such as
``<|im_end|>``, would end its own turn and begin another. Here such texts are hidden while the
template runs, and become ordinary tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashmoe.errors import TemplateError

if TYPE_CHECKING:
    from flashmoe.chat import ChatTemplate
    from flashmoe.tokenizer import Tokenizer

_PRIVATE = range(0xF0000, 0xFFFFE)  # characters that mean nothing


@dataclass(frozen=True)
class ChatPrompt:
    """What a conversation becomes.

    Attributes:
        text: As the template writes it.
        ids: Its tokens.
    """

    text: str
    ids: list[int]


def chat_prompt(
    tokenizer: Tokenizer,
    messages: Sequence[Any],
    tools: Sequence[Any] | None = None,
    template: ChatTemplate | None = None,
    /,
    **options: Any,
) -> ChatPrompt:
    """Render and encode a conversation.

    Without control tokens in its messages, these are the tokens of the rendered text.

    Args:
        tokenizer: With the template.
        messages: Dictionaries with ``role`` and ``content``.
        tools: Functions the model may call.
        template: Renders; ``None``: the tokenizer's own.
        **options: Further variables of the template.

    Raises:
        TemplateError: There is no template, or it refuses the conversation.
        TokenizerError: The text cannot be encoded.
    """
    from flashmoe.chat import tool_schemas
    from flashmoe.messages import normalise_messages

    template = template or tokenizer.chat_template
    if template is None:
        raise TemplateError(
            "the model has no chat template; use generate() with a plain prompt, or put its "
            "chat_template.jinja beside the tokenizer"
        )
    said: list[Any] = normalise_messages(messages, template)
    schemas = None if tools is None else tool_schemas(tools)
    controls = _control_tokens(tokenizer, [said, schemas])
    if not controls:
        text = template.render(said, tools=schemas, **options)
        return ChatPrompt(text, tokenizer.encode(text))
    marks = _unused_marks([said, schemas])
    hidden = dict(zip(marks, controls, strict=False))
    by_text = {control: mark for mark, control in hidden.items()}
    pattern = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))))

    def hide(text: str) -> str:
        return pattern.sub(lambda found: by_text[found[0]], text)

    text = template.render(_map(said, hide), tools=_map(schemas, hide), **options)
    for mark in hidden:  # a template may print what it is given as JSON of plain ASCII
        text = text.replace(json.dumps(mark)[1:-1], mark)
    ids: list[int] = []
    parts = re.split(f"([{''.join(hidden)}])", text)
    for part in parts:
        if part in hidden:
            ids += tokenizer.encode_plainly(hidden[part])
        elif part:
            ids += tokenizer.encode(part)
    shown = "".join(hidden.get(part, part) for part in parts)
    return ChatPrompt(shown, ids)


def _control_tokens(tokenizer: Tokenizer, values: Any) -> list[str]:
    """The texts of control tokens that there are in messages and tools."""
    found: set[str] = set()

    def look(text: str) -> str:
        found.update(tokenizer.control_texts(text))
        return text

    _map(values, look)
    return sorted(found)


def _unused_marks(values: Any) -> Iterator[str]:
    """Characters that are in no text of messages and tools."""
    used: set[str] = set()

    def look(text: str) -> str:
        used.update(text)
        return text

    _map(values, look)
    return (chr(code) for code in _PRIVATE if chr(code) not in used)


def _map(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with each of its texts changed; keys too, as a tool's schema prints them."""

    def each(value: Any) -> Any:
        if isinstance(value, str):
            return change(value)
        if isinstance(value, Mapping):
            return {
                change(key) if isinstance(key, str) else key: each(item)
                for key, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [each(item) for item in value]
        return value

    try:
        return each(value)
    except RecursionError:
        raise TemplateError("what the template is given is nested too deeply") from None
