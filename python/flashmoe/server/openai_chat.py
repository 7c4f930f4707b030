"""``POST /v1/chat/completions``."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response

from flashmoe.errors import FlashMoEError
from flashmoe.reply import Delta
from flashmoe.server.endpoint import Call, read_sampler, read_template_options
from flashmoe.server.failures import Failure, failure_of
from flashmoe.server.fields import Fields
from flashmoe.server.service import Ask, Piece, Progress, Running, Service
from flashmoe.server.stream import EventStream, data, sign_of_life

MOST_STOPS = 16
MOST_TOP = 20


async def chat_completions(call: Call) -> Response:
    """Answer a conversation.

    Args:
        call: The request.
    """
    fields = call.fields
    call.service.check_name(fields.text("model"))
    ask = read_ask(fields)
    logprobs = fields.flag("logprobs")
    stream = fields.flag("stream")
    options = fields.object("stream_options")
    usage = options is not None and options.flag("include_usage")
    running = await call.start(lambda: call.service.chat(ask))
    form = _Form(call.service, logprobs)
    if stream:
        events = form.stream(running, usage)
        return EventStream(events, running, call.service.settings.write_timeout)
    return JSONResponse(await form.whole(call, running))


def read_ask(fields: Fields) -> Ask:
    """What a chat request asks for.

    Args:
        fields: Of the request.

    Raises:
        Failure: A field is not what it must be, or wants what there is not.
    """
    if (fields.integer("n", 1, 1 << 20) or 1) != 1:
        raise fields.wrong("n", "1: ask several times for several answers")
    for name in ("functions", "function_call", "audio"):
        if fields.has(name):
            raise Failure(400, f"{name} is not supported; use tools and text", param=name)
    messages = fields.objects("messages")
    if not messages:
        raise fields.wrong("messages", "a list of at least one message")
    tools = [tool.values for tool in fields.objects("tools")]
    choice = read_tool_choice(fields, tools)
    longest = fields.integer("max_completion_tokens", 1, 1 << 30)
    top = fields.integer("top_logprobs", 0, MOST_TOP) or 0
    if top and not fields.flag("logprobs"):
        raise Failure(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    return Ask(
        sampler=read_sampler(fields),
        max_tokens=longest or fields.integer("max_tokens", 1, 1 << 30),
        stop=fields.texts("stop", MOST_STOPS),
        top_logprobs=top,
        messages=[read_message(message) for message in messages],
        tools=[] if choice == "none" else tools,
        tool_choice=choice,
        one_call=not fields.flag("parallel_tool_calls", True),
        response_format=_response_format(fields),
        template_options=read_template_options(fields),
    )


def read_message(message: Fields) -> Mapping[str, Any]:
    """One message, checked as far as templates do not.

    Args:
        message: Of the request.
    """
    message.required_text("role")
    content = message.any("content")
    if isinstance(content, list):
        for part in message.objects("content"):
            if part.any("type") not in ("text", "refusal"):
                kind = part.any("type")
                raise part.wrong("type", f'"text": this model reads no {kind or "such part"}')
    elif content is not None and not isinstance(content, str):
        raise message.wrong("content", "a string or a list of parts")
    for one in message.objects("tool_calls"):
        function = one.object("function")
        if function is None:
            raise one.wrong("function", "given")
        function.required_text("name")
    return message.values


def read_tool_choice(fields: Fields, tools: Sequence[Mapping[str, Any]]) -> str:
    """``"none"``, ``"auto"``, ``"required"`` or a tool's name.

    Args:
        fields: Of the request.
        tools: That it has.
    """
    names = []
    for index, tool in enumerate(tools):
        function = Fields(tool, f"tools[{index}]").object("function")
        if tool.get("type", "function") != "function" or function is None:
            raise fields.wrong(f"tools[{index}]", "a function")
        names.append(function.required_text("name"))
        function.object("parameters")
    choice = fields.any("tool_choice")
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise fields.wrong("tool_choice", '"none", "auto", "required" or a function')
        if choice == "required" and not names:
            raise fields.wrong("tool_choice", '"none" or "auto" where there are no tools')
        return choice
    chosen = fields.object("tool_choice")
    function = chosen.object("function") if chosen is not None else None
    name = function.text("name") if function is not None else None
    if name not in names:
        raise fields.wrong("tool_choice", "the name of one of the tools")
    return str(name)


def _response_format(fields: Fields) -> Mapping[str, Any] | None:
    given = fields.object("response_format")
    if given is None or given.text("type") == "text":
        return None
    return given.values


def usage_of(running: Running) -> dict[str, Any]:
    """Tokens, as OpenAI counts them.

    Args:
        running: The request.
    """
    u = running.usage
    return {
        "prompt_tokens": u.prompt,
        "completion_tokens": u.completion,
        "total_tokens": u.prompt + u.completion,
        "prompt_tokens_details": {"cached_tokens": u.cached},
        "completion_tokens_details": {"reasoning_tokens": u.reasoning},
    }


def timings_of(running: Running) -> dict[str, Any]:
    """What an answer cost, beside OpenAI's fields.

    Args:
        running: The request.
    """
    s = running.stats
    return {
        "time_to_first_token": s.time_to_first_token,
        "prompt_tokens_per_second": s.prefill_tokens_per_second,
        "tokens_per_second": s.decode_tokens_per_second,
        "expert_hit_rate": s.expert_hit_rate,
        "bytes_read": s.expert_bytes_read,
    }


class _Form:
    """The shape of one request's answer."""

    def __init__(self, service: Service, logprobs: bool) -> None:
        self._service = service
        self._logprobs = logprobs
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._pieces: list[dict[str, Any]] = []

    def _body(self, kind: str, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._service.name,
            "choices": choices,
            **more,
        }

    def _token(self, piece: Piece) -> dict[str, Any]:
        """The log probabilities of a token."""
        decode = self._service.model.tokenizer.decode

        def one(token: int, logprob: float) -> dict[str, Any]:
            text = decode([token], skip_special_tokens=False)
            return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}

        chunk = piece.chunk
        likeliest = [one(token, logprob) for token, logprob in chunk.top_logprobs]
        return {**one(chunk.token_id, chunk.logprob), "top_logprobs": likeliest}

    async def whole(self, call: Call, running: Running) -> dict[str, Any]:
        """The answer in one body."""
        tokens: list[dict[str, Any]] = []
        listen = (lambda piece: tokens.append(self._token(piece))) if self._logprobs else None
        last = await call.whole(running, listen)
        message: dict[str, Any] = {"role": "assistant", "content": running.content}
        if running.reasoning:
            message["reasoning_content"] = running.reasoning
        if running.tool_calls:
            message["content"] = running.content or None
            message["tool_calls"] = [
                {
                    "id": one.id,
                    "type": "function",
                    "function": {"name": one.name, "arguments": one.arguments_json},
                }
                for one in running.tool_calls
            ]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": {"content": tokens, "refusal": None} if self._logprobs else None,
            "finish_reason": last.reason,
        }
        more = {"usage": usage_of(running), "timings": timings_of(running)}
        return self._body("chat.completion", [choice], **more)

    def _chunk(
        self, delta: dict[str, Any], piece: Piece | None = None, reason: str | None = None
    ) -> bytes:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": reason}
        logprobs = self._logprobs and piece is not None
        choice["logprobs"] = {"content": [self._token(piece)]} if logprobs and piece else None
        return data(self._body("chat.completion.chunk", [choice]))

    async def stream(self, running: Running, usage: bool) -> AsyncGenerator[bytes, None]:
        """The answer as it comes."""
        yield self._chunk({"role": "assistant", "content": ""})
        try:
            async for update in running:
                if isinstance(update, Progress):
                    yield sign_of_life(update)
                    continue
                deltas = [_delta(delta) for delta in update.deltas]
                if not deltas and self._logprobs:
                    deltas = [{"content": ""}]
                for index, delta in enumerate(deltas):
                    yield self._chunk(delta, update if index == 0 else None)
                if update.reason is not None:
                    yield self._chunk({}, None, update.reason)
        except (Failure, FlashMoEError) as error:
            yield data(failure_of(error).openai())
            return
        if usage:
            more = {"usage": usage_of(running), "timings": timings_of(running)}
            yield data(self._body("chat.completion.chunk", [], **more))
        yield b"data: [DONE]\n\n"


def _delta(delta: Delta) -> dict[str, Any]:
    match delta.kind:
        case "content":
            return {"content": delta.text}
        case "reasoning":
            return {"reasoning_content": delta.text}
        case "tool_name":
            function = {"name": delta.text, "arguments": ""}
            call = {"index": delta.index, "id": delta.id, "type": "function", "function": function}
            return {"tool_calls": [call]}
        case _:
            function = {"arguments": delta.text}
            return {"tool_calls": [{"index": delta.index, "function": function}]}
