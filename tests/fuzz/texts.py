"""The parsers of what a model writes, and of what a client of the server sends."""

from __future__ import annotations

import atexit
import json
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

from flashmoe import Model, demo_model_path
from flashmoe.chat import ChatTemplate
from flashmoe.errors import FlashMoEError
from flashmoe.messages import normalise_messages
from flashmoe.reply import Delta, ReplyParser, tool_calls_of
from flashmoe.tool_calls import parse_call
from fuzz import by_hand
from fuzz.files import TESTS
from fuzz.harness import Target
from fuzz.mutate import damage_bytes, json_mutator, text_mutator

TEMPLATES = TESTS / "data" / "chat" / "templates"

_TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "description": "w", "parameters": {
        "type": "object", "required": ["city"],
        "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}, "x": {"type": "number"},
            "metric": {"type": "boolean"}, "where": {"type": "object"}, "names": {"type": "array"},
            "limit": {"anyOf": [{"type": "number"}, {"type": "null"}]}, "kind": {"enum": ["a", 1]},
            "none": {"type": ["null", "string"]}, "more": {"oneOf": [{"type": "integer"}]}},
    }}},
]  # fmt: skip


# what a model writes ----------------------------------------------------------------------

_REPLY_WORDS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=weather>", "</function>",
    "<parameter=city>", "<parameter=days>", "<parameter=where>", "<parameter=names>", "\n", "  ",
    "</parameter>", '{"name": "weather", "arguments": {"city": "Oslo"}}', "{'a': (1, 2)}", "3.0",
    '"arguments": "{}"', "-" * 100, "[" * 500, "{1: 2}", "{1, 2}", "b'a'", "1e999", "NaN", "0x" + "f" * 9,
    "\\ud800", "1_0", "1 if 1 else 2", "f'{1}'", "'\\N{BULLET}'", "9" * 500, "...", "None", "<", "é",
)  # fmt: skip


def _reply_seeds() -> list[bytes]:
    xml = (
        "<think>\nHm.\n</think>\n\nI look.\n<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n"
        "</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=where>\n{'a': 1}\n</parameter>\n"
        "</function>\n</tool_call>\nDone."
    )
    hermes = (
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>'
    )
    return [xml.encode(), hermes.encode(), (hermes + "\n" + xml).encode(), b"a < b <tool and <thi"]


def _parts(pieces: Sequence[str], style: str | None, thinking: bool) -> tuple[Any, ...]:
    parser = ReplyParser(style=style, in_reasoning=thinking, tools=_TOOLS)
    deltas: list[Delta] = []
    for piece in pieces:
        deltas += parser.push(piece)
    deltas += parser.finish()
    calls = tool_calls_of(deltas)
    assert [c.arguments for c in calls] == [c.arguments for c in parser.tool_calls], (
        "the deltas tell other calls"
    )
    for delta in deltas:
        json.dumps(delta.text, ensure_ascii=False).encode()  # it goes to clients as UTF-8
    said = [(c.name, repr(c.arguments)) for c in parser.tool_calls]
    return parser.reasoning, parser.content, said


def check_reply(data: bytes) -> None:
    """An answer in both styles; how it is cut does not matter."""
    text = data.decode("utf-8", "replace")
    for style in ("xml", "hermes", None):
        whole = _parts([text], style, thinking=text.startswith("I"))
        cuts = Random(len(data))
        pieces, at = [], 0
        while at < len(text):
            size = cuts.randrange(1, 12)
            pieces.append(text[at : at + size])
            at += size
        assert _parts(pieces, style, text.startswith("I")) == whole, "cut otherwise it is another"


def check_call(data: bytes) -> None:
    """A call's text, and the tools that were offered."""
    text, _, tools = data.decode("utf-8", "replace").partition("\x1e")
    try:
        offered = json.loads(tools)
    except (ValueError, RecursionError):
        offered = _TOOLS
    offered = (
        [tool for tool in offered if isinstance(tool, dict)] if isinstance(offered, list) else []
    )
    for style in ("xml", "hermes"):
        call = parse_call(text, style, offered)
        if call is not None:
            assert isinstance(call[0], str) and isinstance(call[1], dict)
            again = json.loads(json.dumps(call[1], ensure_ascii=False, allow_nan=False))
            assert again == call[1], "its arguments are no JSON"


def _call_seeds() -> list[bytes]:
    tools = json.dumps(_TOOLS)
    xml = "".join(
        f"<parameter={k}>\n{v}\n</parameter>\n"
        for k, v in {
            "city": "a", "days": "3", "x": "1.5", "metric": "True", "where": "{'a': None}",
            "names": "(1, 2)", "limit": "null", "kind": "1", "none": "None", "other": "[1]",
        }.items()
    )  # fmt: skip
    return [
        f"<function=weather>\n{xml}</function>\x1e{tools}".encode(),
        f'{{"name": "weather", "arguments": {{"city": "a"}}}}\x1e{tools}'.encode(),
    ]


def _mutate_call(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    text, mark, tools = data.partition(b"\x1e")
    if rng.random() < 0.5:
        keys = ("type", "properties", "anyOf", "oneOf", "enum", "nullable", "parameters", "function",
                "name", "city", "days", "null", "integer", "$ref", "items")  # fmt: skip
        return text + mark + json_mutator(keys)(rng, tools, [])
    return (
        text_mutator(_REPLY_WORDS)(rng, text, [o.partition(b"\x1e")[0] for o in others[:20]])
        + mark
        + tools
    )


# what a client sends ----------------------------------------------------------------------

_MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": [{"type": "text", "text": "What is the weather?"}]},
    {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [
        {"id": "c1", "type": "function",
         "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]},
    {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sunny"},
    {"role": "user", "content": "Thanks <|im_end|>"},
]  # fmt: skip


@cache
def _templates() -> dict[str, ChatTemplate]:
    names = ("qwen2.5", "qwen3", "qwen3-coder", "qwen3.6", "qwen3.8")
    return {n: ChatTemplate((TEMPLATES / f"{n}.jinja").read_text(encoding="utf-8")) for n in names}


def check_chat(data: bytes) -> None:
    """A conversation and tools, put into a form that a template knows, and rendered."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(value, dict) or not isinstance(value.get("messages"), list):
        return
    known = _templates()
    template = known.get(str(value.get("template"))) or list(known.values())[len(data) % 5]
    tools, documents = value.get("tools"), value.get("documents")
    messages = value["messages"]
    if value.get("as_it_is") is not True:
        messages = normalise_messages(messages, template)
    text = template.render(
        messages,
        tools=tools if isinstance(tools, list) else None,
        documents=documents if isinstance(documents, list) else None,
    )
    assert isinstance(text, str)


_CHAT_KEYS = ("role", "content", "tool_calls", "arguments", "type", "text", "function", "documents")


def _chat_seeds() -> list[bytes]:
    return [json.dumps({"messages": _MESSAGES, "tools": _TOOLS}).encode()]


def _odd_chats() -> list[bytes]:
    odd = ({**said, "template": name} for name in _templates() for said in by_hand.CHAT)
    return [json.dumps(said).encode() for said in odd]


_PATHS = ("chat", "completions", "responses", "messages", "count")


def _bodies() -> list[tuple[str, dict[str, Any]]]:
    named = {"type": "function", "function": {"name": "weather"}}
    plain = {"name": "weather", "description": "w", "input_schema": {"type": "object"}}
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 1, "stream": True,
                "presence_penalty": 0.1, "frequency_penalty": 0.1, "repetition_penalty": 1.1}  # fmt: skip
    return [
        ("chat", {"model": None, "messages": _MESSAGES, "tools": _TOOLS, "tool_choice": "auto",
                  "max_tokens": 5, "stop": ["a"], "logprobs": True, "top_logprobs": 2, "n": 1,
                  "logit_bias": {"5": -1}, "stream_options": {"include_usage": True}, **sampling,
                  "chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "low"}),
        ("chat", {"messages": _MESSAGES[1:2], "tools": _TOOLS, "tool_choice": "required"}),
        ("chat", {"messages": _MESSAGES[1:2], "tools": _TOOLS, "tool_choice": named,
                  "parallel_tool_calls": False}),
        ("chat", {"messages": _MESSAGES[4:], "response_format": {
            "type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}}),
        ("chat", {"messages": _MESSAGES[4:], "response_format": {"type": "regex", "regex": "a+"}}),
        ("chat", {"messages": _MESSAGES[4:], "response_format": {"type": "choice", "choices": ["a"]}}),
        ("completions", {"prompt": "Once", "max_tokens": 3, "logprobs": 2, "echo": False, **sampling}),
        ("completions", {"prompt": [1, 2, 3], "stop": "a", "n": 1, "best_of": 1, "suffix": None}),
        ("responses", {"input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "b"},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "h"}]}],
            "instructions": "Be.", "reasoning": {"effort": "low"}, "text": {"format": {
                "type": "json_schema", "name": "a", "schema": schema}}, "store": True,
            "tools": [{"type": "function", "name": "weather", "parameters": schema}],
            "max_output_tokens": 3}),
        ("responses", {"input": "a", "tool_choice": {"type": "function", "name": "weather"},
                       "tools": [{"type": "function", "name": "weather", "parameters": schema}]}),
        ("responses", {"input": "a", "previous_response_id": None, "temperature": 1}),
        ("messages", {"max_tokens": 4, "system": [{"type": "text", "text": "s"}], "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "h"}, {"type": "text", "text": "t"},
                {"type": "tool_use", "id": "c", "name": "weather", "input": {"city": "a"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "c", "content": [{"type": "text", "text": "x"}]}]}],
            "tools": [plain], "tool_choice": {"type": "any"}, "thinking": {"type": "enabled"},
            "stop_sequences": ["a"], "temperature": 0.5, "top_k": 3, "top_p": 0.5}),
        ("count", {"messages": [{"role": "user", "content": "a"}], "tools": [plain]}),
    ]  # fmt: skip


_HTTP_KEYS = (
    "messages", "role", "content", "tools", "tool_choice", "function", "name", "parameters", "type",
    "properties", "required", "anyOf", "enum", "const", "$ref", "$defs", "pattern", "minLength",
    "maxLength", "self", "enable_thinking", "documents", "add_generation_prompt", "template", "user",
    "chat_template_kwargs", "chat_template", "reasoning_effort", "logit_bias", "stop", "prompt",
    "input", "system", "text", "tool_calls", "arguments", "tool_call_id", "response_format", "schema",
    "regex", "grammar", "choices", "json_object", "items", "additionalProperties", "weather", "city",
)  # fmt: skip


@cache
def _service() -> Any:
    from flashmoe.server.service import Service
    from flashmoe.server.settings import Settings

    model = Model(demo_model_path(), device="cpu", threads=1)
    service = Service(model, Settings(max_tokens=8, prefix_memory=0))
    return service


def close() -> None:
    """End the threads of the service that requests are checked with."""
    if _service.cache_info().currsize:
        _service().close()
        _service().model.close()
        _handlers.cache_clear()
        _service.cache_clear()


atexit.register(close)


class _Prepared(Exception):
    """The request would now wait for its answer."""


@cache
def _handlers() -> dict[str, Any]:
    from flashmoe.server import anthropic
    from flashmoe.server.endpoint import Call
    from flashmoe.server.openai_chat import chat_completions
    from flashmoe.server.openai_responses import Responses
    from flashmoe.server.openai_text import completions

    class Dry(Call):
        """Does what comes before the queue, in this thread."""

        async def start(self, prepare: Any) -> Any:
            return prepare()

        async def whole(self, running: Any, listen: Any = None) -> Any:
            raise _Prepared

    responses = Responses(_service())
    responses._kept["resp_1"] = [{"role": "user", "content": "a"}]

    async def count(call: Any) -> None:
        _service().count(anthropic.read_ask(call.fields))

    return {
        "chat": chat_completions,
        "completions": completions,
        "responses": responses.create,
        "messages": anthropic.messages,
        "count": count,
        "call": Dry,
    }


def check_http(data: bytes) -> None:
    """A request's body up to the queue; what is refused is refused with a status below 500, as JSON."""
    from starlette.responses import JSONResponse

    from flashmoe.server.endpoint import presented_key
    from flashmoe.server.failures import Failure, failure_of
    from flashmoe.server.fields import parse

    path = _PATHS[data[0] % len(_PATHS)] if data else "chat"
    handlers = _handlers()
    try:
        fields = parse(data[1:])
        presented_key({"authorization": f"Bearer {fields.any('user')}", "x-api-key": "a"})
        call = handlers["call"](_service(), None, fields)
        coroutine = handlers[path](call)
        try:
            coroutine.send(None)
        except (StopIteration, _Prepared):
            return
        finally:
            coroutine.close()
        raise AssertionError("it waits for something else than the queue")
    except (Failure, FlashMoEError) as error:
        failure = failure_of(error)
        for body in (failure.openai(), failure.anthropic()):
            JSONResponse(body, failure.status, headers=failure.headers)
        assert failure.status < 500, f"status {failure.status} for {type(error).__name__}: {error}"
        raise FlashMoEError(failure.message) from None


def _request(path: str, body: Any) -> bytes:
    return bytes([_PATHS.index(path)]) + json.dumps(body).encode()


def _mutate_http(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    path = data[:1] if rng.random() < 0.9 else bytes([rng.randrange(len(_PATHS))])
    return path + json_mutator(_HTTP_KEYS)(rng, data[1:], [o[1:] for o in others[:20]])


# what an answer must follow ---------------------------------------------------------------


def check_grammar(data: bytes) -> None:
    """Tools that must be called in either style, or a response format, up to a compiled grammar."""
    from flashmoe.structured import compile_constraint

    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(value, dict):
        return
    tools = value.get("tools")
    tools = [t for t in tools if isinstance(t, dict)] if isinstance(tools, list) else None
    style = str(value.get("style", "hermes"))
    tokenizer = _service().model.tokenizer
    form, choice = value.get("format"), value.get("choice")
    pairs = [(form, choice)] if value.get("both") is True else [(None, choice), (form, None)]
    for given, chosen in pairs:
        factory = compile_constraint(tokenizer, given, tools=tools, tool_choice=chosen, style=style)
        if factory is not None:
            factory.start()


def _grammar_seeds() -> list[bytes]:
    named = {"type": "function", "function": {"name": "weather"}}
    shared = {"type": "function", "function": {"name": "f", "parameters": {
        "type": "object", "$defs": {"a": {"type": "string", "minLength": 1, "maxLength": 5}},
        "properties": {"x": {"$ref": "#/$defs/a"}, "y": {"type": "string", "pattern": "^a+$"},
                       "z": {"const": 1}, "w": {"type": "array", "items": {"type": "integer"}}}}}}  # fmt: skip
    return [
        json.dumps({"tools": _TOOLS, "choice": "required", "style": "xml", "format": None}).encode(),
        json.dumps({"tools": [shared], "choice": "required", "style": "xml"}).encode(),
        json.dumps({"tools": _TOOLS, "choice": named, "style": "hermes"}).encode(),
        *(
            json.dumps({"format": {"type": kind, kind: given}}).encode()
            for kind, given in (
                ("json_schema", {"schema": shared["function"]["parameters"]}),
                ("regex", "[a-z]{1,5}"), ("grammar", 'start: "a" | /b+/'),
            )
        ),
    ]  # fmt: skip


# events -----------------------------------------------------------------------------------


def check_event(data: bytes) -> None:
    """Any text as an event: a client that splits lines gets it back whole."""
    from flashmoe.server.stream import data as event

    text = data.decode("utf-8", "replace")
    sent = event({"text": text}, "delta")
    name, line, *rest = sent.decode().split("\n")
    assert (name, rest) == ("event: delta", ["", ""]), "an event is more than its lines"
    assert json.loads(line.removeprefix("data: "))["text"] is not None


def _mutate_event(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return damage_bytes(
        rng, data, others, (b"\n", b"\r", b"data: ", b"\n\n", b"\xed\xa0\x80", b"\xe2\x80\xa8")
    )


TARGETS = (
    Target("reply", _reply_seeds, check_reply, text_mutator(_REPLY_WORDS)),
    Target("call", _call_seeds, check_call, _mutate_call,
           lambda: [call.encode() for call in by_hand.CALL]),
    Target("chat", _chat_seeds, check_chat, json_mutator(_CHAT_KEYS), _odd_chats),
    Target("http", lambda: [_request(*one) for one in _bodies()], check_http, _mutate_http,
           lambda: [_request(*one) for one in by_hand.HTTP]),
    Target("grammar", _grammar_seeds, check_grammar, json_mutator(_HTTP_KEYS),
           lambda: [json.dumps(said).encode() for said in by_hand.GRAMMAR]),
    Target("sse", lambda: [b"Hello\ndata: [DONE]\n\n"], check_event, _mutate_event),
)  # fmt: skip
