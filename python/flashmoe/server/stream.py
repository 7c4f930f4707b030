"""Server-sent events that end when the client goes, and a client that does not read."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from flashmoe.server.service import Progress, Running

_log = logging.getLogger(__name__)

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


def data(value: Any, event: str | None = None) -> bytes:
    """One event.

    Args:
        value: Becomes JSON.
        event: Its name, if it has one.
    """
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def sign_of_life(progress: Progress) -> bytes:
    """A comment, which clients skip: how far the prompt is.

    Args:
        progress: Of the prompt.
    """
    return f": prefill {progress.done}/{progress.total}\n\n".encode()


class EventStream(Response):
    """Sends what a generator yields, as long as there is somebody who reads it."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], running: Running, write_timeout: float
    ) -> None:
        """Prepare.

        Args:
            events: What is sent.
            running: Whose updates these are; closed whatever happens.
            write_timeout: Seconds for the client to take one event; then it is given up.
        """
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._running = running
        self._timeout = write_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it.

        Args:
            scope: Of ASGI.
            receive: Tells when the client goes.
            send: To the client.
        """

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        async def write(message: dict[str, Any]) -> None:
            with anyio.fail_after(self._timeout):
                await send(message)

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(until_gone)
                await write(
                    {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                )
                async for event in self._events:
                    await write({"type": "http.response.body", "body": event, "more_body": True})
                await write({"type": "http.response.body", "body": b"", "more_body": False})
                group.cancel_scope.cancel()
        except* TimeoutError:
            _log.info("a client did not read its answer for %g s; it is given up", self._timeout)
        finally:
            self._running.close()
            with anyio.CancelScope(shield=True):
                await self._events.aclose()
