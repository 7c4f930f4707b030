"""The server by its clients: OpenAI's and Anthropic's own, and those that misbehave."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import flashmoe

pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

from flashmoe.server import Settings  # noqa: E402
from serving import serving  # noqa: E402

QUESTION = [{"role": "user", "content": "What is a mixture of experts?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Oslo for 3 days?"}]
TOOL = {
    "name": "get_weather",
    "description": "Gives the weather for a city.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city."},
            "days": {"type": "integer", "description": "Number of days."},
        },
        "required": ["city"],
    },
}
TOOLS = [{"type": "function", "function": TOOL}]
GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def model() -> Iterator[flashmoe.Model]:
    with flashmoe.Model(flashmoe.demo_model_path(), memory="200MB") as opened:
        yield opened


@pytest.fixture(scope="module")
def port(model: flashmoe.Model) -> Iterator[int]:
    with serving(model, ping=0.2) as number:
        yield number


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[Any]:
    where = f"http://127.0.0.1:{port}/v1"
    with openai.OpenAI(base_url=where, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(port: int) -> Iterator[Any]:
    where = f"http://127.0.0.1:{port}"
    with anthropic.Anthropic(base_url=where, api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def alone(model: flashmoe.Model) -> str:
    generator = flashmoe.Generator(model, flashmoe.Sampler(temperature=0))
    return generator.chat(QUESTION).text


def ask(
    port: int, path: str, body: Any = None, method: str | None = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method or ("GET" if body is None else "POST"), path, raw, names)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    is_json = "json" in response.headers.get("content-type", "")
    return response.status, dict(response.headers), json.loads(text) if is_json else text.decode()


# ---- OpenAI's client ------------------------------------------------------------------


def test_chat(client: Any, alone: str) -> None:
    got = client.chat.completions.create(model="demo", messages=QUESTION, **GREEDY)
    choice = got.choices[0]
    assert (choice.message.content, choice.finish_reason) == (alone, "stop")
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert got.usage.prompt_tokens > 10


def test_chat_in_a_stream(client: Any, alone: str) -> None:
    stream = client.chat.completions.create(
        model="demo",
        messages=QUESTION,
        stream=True,
        stream_options={"include_usage": True},
        **GREEDY,
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == alone
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 10
    assert not chunks[-1].choices


def test_tools_in_two_rounds(client: Any) -> None:
    messages: list[Any] = list(WEATHER)
    got = client.chat.completions.create(model="demo", messages=messages, tools=TOOLS, **GREEDY)
    choice = got.choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Oslo", "days": 3}
    messages.append(choice.message)
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "sunny"})
    got = client.chat.completions.create(model="demo", messages=messages, tools=TOOLS, **GREEDY)
    assert got.choices[0].finish_reason == "stop"
    assert got.choices[0].message.content


def test_tools_in_a_stream(client: Any) -> None:
    with client.chat.completions.stream(
        model="demo", messages=WEATHER, tools=TOOLS, **GREEDY
    ) as stream:
        for _ in stream:
            pass
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Oslo", "days": 3}


def test_stop_length_seed_and_logprobs(client: Any, alone: str) -> None:
    def chat(**options: Any) -> Any:
        return client.chat.completions.create(model="demo", messages=QUESTION, **options).choices[0]

    stopped = chat(stop=["layers", "never"], **GREEDY)
    assert stopped.finish_reason == "stop"
    assert stopped.message.content == alone[: alone.index("layers")]
    short = chat(max_completion_tokens=3, **GREEDY)
    assert short.finish_reason == "length"
    assert alone.startswith(short.message.content)
    hot = {"temperature": 1.5, "max_tokens": 20}
    assert chat(seed=7, **hot).message.content == chat(seed=7, **hot).message.content
    told = chat(logprobs=True, top_logprobs=3, max_tokens=4, **GREEDY).logprobs.content
    assert "".join(one.token for one in told) == short.message.content + told[-1].token
    for one in told:
        assert one.top_logprobs[0].token == one.token
        assert one.logprob == one.top_logprobs[0].logprob <= 0
        assert len(one.top_logprobs) == 3


def test_completions(client: Any, model: flashmoe.Model) -> None:
    want = flashmoe.Generator(model, flashmoe.Sampler(temperature=0)).generate(
        "The expert loader", max_tokens=8
    )
    ids = model.tokenizer.encode("The expert loader")
    for prompt in ("The expert loader", ids):
        got = client.completions.create(
            model="demo", prompt=prompt, max_tokens=8, logprobs=2, **GREEDY
        ).choices[0]
        assert (got.text, got.finish_reason) == (want.text, "length")
        assert got.logprobs.token_logprobs == pytest.approx(want.logprobs)
    stream = client.completions.create(
        model="demo", prompt=ids, max_tokens=8, stream=True, **GREEDY
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == want.text


def test_responses(client: Any, alone: str) -> None:
    first = client.responses.create(
        model="demo", input=QUESTION[0]["content"], instructions=None, **GREEDY
    )
    assert (first.output_text, first.status) == (alone, "completed")
    again = client.responses.create(
        model="demo", input="Thank you.", previous_response_id=first.id, **GREEDY
    )
    assert again.usage.input_tokens > first.usage.input_tokens + first.usage.output_tokens
    cut = client.responses.create(model="demo", input=QUESTION, max_output_tokens=2, **GREEDY)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    with pytest.raises(openai.NotFoundError, match="whole conversation"):
        client.responses.create(model="demo", input="x", previous_response_id="resp_none")


def test_responses_in_a_stream(client: Any, alone: str) -> None:
    events = list(client.responses.create(model="demo", input=QUESTION, stream=True, **GREEDY))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == alone == events[-1].response.output_text
    assert [e.type for e in events[:2]] == ["response.created", "response.in_progress"]
    tools = [{"type": "function", **TOOL}]
    events = list(
        client.responses.create(model="demo", input=WEATHER, tools=tools, stream=True, **GREEDY)
    )
    (item,) = events[-1].response.output
    assert (item.name, json.loads(item.arguments)) == ("get_weather", {"city": "Oslo", "days": 3})
    told: list[Any] = [
        *WEATHER,
        item.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": item.call_id, "output": "sunny"},
    ]
    assert client.responses.create(model="demo", input=told, tools=tools, **GREEDY).output_text


def test_schemas_and_forced_calls(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    got = client.chat.completions.create(
        model="demo", messages=QUESTION, response_format=wanted, temperature=1
    )
    assert json.loads(got.choices[0].message.content)["city"] in ("Oslo", "Rome")
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        got = client.chat.completions.create(
            model="demo", messages=QUESTION, tools=TOOLS, tool_choice=choice, temperature=0
        )
        (call,) = got.choices[0].message.tool_calls
        assert call.function.name == "get_weather" and json.loads(call.function.arguments)


def test_errors_have_the_bodies_that_clients_read(client: Any, port: int) -> None:
    def chat(**options: Any) -> Any:
        return client.chat.completions.create(**{"model": "demo", "messages": QUESTION, **options})

    with pytest.raises(openai.NotFoundError) as missing:
        chat(model="gpt-none")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        chat(messages=[{"role": "user", "content": "word " * 6000}])
    assert long.value.code == "context_length_exceeded"
    for wrong, param in (
        ({"temperature": 900}, None),
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, None),
        ({"response_format": {"type": "regex", "regex": "("}}, None),
        ({"stop": [""]}, "stop"),
        ({"stream": "yes"}, "stream"),
    ):
        with pytest.raises(openai.BadRequestError) as bad:
            chat(extra_body=wrong)
        assert bad.value.type == "invalid_request_error"
        assert bad.value.param == param or param is None
    for body in (b"", b"{", b"[1]", b"[" * 200_000, b"\xff"):
        status, _, got = ask(port, "/v1/chat/completions", body)
        assert status == 400
        assert got["error"]["message"]
    assert ask(port, "/v1/none")[0] == 404
    assert ask(port, "/v1/chat/completions")[0] == 405


# ---- Anthropic's client ---------------------------------------------------------------


def test_messages(claude: Any, alone: str) -> None:
    got = claude.messages.create(model="demo", max_tokens=100, messages=QUESTION, extra_body=GREEDY)
    assert (got.content[0].text, got.stop_reason) == (alone, "end_turn")
    assert got.usage.output_tokens > 10
    stopped = claude.messages.create(
        model="demo", max_tokens=99, messages=QUESTION, stop_sequences=["layers"], extra_body=GREEDY
    )
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "layers")
    counted = claude.messages.count_tokens(model="demo", messages=QUESTION)
    kept = got.usage.cache_read_input_tokens or 0
    assert counted.input_tokens == got.usage.input_tokens + kept


def test_messages_in_a_stream_with_tools_in_two_rounds(claude: Any, alone: str) -> None:
    with claude.messages.stream(
        model="demo", max_tokens=100, messages=QUESTION, extra_body=GREEDY
    ) as stream:
        assert "".join(stream.text_stream) == alone
    tools = [{**TOOL, "input_schema": TOOL["parameters"]}]
    tools = [{k: v for k, v in tool.items() if k != "parameters"} for tool in tools]
    options = {"model": "demo", "max_tokens": 100, "tools": tools, "extra_body": GREEDY}
    with claude.messages.stream(messages=WEATHER, **options) as stream:
        got = stream.get_final_message()
    assert got.stop_reason == "tool_use"
    use = got.content[-1]
    assert (use.name, use.input) == ("get_weather", {"city": "Oslo", "days": 3})
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
    told = [
        *WEATHER,
        {"role": "assistant", "content": [block.model_dump() for block in got.content]},
        {"role": "user", "content": [result]},
    ]
    assert claude.messages.create(messages=told, **options).content[0].text


def test_errors_of_messages(claude: Any, port: int) -> None:
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="claude-none", max_tokens=5, messages=QUESTION)
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        claude.messages.create(model="demo", max_tokens=0, messages=QUESTION)
    status, _, got = ask(port, "/v1/messages", {"model": "demo", "messages": QUESTION})
    assert (status, got["error"]["type"]) == (400, "invalid_request_error")


# ---- many at once ---------------------------------------------------------------------


def test_four_at_once_get_what_each_gets_alone(client: Any) -> None:
    questions = [
        "What is a mixture of experts?",
        "Tell me a short story.",
        "Hello!",
        "Who are you?",
    ]

    def answer(text: str) -> str:
        messages = [{"role": "user", "content": text}]
        got = client.chat.completions.create(
            model="demo", messages=messages, max_tokens=60, **GREEDY
        )
        return str(got.choices[0].message.content)

    one_by_one = [answer(text) for text in questions]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, questions)) == one_by_one


def long_answer(**more: Any) -> dict[str, Any]:
    """Asks for what only cancelling ends soon."""
    with flashmoe.Model(flashmoe.demo_model_path()) as model:
        ends = {str(token): -100 for token in model.tokenizer.eos_token_ids}
    return {"prompt": "Once", "max_tokens": 3000, "temperature": 1.9, "logit_bias": ends, **more}


def endless(port: int, **more: Any) -> socket.socket:
    """A connection on which a long answer streams."""
    body = json.dumps(long_answer(stream=True, logprobs=5, **more)).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(head.encode() + body)
    assert b"200 OK" in connection.recv(64)
    return connection


def test_a_follow_up_turn_evaluates_what_is_new(model: flashmoe.Model, tmp_path: Any) -> None:
    long = [{"role": "user", "content": "The expert loader reads what it needs. " * 60}]

    def usage(port: int, messages: list[Any]) -> tuple[str, int, int]:
        asked = {"messages": messages, "max_tokens": 12, **GREEDY}
        got = ask(port, "/v1/chat/completions", asked)[2]
        details = got["usage"]["prompt_tokens_details"]
        text = got["choices"][0]["message"]["content"]
        return text, got["usage"]["prompt_tokens"], details["cached_tokens"]

    kept = {"prefix_memory": 50_000_000, "prefix_directory": str(tmp_path), "prefix_disk": 10**8}
    with serving(model, **kept) as port:
        text, prompt, cached = usage(port, long)
        assert cached == 0
        again = usage(port, long)
        assert again[0] == text
        assert prompt - 16 < again[2] < prompt
        more = [*long, {"role": "assistant", "content": text}, *QUESTION]
        assert usage(port, more)[2] > prompt - 16
    with serving(model, **kept) as port:  # another day
        assert usage(port, long)[2] > prompt - 16
    with serving(model, prefix_memory=0) as port:
        usage(port, long)
        assert usage(port, long) == (text, prompt, 0)


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_who_goes_is_not_computed_for(model: flashmoe.Model) -> None:
    with serving(model) as port:
        running = lambda: ask(port, "/api/status")[2]["running"]  # noqa: E731
        connection = endless(port)
        until(lambda: running() == 1)
        connection.close()
        until(lambda: running() == 0)
        quiet = socket.create_connection(("127.0.0.1", port))
        body = json.dumps(long_answer()).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        quiet.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: running() == 1)
        quiet.close()
        until(lambda: running() == 0)
        assert 'flashmoe_requests_total{outcome="cancelled"} 2.0' in ask(port, "/metrics")[2]


def test_who_goes_before_the_end_of_a_body_is_no_error(
    model: flashmoe.Model, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(model) as port:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(head)
        until(lambda: 'refused_total{status="other"} 5.0' in ask(port, "/metrics")[2])
    assert not caplog.records


def test_the_queue_is_bounded(model: flashmoe.Model) -> None:
    with serving(model, queue=1, batch_size=1) as port:
        first = endless(port)
        second = socket.create_connection(("127.0.0.1", port))
        body = json.dumps({"prompt": "Once", "max_tokens": 1}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        second.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: ask(port, "/api/status")[2]["waiting"] == 1)
        status, headers, got = ask(port, "/v1/completions", {"prompt": "Once"})
        assert (status, got["error"]["code"]) == (503, "queue_full")
        assert int(headers["retry-after"]) > 0
        first.close()
        assert b"200 OK" in second.recv(64)
        second.close()


def test_who_does_not_read_is_given_up(model: flashmoe.Model) -> None:
    with serving(model, write_timeout=0.3) as port:
        connection = endless(port)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        until(lambda: ask(port, "/api/status")[2]["running"] == 0)
        connection.close()


def test_time_limits(model: flashmoe.Model) -> None:
    with serving(model, request_timeout=0.2, body_timeout=0.2) as port:
        status, _, got = ask(port, "/v1/completions", long_answer())
        assert (status, got["error"]["code"]) == (504, "timeout")
        until(lambda: ask(port, "/api/status")[2]["running"] == 0)
        slow = socket.create_connection(("127.0.0.1", port), timeout=30)
        slow.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
        )
        assert b" 408 " in slow.recv(64)
        slow.close()


def test_signs_of_life_while_nothing_is_said(model: flashmoe.Model) -> None:
    with serving(model, ping=0.05, batch_size=1) as port:
        busy = endless(port)
        waiting = endless(port, max_tokens=1)
        assert b": prefill 0/" in waiting.recv(4096) + waiting.recv(4096)
        busy.close()
        waiting.close()


# ---- who may ask ----------------------------------------------------------------------


def test_keys(model: flashmoe.Model) -> None:
    with serving(model, api_keys=("secret-one", "secret-two")) as port:
        for path in ("/v1/models", "/metrics", "/api/status", "/api/experts", "/none"):
            status, _, got = ask(port, path)
            assert (status, got["error"]["code"]) == (401, "invalid_api_key")
            assert ask(port, path, authorization="Bearer secret-onf")[0] == 401
            assert ask(port, path, authorization="secret-one")[0] == 401
        assert ask(port, "/v1/models", authorization="Bearer secret-two")[0] == 200
        assert ask(port, "/v1/models", x_api_key="secret-one")[0] == 200
        assert ask(port, "/health")[0] == 200
        status, _, got = ask(port, "/v1/messages", {})
        assert (status, got["error"]["type"]) == (401, "authentication_error")


def test_hosts_and_origins(model: flashmoe.Model) -> None:
    with serving(model, origins=("http://good.example",)) as port:
        for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil", "", "a/?x="):
            assert ask(port, "/v1/models", host=host)[0] == 403, host
        for host in ("localhost", f"LOCALHOST:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
            assert ask(port, "/v1/models", host=host)[0] == 200, host
        for origin in ("http://evil.example", "null", "http://good.example.evil", "file://"):
            assert ask(port, "/v1/models", origin=origin)[0] == 403, origin
        own = f"http://127.0.0.1:{port}"
        assert ask(port, "/v1/models", origin=own)[0] == 200
        status, headers, _ = ask(port, "/v1/models", origin="http://good.example")
        assert (status, headers["access-control-allow-origin"]) == (200, "http://good.example")
        preflight = ask(port, "/v1/models", method="OPTIONS", origin="http://good.example")
        assert preflight[0] == 204


def test_bodies_and_paths(model: flashmoe.Model) -> None:
    with serving(model, max_body=10_000) as port:
        assert ask(port, "/v1/completions", b"x" * 10_001)[0] == 413
        huge = socket.create_connection(("127.0.0.1", port), timeout=30)
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857600\r\n\r\n"
        )
        huge.sendall(head.encode())
        assert b" 413 " in huge.recv(64)
        huge.close()
        chunked = socket.create_connection(("127.0.0.1", port), timeout=30)
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunked.sendall(head.encode() + b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
        assert b" 413 " in chunked.recv(64)
        chunked.close()
        for path in (
            "/../etc/passwd",
            "/%2e%2e/%2e%2e/etc/passwd",
            "/page/../settings.py",
            "//etc",
        ):
            assert ask(port, path)[0] == 404, path
        headers = ask(port, "/health")[1]
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers or "uvicorn" in headers["server"]


def test_settings_are_checked() -> None:
    for wrong in ({"queue": 0}, {"ping": 0}, {"api_keys": ("",)}, {"api_keys": ("a b",)}):
        with pytest.raises(flashmoe.ArgumentError):
            Settings(**wrong)
