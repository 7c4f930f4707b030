"""A headless browser that looks at the server's web page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import flashmoe

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The machine's own Chromium."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Any]:
    """One that stays open for many pages; its waits end after ten seconds."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium())
        yield opened
        opened.close()


@cache
def endless() -> dict[str, Any]:
    """Fields of a request whose answer only cancelling ends soon."""
    with flashmoe.Model(flashmoe.demo_model_path()) as model:
        ends = {str(token): -100 for token in model.tokenizer.eos_token_ids}
    return {"max_tokens": 3000, "logit_bias": ends}


def make_endless(route: Any) -> None:
    """Let a request of the page pass, with the fields of :func:`endless`."""
    body = json.loads(route.request.post_data)
    route.continue_(post_data=json.dumps({**body, **endless()}))
