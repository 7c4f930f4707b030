"""Puts a conversation from an OpenAI-style client into a form that its template can render.

Clients send argument objects as JSON text, content as lists of parts, ``developer``
messages and system messages anywhere. Some templates render these forms, some fail on
them, and some drop them without a word. Each form is therefore tried on the template
itself: what it renders faithfully stays untouched, so the prompt is the one that
transformers would make; only what it cannot render is rewritten.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flashmoe.errors import TemplateError
from flashmoe.plain_data import plain_value

if TYPE_CHECKING:
    from flashmoe.chat import ChatTemplate

Message = dict[str, Any]

_MARK = "qvzjx"  # a text that no template contains


def normalise_messages(messages: Sequence[Any], template: ChatTemplate) -> list[Message]:
    """Rewrite what the template cannot render; leave everything else as it is.

    * Lists of text parts become one text.
    * ``developer`` messages become system messages.
    * System messages become one, at the beginning, joined by blank lines.
    * Arguments of tool calls given as JSON text become objects.
    * Absent content becomes the empty text.

    Args:
        messages: Messages as dictionaries, dataclasses or pydantic models; they are not
            modified.
        template: The template that is going to render them.

    Returns:
        New messages.

    Raises:
        TemplateError: A message has no role, holds an image or another part that is
            not text, or its arguments are not a JSON object.
    """
    conversation = [_checked(index, plain_value(message)) for index, message in enumerate(messages)]
    for is_needed, renders_it, rewrite in _REPAIRS:
        if is_needed(conversation) and not renders_it(template):
            conversation = rewrite(conversation)
    return conversation


def _checked(index: int, message: Any) -> Message:
    if not isinstance(message, dict):
        raise TemplateError(f"message {index} is not a dictionary with role and content")
    if not isinstance(message.get("role"), str):
        raise TemplateError(f"message {index} has no role")
    if not isinstance(message.get("tool_calls") or [], (list, tuple)):
        raise TemplateError(f"message {index}: tool_calls is not a list")
    content = message.get("content")
    for part in content if isinstance(content, (list, tuple)) else ():
        if _part_text(part) is None:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise TemplateError(
                f"message {index} holds a part of type {kind!r}; this model reads text only"
            )
    return message


def _part_text(part: Any) -> str | None:
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        text = part.get("text")
        return text if isinstance(text, str) else None
    return None


# Lists of parts ------------------------------------------------------------------------


def _has_parts(messages: list[Message]) -> bool:
    return any(isinstance(message.get("content"), (list, tuple)) for message in messages)


def _renders_parts(template: ChatTemplate) -> bool:
    texts = [
        {"role": role, "content": f"{role} {_MARK}"}
        for role in ("system", "user", "assistant", "user")
    ]
    parts = [
        {**message, "content": [{"type": "text", "text": message["content"]}]} for message in texts
    ]
    return _render_alike(template, parts, texts)


def _join_parts(messages: list[Message]) -> list[Message]:
    return [{**m, "content": _content_text(m)} if "content" in m else m for m in messages]


def _content_text(message: Message) -> Any:
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        return "".join(_part_text(part) or "" for part in content)
    return content


# Roles ---------------------------------------------------------------------------------


def _has_developer(messages: list[Message]) -> bool:
    return any(message["role"] == "developer" for message in messages)


def _renders_developer(template: ChatTemplate) -> bool:
    return _shows_mark(
        template, [{"role": "developer", "content": _MARK}, {"role": "user", "content": "a"}]
    )


def _rename_developer(messages: list[Message]) -> list[Message]:
    return [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]


def _has_late_system(messages: list[Message]) -> bool:
    return any(message["role"] == "system" for message in messages[1:])


def _renders_late_system(template: ChatTemplate) -> bool:
    early = [{"role": "system", "content": "a"}, {"role": "system", "content": _MARK}]
    late = [{"role": "user", "content": "b"}, {"role": "system", "content": _MARK}]
    user = [{"role": "user", "content": "c"}]
    return _shows_mark(template, early + user) and _shows_mark(template, early[:1] + late + user)


def _merge_system(messages: list[Message]) -> list[Message]:
    texts = [_content_text(message) or "" for message in messages if message["role"] == "system"]
    for text in texts:
        if not isinstance(text, str):
            raise TemplateError(
                f"the content of a system message is {type(text).__name__}, not a text"
            )
    others = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(filter(None, texts))}, *others]


# Tool calls ----------------------------------------------------------------------------


def _has_text_arguments(messages: list[Message]) -> bool:
    return any(
        isinstance(function.get("arguments"), str)
        for message in messages
        for function in map(_called_function, message.get("tool_calls") or ())
    )


def _called_function(call: Any) -> Mapping[str, Any]:
    """The part of a tool call with name and arguments; some clients send only this part."""
    if not isinstance(call, Mapping):
        raise TemplateError(f"a tool call is {type(call).__name__}, not a dictionary")
    function = call.get("function", call)
    if not isinstance(function, Mapping):
        raise TemplateError(f"the function of a tool call is {type(function).__name__}")
    return function


def _renders_text_arguments(template: ChatTemplate) -> bool:
    arguments = {_MARK: [1, "a"], "b": None}
    return _render_alike(
        template, _tool_conversation(json.dumps(arguments)), _tool_conversation(arguments)
    )


def _parse_arguments(messages: list[Message]) -> list[Message]:
    return [
        {**message, "tool_calls": [_parse_call(index, call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for index, message in enumerate(messages)
    ]


def _parse_call(index: int, call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = _called_function(call)
    text = function.get("arguments")
    if not isinstance(text, str):
        return call
    where = f"message {index}: the arguments of the call to {function.get('name')!r}"
    try:
        arguments = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise TemplateError(f"{where} are not valid JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise TemplateError(f"{where} are {type(arguments).__name__}, not a JSON object")
    parsed = {**function, "arguments": arguments}
    return {**call, "function": parsed} if "function" in call else parsed


# Absent content ------------------------------------------------------------------------


def _lacks_content(messages: list[Message]) -> bool:
    return any(message.get("content") is None for message in messages)


def _renders_absent_content(template: ChatTemplate) -> bool:
    present = _tool_conversation({"a": 1})
    absent = [{key: value for key, value in message.items() if value != ""} for message in present]
    return _render_alike(template, absent, present)


def _fill_content(messages: list[Message]) -> list[Message]:
    return [{**m, "content": ""} if m.get("content") is None else m for m in messages]


# Trying a template ---------------------------------------------------------------------


def _tool_conversation(arguments: object) -> list[Message]:
    call = {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_0", "name": "f", "content": "b"},
    ]


def _render_alike(template: ChatTemplate, form: list[Message], plain: list[Message]) -> bool:
    """Whether a template renders a form, and as it renders the plain form of the same."""
    try:
        return template.render(form) == template.render(plain)
    except TemplateError:
        return False


def _shows_mark(template: ChatTemplate, messages: list[Message]) -> bool:
    try:
        return _MARK in template.render(messages)
    except TemplateError:
        return False


_REPAIRS: tuple[
    tuple[
        Callable[[list[Message]], bool],
        Callable[[ChatTemplate], bool],
        Callable[[list[Message]], list[Message]],
    ],
    ...,
] = (
    (_has_parts, _renders_parts, _join_parts),
    (_has_developer, _renders_developer, _rename_developer),
    (_has_late_system, _renders_late_system, _merge_system),
    (_has_text_arguments, _renders_text_arguments, _parse_arguments),
    (_lacks_content, _renders_absent_content, _fill_content),
)
