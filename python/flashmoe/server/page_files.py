"""The files of the web page, as they are sent."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


def page_routes() -> list[Route]:
    """A route for every file of the page; ``/`` is its beginning. They hold no secret."""
    folder = resources.files("flashmoe.server") / "page"
    return [
        _route(
            "/" if file.name == "index.html" else f"/{file.name}",
            file.read_bytes(),
            _TYPES[PurePath(file.name).suffix],
        )
        for file in folder.iterdir()
    ]


def _route(path: str, contents: bytes, kind: str) -> Route:
    # Kept by browsers, but asked for again: after an update nobody mixes old files with new.
    tag = f'"{hashlib.sha256(contents).hexdigest()[:32]}"'
    headers = {"Cache-Control": "no-cache", "ETag": tag}

    async def answer(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if tag in (one.strip().removeprefix("W/") for one in known.split(",")):
            return Response(status_code=304, headers=headers)
        return Response(contents, media_type=kind, headers=headers)

    return Route(path, answer)
