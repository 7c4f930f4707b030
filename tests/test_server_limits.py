"""Requests at and beyond their limits: refused by name, soon, never by an error."""

from __future__ import annotations

import gzip
import http.client
import itertools
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

import flashmoe

pytest.importorskip("uvicorn")

from asking import Client, asking
from flashmoe.structured import MAX_COMPILED
from grammar_bombs import bombs
from serving import serving

SAID = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": SAID, "max_tokens": 1},
    "/v1/completions": {"prompt": "Hello", "max_tokens": 1},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 1},
    "/v1/messages": {"messages": SAID, "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": SAID},
}
CHAT, TEXT, RESPONSES, MESSAGES, COUNT = BODIES


@pytest.fixture(scope="module")
def model() -> Iterator[flashmoe.Model]:
    with flashmoe.Model(flashmoe.demo_model_path(), memory="200MB") as opened:
        yield opened


@pytest.fixture(scope="module")
def client(model: flashmoe.Model) -> Iterator[Client]:
    with asking(model) as one:
        yield one


# ---- every field at values that it cannot have ---------------------------------------------

NAN, INF = float("nan"), float("inf")
NO_NUMBER: list[Any] = [
    NAN,
    INF,
    -INF,
    1e308,
    -1e308,
    10**400,
    -(10**400),
    "1",
    "",
    [],
    [1],
    {},
    True,
]
NEGATIVE: list[Any] = [-1, -(2**63), -1e-9]
NO_COUNT: list[Any] = [0, 1.5, 2**31, 2**63, 2**64, 10**18, *NEGATIVE]
NO_FLAG: list[Any] = [0, 1, "true", "yes", [], {}, NAN]
NO_OBJECT: list[Any] = [5, NAN, "x", [], [{}], True]
NO_OBJECTS: list[Any] = [5, NAN, "x", {}, [5], ["x"], [[]], [None], True]
NO_TEXT: list[Any] = [5, NAN, [], ["x"], {}, True]
NO_STOPS: list[Any] = [5, {}, [""], [5], ["x", None], [["x"]], ["x"] * 17, ["x"] * 10_000, True]
SAMPLED = {
    "temperature": [*NO_NUMBER, *NEGATIVE, 101],
    "top_p": [*NO_NUMBER, *NEGATIVE, 0, 1.01],
    "top_k": [*NO_NUMBER, *NEGATIVE, 1.5, 2**31, 2**63],
    "min_p": [*NO_NUMBER, *NEGATIVE, 1.01],
    "repetition_penalty": [*NO_NUMBER, *NEGATIVE, 0, 1e7],
    "presence_penalty": [*NO_NUMBER, 101, -101],
    "frequency_penalty": [*NO_NUMBER, 101, -101],
    "seed": [*NO_NUMBER, 1.5, 2**64, -(2**63) - 1],
    "logit_bias": [
        *NO_OBJECT, {"x": 1}, {"-1": 1}, {"1.5": 1}, {"": 1}, {"1": "x"}, {"1": 101},
        {"1": -101}, {"1": NAN}, {"9" * 30: 1}, {"999999999": 1}, {"\u0661": 1, "1": INF},
    ],
}  # fmt: skip
COMMON = {"model": [*NO_TEXT, "none", "x" * 100_000, "../demo"], "stream": NO_FLAG}
TEMPLATE = {
    "chat_template_kwargs": [
        *NO_OBJECT,
        *({name: []} for name in ("messages", "tools", "documents", "add_generation_prompt")),
        {"tools": None}, {"messages": SAID, "self": 1},
    ],
    "enable_thinking": NO_FLAG,
    "reasoning_effort": [*NO_TEXT, "", "much", "LOW"],
}  # fmt: skip
MESSAGE_LISTS: list[Any] = [
    *NO_OBJECTS, [], [{}], [{"role": 5, "content": "x"}], [{"role": [], "content": "x"}],
    [{"role": "user", "content": 5}], [{"role": "user", "content": {}}],
    [{"role": "user", "content": [5]}], [{"role": "user", "content": [{}]}],
    [{"role": "user", "content": [{"type": "text", "text": 5}]}],
    [{"role": "user", "content": [{"type": "text"}]}],
    [{"role": "user", "content": [{"type": []}]}],
    [{"role": "user", "content": "x" * 200_000}],
]  # fmt: skip
WRONG: dict[str, dict[str, list[Any]]] = {
    CHAT: {
        **SAMPLED, **COMMON, **TEMPLATE,
        "messages": [
            *MESSAGE_LISTS,
            [{"role": "assistant", "tool_calls": 5}], [{"role": "assistant", "tool_calls": [5]}],
            [{"role": "assistant", "tool_calls": [{}]}],
            [{"role": "assistant", "tool_calls": [{"function": "f"}]}],
            [{"role": "assistant", "tool_calls": [{"function": {"name": 5}}]}],
        ],
        "max_tokens": [*NO_NUMBER, *NO_COUNT], "max_completion_tokens": [*NO_NUMBER, *NO_COUNT],
        "n": [*NO_NUMBER, *NO_COUNT, 2, 10**9],
        "top_logprobs": [*NO_NUMBER, *NEGATIVE, 5, 21, 10**6],  # 5: without logprobs
        "logprobs": [*NO_FLAG, 10**6], "parallel_tool_calls": NO_FLAG,
        "stop": NO_STOPS, "stream_options": NO_OBJECT,
        "tools": [*NO_OBJECTS, [{}], [{"type": "x"}], [{"function": {}}], [{"function": 5}],
                  [{"function": {"name": 5}}], [{"function": {"name": "f", "parameters": 5}}]],
        "tool_choice": [5, "x", "f", [], {}, {"function": 5}, {"function": {"name": "g"}}, True],
        "response_format": [*NO_OBJECT, {}, {"type": 5}, {"type": "yaml"}, {"type": "json_schema"},
                            {"type": "json_schema", "json_schema": 5},
                            {"type": "json_schema", "json_schema": {"schema": 5}},
                            {"type": "regex"}, {"type": "regex", "regex": 5},
                            {"type": "choice", "choices": []}, {"type": "choice", "choices": [5]},
                            {"type": "grammar", "grammar": ""}],
        "functions": [[], [TOOL], 5], "function_call": ["auto"], "audio": [{}],
    },
    TEXT: {
        **SAMPLED, **COMMON,
        "prompt": [5, NAN, "", [], {}, [[]], [""], ["a", "b"], [["a"]], [1, "x"], [1.5], [True],
                   [-1], [2**31], [2**63], [10**9], [[1], [2]], [None], True, "x" * 200_000],
        "max_tokens": [*NO_NUMBER, *NO_COUNT], "n": [*NO_NUMBER, *NO_COUNT, 2],
        "best_of": [*NO_NUMBER, *NO_COUNT, 2], "logprobs": [*NO_NUMBER, *NEGATIVE, 21, 10**6],
        "stop": NO_STOPS, "echo": [True, 1, "x"], "suffix": ["x", 5], "stream_options": NO_OBJECT,
    },
    RESPONSES: {
        **COMMON, **TEMPLATE,
        "temperature": [*NO_NUMBER, *NEGATIVE, 2.1], "top_p": [*NO_NUMBER, *NEGATIVE, 0, 1.1],
        "max_output_tokens": [*NO_NUMBER, *NO_COUNT],
        "input": [5, "", {}, [], [5], [{}], [{"type": 5}], [{"type": "x"}], [{"role": 5}],
                  [{"role": "user", "content": 5}], [{"role": "user", "content": [{}]}],
                  [{"type": "function_call"}], [{"type": "function_call_output"}],
                  [{"type": "function_call", "name": 5, "call_id": "c"}],
                  [{"type": "reasoning", "content": 5}], "x" * 200_000],
        "previous_response_id": [*NO_TEXT, "", "resp_none"], "instructions": NO_TEXT,
        "background": [*NO_FLAG, True], "store": NO_FLAG, "parallel_tool_calls": NO_FLAG,
        "reasoning": [*NO_OBJECT, {"effort": 5}, {"effort": "x"}],
        "text": [*NO_OBJECT, {"format": 5}, {"format": {"type": "x"}}, {"format": {}}],
        "tools": [*NO_OBJECTS, [{}], [{"type": "function"}], [TOOL]],
        "tool_choice": [5, "x", [], {}, {"name": "g"}, "required", True],
    },
    MESSAGES: {
        **COMMON, **{k: v for k, v in TEMPLATE.items()},
        "messages": [*MESSAGE_LISTS, [{"role": "tool", "content": "x"}],
                     [{"role": "user", "content": [{"type": "tool_result"}]}],
                     [{"role": "assistant", "content": [{"type": "tool_use"}]}],
                     [{"role": "assistant", "content": [{"type": "thinking"}]}]],
        "max_tokens": [None, *NO_NUMBER, *NO_COUNT],
        "temperature": [*NO_NUMBER, *NEGATIVE, 1.1], "top_p": [*NO_NUMBER, *NEGATIVE, 0, 1.1],
        "top_k": [*NO_NUMBER, *NEGATIVE, 1.5, 2**31], "stop_sequences": NO_STOPS,
        "system": [5, {}, [5], [{}], [{"type": "text"}], [{"type": "text", "text": 5}], True],
        "thinking": [*NO_OBJECT, {"type": 5}, {"type": "x"}],
        "tools": [*NO_OBJECTS, [{}], [{"name": 5}], [{"name": "f", "input_schema": 5}],
                  [{"name": "f", "description": 5}], [{"type": "bash_1", "name": "bash"}]],
        "tool_choice": [*NO_OBJECT, {"type": 5}, {"type": "x"}, {"type": "any"}, {"type": "tool"},
                        {"type": "tool", "name": "g"}],
    },
}  # fmt: skip


def cases() -> list[tuple[str, str, Any]]:
    return [
        (p, f, v) for p, fields in WRONG.items() for f, values in fields.items() for v in values
    ]


def test_every_field_at_values_that_it_cannot_have(client: Client) -> None:
    took, taken = [], []
    for path, field, value in cases():
        start = time.monotonic()
        status, _, text = client.ask("POST", path, {**BODIES[path], field: value})
        took.append(time.monotonic() - start)
        shown = (path, field, repr(value)[:60], status, text[:200])
        assert status < 500, shown
        if status == 200:
            taken.append(shown[:3])
            continue
        assert status in (400, 404), shown
        assert json.loads(text)["error"]["message"]
    assert len(took) > 800
    assert not taken
    assert sorted(took)[len(took) // 2] < 0.02


def test_limits_themselves_are_taken(client: Client) -> None:
    """The refusals above are not of everything."""
    taken: dict[str, list[Any]] = {
        "temperature": [0, 100], "top_p": [1e-9, 1], "top_k": [0, 2**31 - 1, 5.0], "min_p": [0, 1],
        "presence_penalty": [-100, 100], "seed": [0, -(2**63), 2**64 - 1], "max_tokens": [1, 1.0],
        "stop": [None, "x", ["x"] * 16], "n": [1, 1.0, None], "logit_bias": [{}, {"0": 100}],
        "tools": [[], [TOOL]], "chat_template_kwargs": [{}, {"self": 1, "loop": 2, "x": "y"}],
        "unknown": [5, {"a": [None]}],
    }  # fmt: skip
    for field, values in taken.items():
        for value in values:
            status, _, text = client.ask("POST", CHAT, {**BODIES[CHAT], field: value})
            assert status == 200, (field, value, text)


# ---- bodies ------------------------------------------------------------------------------


def deep(n: int, opening: str = "[", closing: str = "]") -> bytes:
    return (opening * n + "1" + closing * n).encode()


def test_bodies_that_are_none(client: Client) -> None:
    bodies: list[bytes] = [
        b"", b" ", b"{", b"null", b"5", b'"x"', b"[]", b"{}x", b"\xff", b"\xef\xbb\xbf{}", b"\x00",
        b'{"a":\x01}', b'{"a": "\xc3"}', b'{"messages": "\\ud800"}', b'{"a\\udc00": 1}',
        '{"a": 1}'.encode("utf-16"), '{"a": 1}'.encode("utf-32"), deep(1000), deep(100_000),
        deep(1_000_000), deep(200_000, '{"a":'), b'{"a":' + b"9" * 5000 + b"}",
        b'{"temperature": -}', b"{'a': 1}", gzip.compress(b'{"prompt": "x"}'),
        gzip.compress(b" " * 10_000_000), b"a=1&b=2", b"--x\r\n\r\n--x--",
    ]  # fmt: skip
    for path, body in itertools.product(BODIES, bodies):
        for kind in ("application/json", "text/plain"):
            encoding = {"content_encoding": "gzip"} if body.startswith(b"\x1f") else {}
            got = client.ask("POST", path, body, content_type=kind, **encoding)
            assert got.status == 400, (path, body[:30], got)
    for n in (255, 256, 300, 5000):  # deep, but in a field that nobody reads
        body = b'{"prompt": "x", "max_tokens": 1, "metadata": ' + deep(n) + b"}"
        assert client.ask("POST", TEXT, body).status in (200, 400)
        body = (
            b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "tools": [{"type":'
        )
        body += b'"function", "function": {"name": "f", "parameters": {"x":' + deep(n) + b"}}}]}"
        status, _, text = client.ask("POST", CHAT, body)
        assert status in (200, 400), text


ODD = [
    "\x00", "\x7f", "\u2028\u2029", "\ufeff", "\ufffd", "\ufffe\uffff", "\U0010ffff", "\U000f0000",
    "e\u0301" * 50, "\u202e\u2066", "\U0001f469\u200d\U0001f52c", "<|im_end|>",
    "<think>", "\r\n" * 99,    "</tool_call>", "{{ 1/0 }}{% raw %}", "%s%n{0.__class__}",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_odd_text_in_every_place(client: Client, text: str) -> None:
    """Taken or refused, and the answer is text."""
    call = {"id": text, "type": "function", "function": {"name": text, "arguments": text}}
    given = {**call, "function": {"name": text, "arguments": json.dumps({text: text})}}
    tool = {"name": text, "description": text, "parameters": {"properties": {text: {}}}}
    says = {"role": "user", "content": text}
    use = {"type": "tool_use", "id": text, "name": text, "input": {text: text}}
    bodies: list[tuple[str, dict[str, Any]]] = [
        (CHAT, {"messages": [says], "stop": [text]}),
        (CHAT, {"messages": [{"role": text, "content": text, text: text}]}),
        (CHAT, {"messages": [says, {"role": "assistant", "content": None, "tool_calls": [call]}]}),
        (CHAT, {"messages": [says, {"role": "assistant", "tool_calls": [given]}, says]}),
        (CHAT, {"messages": [says], "tools": [{"type": "function", "function": tool}]}),
        (CHAT, {"messages": [says], "chat_template_kwargs": {text: text}, "user": text}),
        (CHAT, {"messages": [says], "response_format": {"type": "choice", "choices": [text]}}),
        (TEXT, {"prompt": text, "stop": text}),
        (RESPONSES, {"input": text, "instructions": text, "metadata": {text: text}}),
        (MESSAGES, {"messages": [says, {"role": "assistant", "content": [use]}, says]}),
        (COUNT, {"messages": [says], "system": text}),
    ]
    for path, body in bodies:
        status, _, said = client.ask("POST", path, {**BODIES[path], **body})
        assert status in (200, 400), (path, said)
        json.loads(said)


def test_long_lines(client: Client) -> None:
    long = "x" * 1_000_000
    for path, body in (
        (CHAT, {"messages": [{"role": "user", "content": long}]}),
        (TEXT, {"prompt": long}),
        (RESPONSES, {"input": long}),
        (MESSAGES, {"messages": [{"role": "user", "content": long}]}),
    ):
        status, _, text = client.ask("POST", path, {**BODIES[path], **body})
        assert status == 400 and "context" in text, text[:300]
    for field in ("stop", "user", "reasoning_effort", "model"):
        assert client.ask("POST", CHAT, {**BODIES[CHAT], field: long}).status in (200, 400, 404)
    assert client.ask("POST", CHAT, {**BODIES[CHAT], "stop": [long] * 7}).status == 200


def test_the_context_at_its_limits(client: Client, model: flashmoe.Model) -> None:
    most = model.context_length
    for n in (most, most + 1, most * 3):
        status, _, text = client.ask("POST", TEXT, {"prompt": [5] * n, "max_tokens": 1})
        error = json.loads(text)["error"]
        assert (status, error["code"]) == (400, "context_length_exceeded")
        assert str(n) in error["message"] and str(most) in error["message"]
    got = client.ask("POST", TEXT, {"prompt": [5] * (most - 1), "max_tokens": 9, "temperature": 0})
    usage = json.loads(got.text)["usage"]
    assert (got.status, usage["prompt_tokens"], usage["completion_tokens"]) == (200, most - 1, 1)


# ---- grammars ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "wanted"), list(bombs()), ids=[name for name, _ in bombs()])
def test_grammars_that_explode(client: Client, name: str, wanted: dict[str, Any]) -> None:
    start = time.monotonic()
    body = {**BODIES[CHAT], "max_tokens": 3, "response_format": wanted}
    status, _, text = client.ask("POST", CHAT, body)
    took = time.monotonic() - start
    assert status in (200, 400), text
    assert took < 4, took  # 1 s to try and less to compile, and what a loaded machine adds


def test_a_schema_deeper_than_anything(client: Client) -> None:
    text = json.dumps({"type": "json_schema", "json_schema": {"schema": "HERE"}})
    inner = '{"properties":{"a":' * 3000 + "{}" + "}}" * 3000
    body = f'{{"messages": {json.dumps(SAID)}, "max_tokens": 1, "response_format": '
    raw = (body + text.replace('"HERE"', inner) + "}").encode()
    assert client.ask("POST", CHAT, raw).status == 400


def test_compiled_grammars_are_few(client: Client, model: flashmoe.Model) -> None:
    for i in range(200):
        wanted = {"type": "choice", "choices": [f"answer {i}"]}
        body = {**BODIES[CHAT], "response_format": wanted}
        assert client.ask("POST", CHAT, body).status == 200
    assert len(model.tokenizer.grammars._compiled) <= MAX_COMPILED


# ---- connections --------------------------------------------------------------------------


def test_answers_do_not_wait_for_acknowledgements(model: flashmoe.Model) -> None:
    """Of many on one connection; each would take 40 ms."""
    with serving(model) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        waits = []
        for _ in range(12):
            start = time.monotonic()
            connection.request("GET", "/health")
            connection.getresponse().read()
            waits.append(time.monotonic() - start)
        connection.close()
    assert min(waits[2:]) < 0.03


def test_connections_that_say_too_little_are_closed(model: flashmoe.Model) -> None:
    """Silent, slow in the head, slow after an answer; one that asks again and again is not."""
    with ExitStack() as stack:
        port = stack.enter_context(serving(model, head_timeout=1.0))
        silent, slow, after = (
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            for _ in range(3)
        )
        alive = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        stack.callback(alive.close)
        after.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in after.recv(4096)
        alive.connect()
        kept = alive.sock
        for _ in range(40):
            for one in (slow, after):
                with suppress(OSError):  # closed, as it must be
                    one.sendall(b"G")
            alive.request("GET", "/health")
            assert alive.getresponse().read()
            time.sleep(0.1)
        assert alive.sock is kept
        for one in (silent, slow, after):
            one.settimeout(0.5)
            with suppress(ConnectionResetError):  # it said something after it was closed
                while one.recv(4096):
                    pass


def test_who_takes_nothing_of_a_whole_answer_is_cut_off(model: flashmoe.Model) -> None:
    with serving(model, write_timeout=0.5) as port, socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        one.connect(("127.0.0.1", port))
        one.settimeout(0.2)
        deadline = time.monotonic() + 30
        asked = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100
        cut = False
        while not cut and time.monotonic() < deadline:
            try:
                one.sendall(asked)
            except TimeoutError:
                continue
            except ConnectionError:
                cut = True
        assert cut


def test_a_full_queue_refuses_before_it_renders(model: flashmoe.Model) -> None:
    with asking(model) as client:
        service = client.app.state.service
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(service.engine, "_limit", 0)
            patch.setattr(service, "_render", None)
            for path in (CHAT, TEXT, RESPONSES, MESSAGES):
                status, headers, _ = client.ask("POST", path, BODIES[path])
                assert status == 503 and int(headers["retry-after"]) > 0
