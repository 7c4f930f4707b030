"""A server in a thread of the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

import flashmoe
from flashmoe.server import Settings, create_app
from flashmoe.server.connections import uvicorn_config


@contextmanager
def serving(model: flashmoe.Model, **settings: Any) -> Iterator[int]:
    """A model on a free port, which is given."""
    limits = Settings(name="demo", **settings)
    with serving_app(create_app(model, limits), limits) as port:
        yield port


@contextmanager
def serving_app(app: Any, settings: Settings | None = None) -> Iterator[int]:
    """An application on a free port, which is given."""
    options = {"port": 0, "log_level": "error", "timeout_graceful_shutdown": 2}
    config = uvicorn_config(app, settings or Settings(), **options)
    server = uvicorn.Server(config)
    bound = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield bound.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        bound.close()
