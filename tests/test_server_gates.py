"""Who may ask the server, and what it tells those who may not: keys, hosts, origins, secrets."""

from __future__ import annotations

import itertools
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

import flashmoe
from flashmoe import errors

pytest.importorskip("uvicorn")

from asking import Client, asking

KEY = "a-key-of-the-test"
SECRET = "Zanzibar-41 is what only this prompt says"


@pytest.fixture(scope="module")
def model() -> Iterator[flashmoe.Model]:
    with flashmoe.Model(flashmoe.demo_model_path(), memory="200MB") as opened:
        yield opened


def routes(client: Client) -> list[tuple[str, str]]:
    """Every method and path that the application knows."""
    found = [
        (method, route.path.replace("{name:path}", "demo"))
        for route in client.app.routes
        for method in route.methods
    ]
    assert len(found) > 25
    return found


# ---- keys -----------------------------------------------------------------------------

WRONG: list[dict[str, str]] = [
    {},
    {"authorization": f"Bearer {KEY}x"},
    {"authorization": f"Bearer {KEY[:-1]}"},
    {"authorization": f"Bearer x{KEY[1:]}"},
    {"authorization": f"Bearer {KEY.upper()}"},
    {"authorization": f"Bearer {KEY} {KEY}"},
    {"authorization": f"Bearer {KEY},{KEY}"},
    {"authorization": f"Basic {KEY}"},
    {"authorization": KEY},
    {"authorization": "Bearer"},
    {"authorization": "Bearer "},
    {"authorization": "Bearer \xe9\xff"},
    {"x_api_key": ""},
    {"x_api_key": f"Bearer {KEY}"},
    {"cookie": f"key={KEY}; authorization={KEY}"},
    {"api_key": KEY},
]
RIGHT = [
    {"authorization": f"Bearer {KEY}"},
    {"authorization": f"bearer {KEY}"},
    {"x_api_key": KEY},
]


def test_every_route_wants_the_key(model: flashmoe.Model) -> None:
    with asking(model, api_keys=("other", KEY)) as client:
        known = routes(client)
        open_to_all = {"/health", "/"} | {path for _, path in known if re.search(r"\.\w+$", path)}
        shut = [(m, p) for m, p in known if p not in open_to_all]
        assert len(shut) >= 14
        for (method, path), given in itertools.product(shut, WRONG):
            status, headers, text = client.ask(method, path, **given)
            assert (status, headers["www-authenticate"]) == (401, "Bearer"), (method, path, given)
            assert KEY not in text
        for method, path in shut:
            for query in (f"?key={KEY}", f"?api_key={KEY}", f"?authorization=Bearer%20{KEY}"):
                assert client.ask(method, path + query)[0] == 401, (method, path, query)
            for given in RIGHT:
                body = {} if method == "POST" else None
                assert client.ask(method, path, body, **given)[0] in (200, 400), (method, path)
        for method, path in known:
            if path in open_to_all:
                assert client.ask(method, path)[0] == 200, (method, path)


def test_odd_paths_are_no_way_round_the_key(model: flashmoe.Model) -> None:
    paths = [
        "//v1/models", "/v1//models", "///v1/models", "/./v1/models", "/v1/./models",
        "/health/../v1/models", "/health/%2e%2e/v1/models", "/%2e%2e/v1/models", "/%2e/v1/models",
        "/v1%2fmodels", "/%76%31/models", "/v1/models/", "/v1/models;/health", "/v1/models%00",
        "/v1/models%3f/health", "/V1/MODELS", "/health/v1/models", "/health;/../v1/models",
        "/health%2f..%2fv1%2fmodels", "/page/../api/status", "/metrics/", "/api/status%20",
        "http://localhost/v1/models", "http://localhost/health/../v1/models", "/\\v1\\models",
        "/health%00/../v1/models", "/style.css/../v1/models", "/%ff%fe", "*", "/api/%65xperts",
        "/health%23/v1/models", "/v1/models?/health", "/v1/chat/completions/", "/%252e/v1/models",
    ]  # fmt: skip
    with asking(model, api_keys=(KEY,)) as client:
        for path in paths:
            for method in ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "X"):
                status, _, text = client.ask(method, path)
                assert status == 401, (method, path, status, text)
        for path in ("/health", "/%68ealth", "/health?x=/v1/models"):
            assert client.ask("GET", path)[0] == 200
        for host in ("localhost/?x=", "localhost/health?", "localhost#", "a@localhost", "a/?x="):
            assert client.ask("GET", "/v1/models", host=host)[0] == 403
            assert client.ask("GET", "/health", host=host)[0] == 403


# ---- hosts and origins -------------------------------------------------------------------

GOOD_HOSTS = [
    "localhost", "LocalHost", "localhost:80", "127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:1",
    "box.example", "BOX.example:8080",
]  # fmt: skip
BAD_HOSTS = [
    "", " ", ".", ":", ":8080", "evil.example", "localhost.evil.example", "evil.localhost",
    "localhost.", "xlocalhost", "localhostx", "127.0.0.1.evil.example", "127.0.0.2", "127.1",
    "2130706433", "0x7f000001", "0.0.0.0", "0", "10.0.0.1", "[::]", "[::1", "::1]", "[::1]x",
    "[::1]:", "[::1]:x", "[::ffff:127.0.0.1]", "[fe80::1]", "localhost:", "localhost:x",
    "localhost:80:80", "localhost:999999", "localhost:80@evil", "user@localhost", "localhost/",
    "localhost/x", "localhost?x", "localhost#x", "localhost\\x", "localhost,evil.example",
    "localhost evil", "http://localhost", "\xeflocalhost", "box.example.evil", "sub.box.example",
    "box.example..", "localhost%00", "localhost%2e", "*", "null", "x" * 5000,
]  # fmt: skip
GOOD_ORIGINS = ["http://localhost:8080", "https://localhost:8080", "https://app.example"]
BAD_ORIGINS = [
    "", "null", "file://", "http://evil.example", "http://localhost", "http://localhost:80801",
    "http://localhost:8080.evil", "http://localhost:8080/", "http://localhost:8080/x",
    "http://localhost:8080@evil.example", "http://evil@localhost:8080", "//localhost:8080",
    "localhost:8080", "ftp://localhost:8080", "chrome-extension://localhost:8080",
    "http://app.example", "https://app.example:444", "https://app.example.evil",
    "https://sub.app.example", "https://APP.example.", "https://app.example ,x", "http://[",
    "http://[::1", "http://]", "http://[evil]:8080", "http://\xe9", "*", "https://*",
    "https://app.example https://evil.example", "x" * 5000,
]  # fmt: skip


def test_hosts_and_origins(model: flashmoe.Model) -> None:
    allowed = {"hosts": ("localhost", "127.0.0.1", "[::1]", "Box.example")}
    with asking(model, origins=("https://app.example",), **allowed) as client:
        for path in ("/v1/models", "/health", "/"):
            for host in GOOD_HOSTS:
                assert client.ask("GET", path, host=host)[0] == 200, host
            for host in BAD_HOSTS:
                assert client.ask("GET", path, host=host)[0] in (400, 403), host
        for origin in GOOD_ORIGINS:
            got = client.ask("GET", "/v1/models", host="localhost:8080", origin=origin)
            assert got[0] == 200, origin
            allows = got[1].get("access-control-allow-origin")
            assert allows == (origin if origin == "https://app.example" else None)
        for method, origin in itertools.product(("GET", "POST", "OPTIONS"), BAD_ORIGINS):
            got = client.ask(method, "/v1/models", host="localhost:8080", origin=origin)
            assert got[0] == 403, (method, origin)
            assert "access-control-allow-origin" not in got[1]


# ---- what an error tells ------------------------------------------------------------------

PATH = "/home/somebody/models/secret-model/experts.bin"


def _failures() -> Iterator[BaseException]:
    """What may go wrong inside, with all the words that must not get out."""
    words = f"{PATH}: layer 3, expert 7 at 0x7f3a5c001000; {SECRET}"
    for kind in (
        errors.ExpertReadError, errors.ReadError, errors.IntegrityError, errors.ModelFormatError,
        errors.DeviceError, errors.NumericalError, errors.LockedError, errors.FlashMoEError,
        errors.ForkedProcessError, OSError, RuntimeError, KeyError, ValueError, MemoryError,
        AssertionError, ZeroDivisionError, RecursionError, UnicodeError, TypeError, TimeoutError,
    ):  # fmt: skip
        yield kind(words)


@pytest.mark.parametrize("where", ["_request", "new_session", "_evaluate"])
def test_internal_errors_tell_nothing(
    model: flashmoe.Model, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In the five interfaces, before an answer and in its stream."""
    caplog.set_level(logging.INFO)
    told = 0
    conversation = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 4}
    requests = [
        ("/v1/chat/completions", conversation),
        ("/v1/completions", {"prompt": SECRET, "max_tokens": 4}),
        ("/v1/responses", {"input": SECRET, "max_output_tokens": 4}),
        ("/v1/messages", conversation),
    ]
    with asking(model) as client:
        service = client.app.state.service
        for (path, body), error in itertools.product(requests, _failures()):

            def fail(*args: Any, error: BaseException = error, **kwargs: Any) -> Any:
                raise error

            with pytest.MonkeyPatch.context() as patch:
                scheduler = service.engine._scheduler
                owner = {"_request": service, "_evaluate": scheduler}.get(where, service.model)
                patch.setattr(owner, where, fail)
                for stream in (False, True):
                    status, _, text = client.ask("POST", path, {**body, "stream": stream})
                    assert status == 500 or (status == 200 and stream), (path, error, text)
                    assert "error" in text
                    for secret in (PATH, "secret-model", "0x7f", "Zanzibar", "Traceback", ".py"):
                        assert secret not in text, (path, error, text)
                    told += 1
    assert told == 160
    said = [line for record in caplog.records for line in _lines(record)]
    assert any(PATH in line for line in said), "the log has the details"


def _lines(record: logging.LogRecord) -> Iterator[str]:
    yield record.getMessage()
    if record.exc_info:
        yield "".join(traceback.format_exception(*record.exc_info))


def test_prompts_are_not_in_the_log(
    model: flashmoe.Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    chat = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 2}
    with asking(model) as client:
        assert client.ask("POST", "/v1/chat/completions", chat)[0] == 200
        assert client.ask("POST", "/v1/chat/completions", {**chat, "stream": True})[0] == 200
        assert client.ask("POST", "/v1/chat/completions", {**chat, "n": SECRET})[0] == 400
        assert client.ask("POST", "/v1/completions", {"prompt": SECRET, "stop": [""]})[0] == 400
        assert client.ask("POST", "/v1/messages", {**chat, "max_tokens": 1})[0] == 200
        assert client.ask("POST", "/v1/responses", {"input": SECRET, "max_output_tokens": 1})[0]
    assert not [r for r in caplog.records if any("Zanzibar" in line for line in _lines(r))]


# ---- what it counts -----------------------------------------------------------------------


def test_metrics_do_not_grow(model: flashmoe.Model) -> None:
    with asking(model, hosts=None) as client:

        def shape() -> list[str]:
            return [
                line.rpartition(" ")[0] for line in client.ask("GET", "/metrics")[2].split("\n")
            ]

        before = shape()
        for i in range(1500):
            method = f"M{i}" if i % 3 else ("GET", "POST", "HEAD")[i % 9 // 3]
            client.ask(method, f"/p{i}/{i * 7919:x}?{i}", host=f"h{i}.example", x=f"v{i}" * 9)
        assert shape() == before
        assert len("\n".join(before)) < 20_000


# ---- nobody is called ----------------------------------------------------------------------

CALLED: list[str] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request", "subprocess.Popen"):
        CALLED.append(f"{event} {arguments}")


def test_what_a_request_names_is_not_fetched(model: flashmoe.Model) -> None:
    address = "http://198.51.100.7/x.png"
    parts: list[Any] = [
        {"type": "image_url", "image_url": {"url": address}},
        {"type": "image_url", "image_url": address},
        {"type": "input_image", "image_url": address},
        {"type": "input_file", "file_url": address},
        {"type": "file_url", "file_url": {"url": "file:///etc/passwd"}},
        {"type": "file", "file": {"file_id": "x"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "video_url", "video_url": {"url": address}},
        {"type": "image", "source": {"type": "url", "url": address}},
        {"type": "document", "source": {"type": "url", "url": address}},
        {"type": "container_upload", "file_id": "x"},
        {"type": None, "url": address},
        {"url": address},
    ]
    tools: list[Any] = [
        {"type": "web_search"},
        {"type": "mcp", "server_url": address},
        {"type": "web_fetch_20250910", "name": "web_fetch"},
    ]
    with asking(model) as client:
        assert client.ask("GET", "/health")[0] == 200
        sys.addaudithook(_audit)
        CALLED.clear()
        for part in parts:
            said = [{"role": "user", "content": [part]}]
            for path, body in (
                ("/v1/chat/completions", {"messages": said}),
                ("/v1/messages", {"messages": said, "max_tokens": 4}),
                ("/v1/responses", {"input": said}),
                ("/v1/responses", {"input": [part]}),
            ):
                status, _, text = client.ask("POST", path, {**body, "model": "demo"})
                assert status == 400, (path, part, text)
        for tool in tools:
            said = [{"role": "user", "content": "x"}]
            for path, body in (
                ("/v1/chat/completions", {"messages": said}),
                ("/v1/messages", {"messages": said, "max_tokens": 4}),
                ("/v1/responses", {"input": "x"}),
            ):
                assert client.ask("POST", path, {**body, "tools": [tool]})[0] == 400, tool
        assert not [call for call in CALLED if "127.0.0.1" not in call]
