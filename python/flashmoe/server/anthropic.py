"""``POST /v1/messages`` and ``/v1/messages/count_tokens``, as Anthropic's clients speak."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response

from flashmoe.errors import FlashMoEError
from flashmoe.reply import Delta
from flashmoe.sampler import Sampler
from flashmoe.server.endpoint import Call, read_template_options
from flashmoe.server.failures import Failure, failure_of
from flashmoe.server.fields import Fields
from flashmoe.server.openai_chat import MOST_STOPS
from flashmoe.server.service import Ask, Progress, Running, Service
from flashmoe.server.stream import EventStream, data

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


async def messages(call: Call) -> Response:
    """Answer a conversation.

    Args:
        call: The request.
    """
    fields = call.fields
    call.service.check_name(fields.text("model"))
    if not fields.has("max_tokens"):
        raise fields.wrong("max_tokens", "given")
    ask = read_ask(fields)
    stream = fields.flag("stream")
    running = await call.start(lambda: call.service.chat(ask))
    form = _Form(call.service)
    if stream:
        return EventStream(form.stream(running), running, call.service.settings.write_timeout)
    return JSONResponse(await form.whole(call, running))


async def count_tokens(call: Call) -> Response:
    """Tokens of a conversation's prompt.

    Args:
        call: The request.
    """
    from starlette.concurrency import run_in_threadpool

    call.service.check_name(call.fields.text("model"))
    count = await run_in_threadpool(call.service.count, read_ask(call.fields))
    return JSONResponse({"input_tokens": count})


def read_ask(fields: Fields) -> Ask:
    """What a request asks for, in the form that templates know.

    Args:
        fields: Of the request.
    """
    tools = [_tool(tool) for tool in fields.objects("tools")]
    choice, one = _choice(fields, tools)
    options = read_template_options(fields)
    thinking = fields.object("thinking")
    if thinking is not None:
        kind = thinking.choice("type", ("enabled", "disabled", "adaptive"))
        options.setdefault("enable_thinking", kind != "disabled")
    conversation = _system(fields)
    for message in fields.objects("messages"):
        conversation += _message(message)
    if not any(message["role"] != "system" for message in conversation):
        raise fields.wrong("messages", "a list of at least one message")
    return Ask(
        sampler=Sampler(
            temperature=fields.number("temperature", 0, 1),
            top_p=fields.number("top_p", 0, 1),
            top_k=fields.integer("top_k", 0, 1 << 30),
        ),
        max_tokens=fields.integer("max_tokens", 1, 1 << 30),
        stop=fields.texts("stop_sequences", MOST_STOPS),
        messages=conversation,
        tools=[] if choice == "none" else tools,
        tool_choice=choice,
        one_call=one,
        template_options=options,
    )


def _tool(tool: Fields) -> dict[str, Any]:
    if tool.text("type") not in (None, "custom"):
        raise tool.wrong("type", '"custom": there are no tools of the server')
    schema = tool.object("input_schema")
    function = {
        "name": tool.required_text("name"),
        "description": tool.text("description") or "",
        "parameters": dict(schema.values) if schema is not None else {"type": "object"},
    }
    return {"type": "function", "function": function}


def _choice(fields: Fields, tools: Sequence[Mapping[str, Any]]) -> tuple[str, bool]:
    given = fields.object("tool_choice")
    if given is None:
        return "auto", False
    one = given.flag("disable_parallel_tool_use")
    match given.choice("type", ("auto", "any", "tool", "none")):
        case "any":
            if not tools:
                raise given.wrong("type", '"auto" or "none" where there are no tools')
            return "required", one
        case "tool":
            name = given.required_text("name")
            if name not in [tool["function"]["name"] for tool in tools]:
                raise given.wrong("name", "that of one of the tools")
            return name, one
        case "none":
            return "none", one
    return "auto", one


def _system(fields: Fields) -> list[dict[str, Any]]:
    system = fields.any("system")
    if isinstance(system, list):
        system = "\n\n".join(_text_of(part) for part in fields.objects("system"))
    elif system is not None and not isinstance(system, str):
        raise fields.wrong("system", "a string or a list of text blocks")
    return [{"role": "system", "content": system}] if system else []


def _text_of(block: Fields) -> str:
    if block.text("type") != "text":
        raise block.wrong("type", '"text"')
    return block.required_text("text")


def _message(message: Fields) -> list[dict[str, Any]]:
    """One message of theirs as one or several of OpenAI's."""
    role = message.choice("role", ("user", "assistant", "system"))
    if role is None:
        raise message.wrong("role", "given")
    content = message.any("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = message.objects("content")
    if role == "assistant":
        return [_assistant(blocks)]
    found: list[dict[str, Any]] = []
    texts: list[str] = []
    for block in blocks:
        if block.text("type") == "tool_result":
            found.append(_tool_result(block))
        else:
            texts.append(_text_of(block))
    if texts or not found:
        found.append({"role": role, "content": "\n\n".join(texts)})
    return found


def _tool_result(block: Fields) -> dict[str, Any]:
    content = block.any("content")
    if isinstance(content, list):
        content = "\n".join(_text_of(part) for part in block.objects("content"))
    text = content if isinstance(content, str) else ""
    if block.flag("is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": block.required_text("tool_use_id"), "content": text}


def _assistant(blocks: Sequence[Fields]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    texts, thoughts, calls = [], [], []
    for block in blocks:
        match block.text("type"):
            case "thinking":
                thoughts.append(block.required_text("thinking"))
            case "redacted_thinking":
                continue
            case "tool_use":
                given = block.object("input")
                arguments = dict(given.values) if given is not None else {}
                function = {"name": block.required_text("name"), "arguments": arguments}
                call = {"id": block.required_text("id"), "type": "function", "function": function}
                calls.append(call)
            case _:
                texts.append(_text_of(block))
    message["content"] = "".join(texts)
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


class _Form:
    """The shape of one request's answer."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._id = f"msg_{secrets.token_hex(12)}"
        self._open: str | None = None  # the kind of block under way
        self._blocks = 0

    def _usage(self, running: Running) -> dict[str, Any]:
        u = running.usage
        return {
            "input_tokens": u.prompt - u.cached,
            "output_tokens": u.completion,
            "cache_read_input_tokens": u.cached,
            "cache_creation_input_tokens": 0,
        }

    def _message(self, running: Running, content: Sequence[Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._service.name,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(running),
        }

    async def whole(self, call: Call, running: Running) -> dict[str, Any]:
        """The answer in one body."""
        last = await call.whole(running)
        content: list[dict[str, Any]] = []
        if running.reasoning:
            content.append({"type": "thinking", "thinking": running.reasoning, "signature": ""})
        if running.content or not running.tool_calls:
            content.append({"type": "text", "text": running.content})
        for one in running.tool_calls:
            use = {"type": "tool_use", "id": one.id, "name": one.name, "input": one.arguments}
            content.append(use)
        return {**self._message(running, content), **_end(last.reason, last.stop)}

    async def stream(self, running: Running) -> AsyncGenerator[bytes, None]:
        """The answer as it comes."""
        start = {"type": "message_start", "message": self._message(running, [])}
        yield data(start, "message_start")
        try:
            async for update in running:
                if isinstance(update, Progress):
                    yield data({"type": "ping"}, "ping")
                    continue
                for delta in update.deltas:
                    for event in self._delta(delta):
                        yield data(event, event["type"])
                if update.reason is not None:
                    for event in (*self._begin_last(running), *self._close()):
                        yield data(event, event["type"])
                    end = {
                        "type": "message_delta",
                        "delta": _end(update.reason, update.stop),
                        "usage": self._usage(running),
                    }
                    yield data(end, "message_delta")
        except (Failure, FlashMoEError) as error:
            yield data(failure_of(error).anthropic(), "error")
            return
        yield data({"type": "message_stop"}, "message_stop")

    def _begin_last(self, running: Running) -> Sequence[dict[str, Any]]:
        """An answer that says nothing has an empty text."""
        return [] if self._blocks else self._begin("text", {"type": "text", "text": ""})

    def _close(self) -> list[dict[str, Any]]:
        if self._open is None:
            return []
        events: list[dict[str, Any]] = []
        index = self._blocks - 1
        if self._open == "reasoning":
            signature = {"type": "signature_delta", "signature": ""}
            events.append({"type": "content_block_delta", "index": index, "delta": signature})
        self._open = None
        return [*events, {"type": "content_block_stop", "index": index}]

    def _begin(self, kind: str, block: dict[str, Any]) -> list[dict[str, Any]]:
        events = self._close()
        self._open = kind
        self._blocks += 1
        start = {"type": "content_block_start", "index": self._blocks - 1, "content_block": block}
        return [*events, start]

    def _delta(self, delta: Delta) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        match delta.kind:
            case "tool_name":
                block = {"type": "tool_use", "id": delta.id, "name": delta.text, "input": {}}
                return self._begin("tool", block)
            case "tool_arguments":
                inner = {"type": "input_json_delta", "partial_json": delta.text}
            case "reasoning":
                if self._open != "reasoning":
                    block = {"type": "thinking", "thinking": "", "signature": ""}
                    events = self._begin("reasoning", block)
                inner = {"type": "thinking_delta", "thinking": delta.text}
            case _:
                if self._open != "text":
                    events = self._begin("text", {"type": "text", "text": ""})
                inner = {"type": "text_delta", "text": delta.text}
        index = self._blocks - 1
        return [*events, {"type": "content_block_delta", "index": index, "delta": inner}]


def _end(reason: str | None, stop: str | None) -> dict[str, Any]:
    if stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    return {"stop_reason": _REASONS[str(reason)], "stop_sequence": None}
