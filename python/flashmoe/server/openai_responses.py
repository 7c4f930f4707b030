"""``POST /v1/responses``: OpenAI's newer interface, items in and items out."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response

from flashmoe.errors import FlashMoEError
from flashmoe.reply import Delta
from flashmoe.sampler import Sampler
from flashmoe.server.endpoint import Call, read_template_options
from flashmoe.server.failures import Failure, failure_of
from flashmoe.server.fields import Fields
from flashmoe.server.openai_chat import timings_of
from flashmoe.server.service import Ask, Progress, Running, Service
from flashmoe.server.stream import EventStream, data, sign_of_life

KEPT = 256
"""Conversations that ``previous_response_id`` may go on with."""


class Responses:
    """The interface, and the conversations that it remembers."""

    def __init__(self, service: Service) -> None:
        """Begin with none.

        Args:
            service: Answers.
        """
        self._service = service
        self._kept: OrderedDict[str, Sequence[Mapping[str, Any]]] = OrderedDict()

    async def create(self, call: Call) -> Response:
        """Answer a conversation.

        Args:
            call: The request.
        """
        fields = call.fields
        service = self._service
        service.check_name(fields.text("model"))
        if fields.flag("background"):
            raise Failure(400, "background is not supported; use stream", param="background")
        conversation = [*self._earlier(fields), *_read_input(fields)]
        instructions = fields.text("instructions")
        system = [{"role": "system", "content": instructions}] if instructions else []
        ask = _read_ask(fields, [*system, *conversation])
        running = await call.start(lambda: service.chat(ask))
        form = _Form(service, fields)
        keep = fields.flag("store", True)
        if fields.flag("stream"):

            async def events() -> AsyncGenerator[bytes, None]:
                async for event in form.stream(running):
                    yield event
                self._keep(keep, form.id, conversation, running)

            return EventStream(events(), running, service.settings.write_timeout)
        last = await call.whole(running)
        self._keep(keep, form.id, conversation, running)
        return JSONResponse(form.body(running, last.reason))

    def _earlier(self, fields: Fields) -> Sequence[Mapping[str, Any]]:
        name = fields.text("previous_response_id")
        if name is None:
            return []
        if name not in self._kept:
            raise Failure(
                404,
                f"there is no response {name!r} any more; send the whole conversation as input",
                param="previous_response_id",
            )
        return self._kept[name]

    def _keep(
        self, keep: bool, name: str, conversation: Sequence[Mapping[str, Any]], running: Running
    ) -> None:
        if not keep:
            return
        answer: dict[str, Any] = {"role": "assistant", "content": running.content}
        if running.reasoning:
            answer["reasoning_content"] = running.reasoning
        if running.tool_calls:
            answer["tool_calls"] = [one.as_message() for one in running.tool_calls]
        self._kept[name] = [*conversation, answer]
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)


def _read_ask(fields: Fields, conversation: Sequence[Mapping[str, Any]]) -> Ask:
    tools = [_tool(tool) for tool in fields.objects("tools")]
    options = read_template_options(fields)
    reasoning = fields.object("reasoning")
    effort = reasoning.text("effort") if reasoning is not None else None
    if effort is not None:
        options.update(read_template_options(Fields({"reasoning_effort": effort})))
    choice = _choice(fields, tools)
    return Ask(
        sampler=Sampler(
            temperature=fields.number("temperature", 0, 2),
            top_p=fields.number("top_p", 0, 1),
        ),
        max_tokens=fields.integer("max_output_tokens", 1, 1 << 30),
        messages=conversation,
        tools=[] if choice == "none" else tools,
        tool_choice=choice,
        one_call=not fields.flag("parallel_tool_calls", True),
        response_format=_format(fields),
        template_options=options,
    )


def _tool(tool: Fields) -> dict[str, Any]:
    if tool.text("type") != "function":
        raise tool.wrong("type", '"function": there are no tools of the server')
    schema = tool.object("parameters")
    function = {
        "name": tool.required_text("name"),
        "description": tool.text("description") or "",
        "parameters": dict(schema.values) if schema is not None else {"type": "object"},
    }
    return {"type": "function", "function": function}


def _choice(fields: Fields, tools: Sequence[Mapping[str, Any]]) -> str:
    choice = fields.any("tool_choice")
    if isinstance(choice, dict):
        choice = choice.get("name")
        if choice not in [tool["function"]["name"] for tool in tools]:
            raise fields.wrong("tool_choice", "the name of one of the tools")
        return str(choice)
    if choice not in (None, "none", "auto", "required"):
        raise fields.wrong("tool_choice", '"none", "auto", "required" or a function')
    if choice == "required" and not tools:
        raise fields.wrong("tool_choice", '"none" or "auto" where there are no tools')
    return str(choice or "auto")


def _format(fields: Fields) -> Mapping[str, Any] | None:
    text = fields.object("text")
    given = text.object("format") if text is not None else None
    if given is None or given.text("type") == "text":
        return None
    if given.text("type") == "json_schema":
        schema = {k: v for k, v in given.values.items() if k != "type"}
        return {"type": "json_schema", "json_schema": schema}
    return given.values


def _read_input(fields: Fields) -> list[dict[str, Any]]:
    """Items as messages; what belongs to one answer of the model becomes one message."""
    given = fields.any("input")
    if isinstance(given, str) and given:
        return [{"role": "user", "content": given}]
    messages: list[dict[str, Any]] = []
    for item in fields.objects("input"):
        kind = item.text("type") or "message"
        if kind == "function_call_output":
            output = item.any("output")
            text = output if isinstance(output, str) else _parts(item, "output")
            call_id = item.required_text("call_id")
            messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
        elif kind == "message":
            content = item.any("content")
            text = content if isinstance(content, str) else _parts(item, "content")
            role = item.required_text("role")
            if role == "assistant":
                _answer(messages)["content"] += text
            else:
                messages.append({"role": role, "content": text})
        elif kind == "function_call":
            function = {
                "name": item.required_text("name"),
                "arguments": item.text("arguments") or "{}",
            }
            call = {"id": item.required_text("call_id"), "type": "function", "function": function}
            _answer(messages).setdefault("tool_calls", []).append(call)
        elif kind == "reasoning":
            text = "".join(part.text("text") or "" for part in item.objects("content"))
            if text:
                _answer(messages)["reasoning_content"] = text
        else:
            raise item.wrong("type", "message, function_call, function_call_output or reasoning")
    if not messages:
        raise fields.wrong("input", "a text or a list of at least one item")
    return messages


def _answer(messages: list[dict[str, Any]]) -> dict[str, Any]:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _parts(item: Fields, name: str) -> str:
    texts = []
    for part in item.objects(name):
        if part.text("type") not in ("input_text", "output_text", "text", "refusal"):
            raise part.wrong("type", "input_text or output_text: this model reads text")
        texts.append(part.text("text") or part.text("refusal") or "")
    return "".join(texts)


class _Form:
    """The shape of one request's answer."""

    def __init__(self, service: Service, fields: Fields) -> None:
        self.id = f"resp_{secrets.token_hex(12)}"
        self._service = service
        self._fields = fields
        self._created = int(time.time())
        self._number = 0
        self._items: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None

    def body(self, running: Running, reason: str | None, error: Any = None) -> dict[str, Any]:
        """The response.

        Args:
            running: The request.
            reason: Why it ended; ``None``: it has not.
            error: What went wrong.
        """
        status = {None: "in_progress", "length": "incomplete"}.get(reason, "completed")
        u = running.usage
        usage = {
            "input_tokens": u.prompt,
            "input_tokens_details": {"cached_tokens": u.cached, "cache_write_tokens": 0},
            "output_tokens": u.completion,
            "output_tokens_details": {"reasoning_tokens": u.reasoning},
            "total_tokens": u.prompt + u.completion,
        }
        fields = self._fields.values
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": "failed" if error else status,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"} if reason == "length" else None,
            "instructions": fields.get("instructions"),
            "max_output_tokens": fields.get("max_output_tokens"),
            "model": self._service.name,
            "output": self._items if self._number else self._whole(running, reason),
            "parallel_tool_calls": fields.get("parallel_tool_calls") is not False,
            "previous_response_id": fields.get("previous_response_id"),
            "reasoning": fields.get("reasoning") or {"effort": None, "summary": None},
            "store": fields.get("store") is not False,
            "temperature": fields.get("temperature"),
            "text": fields.get("text") or {"format": {"type": "text"}},
            "tool_choice": fields.get("tool_choice") or "auto",
            "tools": fields.get("tools") or [],
            "top_p": fields.get("top_p"),
            "truncation": "disabled",
            "usage": usage if reason is not None else None,
            "metadata": fields.get("metadata") or {},
            "timings": timings_of(running),
        }

    def _whole(self, running: Running, reason: str | None) -> list[dict[str, Any]]:
        items = []
        if running.reasoning:
            items.append(_filled(_item("reasoning"), running.reasoning, "completed"))
        if running.content or not running.tool_calls:
            status = "incomplete" if reason == "length" else "completed"
            items.append(_filled(_item("message"), running.content, status))
        for one in running.tool_calls:
            call = _item("function_call", name=one.name, call_id=one.id)
            items.append(_filled(call, one.arguments_json, "completed"))
        return items

    def _event(self, kind: str, **values: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **values}
        self._number += 1
        return data(event, kind)

    async def stream(self, running: Running) -> AsyncGenerator[bytes, None]:
        """The answer as it comes.

        Args:
            running: The request.
        """
        self._number = 0
        for kind in ("created", "in_progress"):
            body = {**self.body(running, None), "output": []}
            yield self._event(f"response.{kind}", response=body)
        try:
            async for update in running:
                if isinstance(update, Progress):
                    yield sign_of_life(update)
                    continue
                for delta in update.deltas:
                    for event in self._delta(delta):
                        yield event
                if update.reason is None:
                    continue
                if not self._items:
                    for event in self._begin(_item("message")):
                        yield event
                status = "incomplete" if update.reason == "length" else "completed"
                for event in self._close(status):
                    yield event
                kind = "incomplete" if update.reason == "length" else "completed"
                yield self._event(f"response.{kind}", response=self.body(running, update.reason))
        except (Failure, FlashMoEError) as error:
            failure = failure_of(error)
            said = {"code": failure.code or "server_error", "message": failure.message}
            body = self.body(running, None, said)
            yield self._event("response.failed", response=body)

    def _delta(self, delta: Delta) -> list[bytes]:
        kinds = {"reasoning": "reasoning", "content": "message"}
        kind = kinds.get(delta.kind, "function_call")
        events: list[bytes] = []
        if delta.kind == "tool_name":
            return self._begin(_item(kind, name=delta.text, call_id=delta.id))
        if self._open is None or self._open["type"] != kind:
            events = self._begin(_item(kind))
        assert self._open is not None
        _add(self._open, delta.text)
        name = {
            "reasoning": "response.reasoning_text.delta",
            "message": "response.output_text.delta",
            "function_call": "response.function_call_arguments.delta",
        }[kind]
        return [*events, self._event(name, delta=delta.text, **self._place(kind))]

    def _place(self, kind: str) -> dict[str, Any]:
        assert self._open is not None
        place: dict[str, Any] = {"item_id": self._open["id"], "output_index": len(self._items) - 1}
        if kind != "function_call":
            place["content_index"] = 0
        if kind == "message":
            place["logprobs"] = []
        return place

    def _begin(self, item: dict[str, Any]) -> list[bytes]:
        events = self._close("completed")
        self._items.append(item)
        self._open = item
        bare = {**item, "content": []} if "content" in item else item
        index = len(self._items) - 1
        events.append(self._event("response.output_item.added", output_index=index, item=bare))
        if "content" in item:
            place = {k: v for k, v in self._place(item["type"]).items() if k != "logprobs"}
            part = dict(item["content"][0])
            events.append(self._event("response.content_part.added", part=part, **place))
        return events

    def _close(self, status: str) -> list[bytes]:
        item, self._open = self._open, self._open
        if item is None:
            return []
        kind = item["type"]
        place = self._place(kind)
        item["status"] = status
        events = []
        if kind == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"], **place}
            events.append(self._event("response.function_call_arguments.done", **done))
        else:
            name = "reasoning_text" if kind == "reasoning" else "output_text"
            text = item["content"][0]["text"]
            events.append(self._event(f"response.{name}.done", text=text, **place))
            place.pop("logprobs", None)
            part = item["content"][0]
            events.append(self._event("response.content_part.done", part=part, **place))
        index = len(self._items) - 1
        events.append(self._event("response.output_item.done", output_index=index, item=item))
        self._open = None
        return events


def _item(kind: str, **values: Any) -> dict[str, Any]:
    """An item of the output that has nothing in it yet."""
    prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
    item = {"id": f"{prefix}_{secrets.token_hex(12)}", "type": kind, "status": "in_progress"}
    match kind:
        case "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            return {**item, "role": "assistant", "content": [part]}
        case "reasoning":
            return {**item, "summary": [], "content": [{"type": "reasoning_text", "text": ""}]}
    return {**item, "arguments": "", **values}


def _add(item: dict[str, Any], text: str) -> None:
    if item["type"] == "function_call":
        item["arguments"] += text
    else:
        item["content"][0]["text"] += text


def _filled(item: dict[str, Any], text: str, status: str) -> dict[str, Any]:
    _add(item, text)
    return {**item, "status": status}
