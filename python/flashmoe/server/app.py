"""The application: which path is answered by what."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flashmoe.model import Model
from flashmoe.server import anthropic
from flashmoe.server.endpoint import Call, endpoint
from flashmoe.server.failures import Failure
from flashmoe.server.guard import Guard
from flashmoe.server.openai_chat import chat_completions
from flashmoe.server.openai_responses import Responses
from flashmoe.server.openai_text import completions
from flashmoe.server.page_files import page_routes
from flashmoe.server.service import Service
from flashmoe.server.settings import Settings


def create_app(
    model: Model | str | os.PathLike[str], settings: Settings | None = None, **options: Any
) -> Starlette:
    """An ASGI application that serves a model.

    Args:
        model: An open model, which stays open; or a directory or repository, which is opened now
            and closed when the application shuts down.
        settings: Limits; ``None``: the defaults, for this machine only.
        **options: Of :class:`flashmoe.Model`, where it is to be opened.

    Raises:
        FlashMoEError: The model cannot be opened.
    """
    settings = settings or Settings()
    own = not isinstance(model, Model)
    opened = model if isinstance(model, Model) else Model(model, **options)
    service = Service(opened, settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await run_in_threadpool(service.close)
            if own:
                opened.close()

    page = page_routes()
    public = frozenset({"/health", *(route.path for route in page)})
    responses = Responses(service)
    routes = [
        Route("/health", _health(service)),
        Route("/metrics", _metrics(service)),
        Route("/api/status", endpoint(service, _status)),
        Route("/api/experts", endpoint(service, _experts)),
        Route("/v1/models", endpoint(service, _models)),
        Route("/v1/models/{name:path}", endpoint(service, _one_model)),
        Route("/v1/chat/completions", endpoint(service, chat_completions), methods=["POST"]),
        Route("/v1/completions", endpoint(service, completions), methods=["POST"]),
        Route("/v1/responses", endpoint(service, responses.create), methods=["POST"]),
        Route("/v1/messages", _messages(service, anthropic.messages), methods=["POST"]),
        Route(
            "/v1/messages/count_tokens",
            _messages(service, anthropic.count_tokens),
            methods=["POST"],
        ),
        *page,
    ]
    guard = Middleware(Guard, settings=settings, metrics=service.metrics, public=public)
    app = Starlette(
        routes=routes,
        middleware=[guard],
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error},
    )
    app.state.service = service
    return app


def _messages(service: Service, handler: Any) -> Any:
    return endpoint(service, handler, Failure.anthropic)


def _health(service: Service) -> Any:
    async def answer(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return answer


def _metrics(service: Service) -> Any:
    async def answer(request: Request) -> Response:
        text = await run_in_threadpool(service.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return answer


def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    known = {404: "there is no such path", 405: "this path takes another method"}
    failure = Failure(status, known.get(status, str(error)))
    return JSONResponse(failure.openai(), status)


def _model_entry(service: Service) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": service.started,
        "owned_by": "flashmoe",
        "context_length": service.model.context_length,
    }


async def _models(call: Call) -> Response:
    return JSONResponse({"object": "list", "data": [_model_entry(call.service)]})


async def _one_model(call: Call) -> Response:
    call.service.check_name(call.http.path_params["name"])
    return JSONResponse(_model_entry(call.service))


async def _status(call: Call) -> Response:
    service = call.service
    info = await run_in_threadpool(service.model.info)
    names = ("device", "kernels", "memory", "held_bytes", "expert_slots", "experts_per_token")
    return JSONResponse(
        {
            "model": service.name,
            "context_length": service.model.context_length,
            "running": service.engine.running,
            "waiting": service.engine.waiting,
            **{name: info[name] for name in names},
        }
    )


async def _experts(call: Call) -> Response:
    counts = await run_in_threadpool(call.service.model.expert_uses)
    layers, experts = counts.shape
    return JSONResponse({"layers": layers, "experts": experts, "counts": counts.tolist()})
