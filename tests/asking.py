"""Requests to an application without a network between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import unquote

import flashmoe
from flashmoe.server import Settings, create_app


class Answer(NamedTuple):
    """A response."""

    status: int
    headers: dict[str, str]
    text: str


class Client:
    """Asks an application, with headers and paths as they are given."""

    def __init__(self, app: Any, runner: asyncio.Runner) -> None:
        self.app = app
        self._runner = runner

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request; underscores in names of headers are hyphens."""
        raw = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        return self._runner.run(self._ask(method, path, raw, {"host": "localhost", **headers}))

    async def _ask(self, method: str, path: str, raw: bytes, headers: dict[str, str]) -> Answer:
        target, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(target),
            "raw_path": target.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (name.replace("_", "-").encode(), value.encode("latin-1"))
                for name, value in headers.items()
            ],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        waiting = [{"type": "http.request", "body": raw, "more_body": False}]
        sent: list[dict[str, Any]] = []

        async def receive() -> Any:
            if waiting:
                return waiting.pop()
            return await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        told = {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
        text = b"".join(message.get("body", b"") for message in sent[1:]).decode()
        return Answer(sent[0]["status"], told, text)


@contextmanager
def asking(model: flashmoe.Model, **settings: Any) -> Iterator[Client]:
    """A client of a server of the model."""
    app = create_app(model, Settings(name="demo", **settings))
    with asyncio.Runner() as runner:
        try:
            yield Client(app, runner)
        finally:
            app.state.service.close()
