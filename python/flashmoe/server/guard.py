"""Who may ask: names in the Host header, pages' origins, keys; before all else."""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flashmoe.server.endpoint import presented_key
from flashmoe.server.failures import Failure
from flashmoe.server.metrics import Metrics
from flashmoe.server.settings import Settings

SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^][:/?#@\s]+)(:[0-9]{1,5})?")


class Guard:
    """Lets through what may pass, and marks every response."""

    def __init__(
        self, app: ASGIApp, settings: Settings, metrics: Metrics, public: frozenset[str]
    ) -> None:
        """Stand before an application.

        Args:
            app: The application.
            settings: Who may ask.
            metrics: Told of refusals.
            public: Paths that need no key, and hold no secret.
        """
        self._app = app
        self._hosts = None if settings.hosts is None else {h.lower() for h in settings.hosts}
        self._origins = set(settings.origins)
        self._keys = [key.encode() for key in settings.api_keys]
        self._metrics = metrics
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Judge a request.

        Args:
            scope: Of ASGI.
            receive: The body.
            send: The response.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        marked = _marking(send, origin if origin in self._origins else None)
        response = self._judge(scope, headers, origin)
        await (response or self._app)(scope, receive, marked)

    def _judge(self, scope: Scope, headers: Headers, origin: str | None) -> Response | None:
        """A refusal, or the answer to a question about what is allowed; None to go on."""
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            return self._refuse(scope, 403, f"the host {host[:200]!r} is not served here")
        own = origin in (f"http://{host}", f"https://{host}")
        if origin is not None and not own and origin not in self._origins:
            return self._refuse(scope, 403, f"pages of {origin[:200]!r} may not ask here")
        if scope["method"] == "OPTIONS" and origin in self._origins:
            return Response(status_code=204)
        if self._keys and scope["path"] not in self._public:
            presented = presented_key(headers).encode()
            matches = [hmac.compare_digest(presented, key) for key in self._keys]
            if not any(matches):
                return self._refuse(scope, 401, "the API key is missing or wrong")
        return None

    def _refuse(self, scope: Scope, status: int, message: str) -> Response:
        self._metrics.refused(status)
        failure = Failure(status, message, code="invalid_api_key" if status == 401 else None)
        anthropic = scope["path"].startswith("/v1/messages")
        body = failure.anthropic() if anthropic else failure.openai()
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        return JSONResponse(body, status, headers=headers)


def _name(host: str) -> str:
    """A Host header without its port; "" if it is none."""
    found = _HOST.fullmatch(host)
    return found[1].lower() if found else ""


def _marking(send: Send, origin: str | None) -> Callable[[Message], Awaitable[None]]:
    async def marked(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY.items():
                headers.setdefault(name, value)
            if origin is not None:
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS"
                headers["Access-Control-Allow-Headers"] = "authorization, content-type, x-api-key"
                headers["Cross-Origin-Resource-Policy"] = "cross-origin"
                headers.add_vary_header("Origin")
        await send(message)

    return marked
