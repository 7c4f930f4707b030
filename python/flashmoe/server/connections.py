"""uvicorn, with bounds on what a connection may do without asking anything."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from flashmoe.server.settings import Settings

MOST = 1024
"""Connections; more are answered with 503."""

_LOOK = 1.0  # seconds between looks at a connection


class Connection(H11Protocol):
    """Ends when its client sends no whole request, or takes nothing of what it was sent.

    uvicorn itself waits for both without end. What a client sends wrongly is answered, and not
    worth a line in the log.
    """

    settings: Settings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Wait for a client.

        Args:
            *args: Of uvicorn.
            **kwargs: Of uvicorn.
        """
        super().__init__(*args, **kwargs)
        self.logger = logging.getLogger("uvicorn.error.connections")
        self.logger.setLevel(logging.ERROR)
        self._since = self.loop.time()
        self._unsent = 0
        self._look_again: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there.

        Args:
            transport: To it.
        """
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            # asyncio does so only for sockets made otherwise than uvicorn's: without it a small
            # answer, or a token, waits 40 ms for the client's acknowledgement of the one before
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._look_again = self.loop.call_later(_LOOK, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone.

        Args:
            exc: Why.
        """
        if self._look_again is not None:
            self._look_again.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """It may ask again."""
        self._since = self.loop.time()
        super().on_response_complete()

    def _look(self) -> None:
        waited = self.loop.time() - self._since
        unsent = self.transport.get_write_buffer_size()
        answering = self.cycle is not None and not self.cycle.response_complete
        left = _LOOK
        if unsent:
            if unsent != self._unsent:
                self._since = self.loop.time()
            elif waited >= self.settings.write_timeout:
                self.transport.abort()
        elif not answering:
            left = self.settings.head_timeout - waited
            if left <= 0:
                self.transport.close()
        self._unsent = unsent
        self._look_again = self.loop.call_later(min(_LOOK, max(left, 0.01)), self._look)


def uvicorn_config(app: Any, settings: Settings, **options: Any) -> uvicorn.Config:
    """How uvicorn runs the application.

    Args:
        app: Of :func:`create_app`.
        settings: Limits.
        **options: Of ``uvicorn.Config``, such as host and port.
    """
    http = type("Connection", (Connection,), {"settings": settings})
    return uvicorn.Config(
        app,
        **{
            "log_level": "warning",
            "server_header": False,
            "http": http,
            "ws": "none",
            "timeout_keep_alive": 5,
            "timeout_graceful_shutdown": int(settings.grace),
            "limit_concurrency": MOST,
            **options,
        },
    )
