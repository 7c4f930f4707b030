"""A model behind the HTTP interfaces that OpenAI's and Anthropic's clients speak.

Needs the extra ``server``: ``pip install "flashmoe[server]"``. ``flashmoe serve`` runs it;
:func:`create_app` gives the ASGI application to run elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashmoe.server.app import create_app
    from flashmoe.server.settings import Settings

__all__ = ["Settings", "create_app"]


def __getattr__(name: str) -> Any:
    if name == "create_app":
        from flashmoe.server.app import create_app

        return create_app
    if name == "Settings":
        from flashmoe.server.settings import Settings

        return Settings
    raise AttributeError(f"module 'flashmoe.server' has no attribute {name!r}")
