"""What every endpoint does: read the body, ask the service, and say what went wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from flashmoe.errors import FlashMoEError
from flashmoe.sampler import Sampler
from flashmoe.server.failures import Failure, failure_of
from flashmoe.server.fields import Fields, parse
from flashmoe.server.service import Piece, Running, Service

_log = logging.getLogger(__name__)

SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


@dataclass(frozen=True, slots=True)
class Call:
    """One request to an endpoint.

    Attributes:
        service: Answers it.
        http: The request.
        fields: Its body.
    """

    service: Service
    http: Request
    fields: Fields

    @property
    def client(self) -> str:
        """Who asks, for taking turns: by key, else by address."""
        key = presented_key(self.http.headers)
        return key or (self.http.client.host if self.http.client else "")

    async def start(self, prepare: Callable[[], Running]) -> Running:
        """Put a request into the queue.

        Args:
            prepare: Renders and encodes; runs on another thread.
        """
        with self.service.engine.reserve() as place:  # who is refused is refused before any work
            running = await run_in_threadpool(prepare)
            running.start(self.client, place)
        return running

    async def whole(
        self, running: Running, listen: Callable[[Piece], object] | None = None
    ) -> Piece:
        """Wait for the end of an answer; gives it up if the client goes.

        Args:
            running: Under way.
            listen: Called with every token.

        Returns:
            Its last token. The answer is in ``running``.
        """
        last: list[Piece] = []

        async def collect() -> None:
            async for update in running:
                if isinstance(update, Piece):
                    last[:] = [update]
                    if listen is not None:
                        listen(update)
            group.cancel_scope.cancel()

        async def until_gone() -> None:
            while (await self.http.receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(until_gone)
                group.start_soon(collect)
        except ExceptionGroup as errors:  # of one: the other task cannot fail
            raise errors.exceptions[0] from None
        finally:
            running.close()
        if not last or last[0].reason is None:
            raise Failure(499, "the client has gone")
        return last[0]


Handler = Callable[[Call], Awaitable[Response]]
Body = Callable[[Failure], dict[str, Any]]


def endpoint(
    service: Service, handler: Handler, body: Body = Failure.openai
) -> Callable[[Request], Awaitable[Response]]:
    """A function of requests out of one of calls.

    Args:
        service: Answers.
        handler: Does the work.
        body: How failures are written.
    """

    async def answer(request: Request) -> Response:
        try:
            fields = (
                parse(await _read(request, service)) if request.method == "POST" else Fields({})
            )
            return await handler(Call(service, request, fields))
        except (Failure, FlashMoEError) as error:
            failure = failure_of(error)
        except ClientDisconnect:
            failure = Failure(499, "the client has gone")
        except Exception as error:
            _log.exception("%s failed", request.scope["path"])
            failure = failure_of(error)
        service.metrics.refused(failure.status)
        return JSONResponse(body(failure), failure.status, headers=failure.headers)

    return answer


async def _read(request: Request, service: Service) -> bytes:
    """The body, within its limits of size and time."""
    settings = service.settings
    too_large = Failure(413, f"the body is larger than {settings.max_body} bytes")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > settings.max_body:
        raise too_large
    whole = bytearray()
    try:
        async with asyncio.timeout(settings.body_timeout):
            async for part in request.stream():
                whole += part
                if len(whole) > settings.max_body:
                    raise too_large
    except TimeoutError:
        raise Failure(408, f"no whole body within {settings.body_timeout:g} s") from None
    return bytes(whole)


def presented_key(headers: Mapping[str, str]) -> str:
    """The API key of a request, "" if it has none.

    Args:
        headers: Of the request.
    """
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")


def read_sampler(fields: Fields) -> Sampler:
    """How tokens are drawn; what is not given is the checkpoint's own.

    Args:
        fields: Of the request.
    """
    values: dict[str, Any] = {n: fields.any(n) for n in SAMPLING if fields.has(n)}
    bias = fields.object("logit_bias")
    if bias is not None:
        values["logit_bias"] = {
            _token(bias, n): bias.number(n, -100, 100) or 0.0 for n in bias.values
        }
    values["seed"] = fields.integer("seed", -(2**63), 2**64 - 1)
    return Sampler(**values)


def _token(fields: Fields, name: str) -> int:
    if not name.isdecimal() or len(name) > 9:
        raise fields.wrong(name, "named by a token id")
    return int(name)


def read_template_options(fields: Fields) -> dict[str, Any]:
    """Variables of the chat template.

    Args:
        fields: Of the request.
    """
    given = fields.object("chat_template_kwargs")
    options = dict(given.values) if given is not None else {}
    for name in ("messages", "tools", "documents", "add_generation_prompt"):
        if name in options:
            raise fields.wrong(
                f"chat_template_kwargs.{name}", "left out: it has a field of its own"
            )
    if fields.has("enable_thinking"):
        options["enable_thinking"] = fields.flag("enable_thinking")
    effort = fields.text("reasoning_effort")
    if effort is not None:
        options.update(_effort(fields, effort))
    return options


def _effort(fields: Fields, effort: str) -> dict[str, Any]:
    """OpenAI's words for how much to think, in those that templates know."""
    known = {"low": "low", "minimal": "low", "medium": "medium", "high": "xhigh", "xhigh": "xhigh"}
    if effort == "none":
        return {"enable_thinking": False}
    if effort not in known:
        raise fields.wrong("reasoning_effort", f"one of none, {', '.join(known)}")
    return {"reasoning_effort": known[effort]}
