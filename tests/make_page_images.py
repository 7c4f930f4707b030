"""Take the screenshots of docs/images: the demo model's chats in the web page.

The demo model answers within a few frames, so the engine is slowed for what is under way.

Usage: python tests/make_page_images.py
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

import flashmoe
from chromium import browser
from flashmoe.server import Settings, create_app
from serving import serving_app

IMAGES = Path(__file__).parent.parent / "docs" / "images"
SIZE = {"width": 1280, "height": 800}
QUESTION = "What is a mixture of experts?"
RECIPE = "Give me a recipe for pancakes."
STORY = "Tell me a short story about a fox."


class Slow:
    """A service whose engine waits before each step, and whose streams may break off."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.pause = 0.0
        self.events_left = 10**9
        scheduler = app.state.service.engine._scheduler
        step = scheduler.step

        def slowly() -> Any:
            time.sleep(self.pause)
            return step()

        scheduler.step = slowly

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def passing(message: Any) -> None:
            if message.get("more_body"):
                self.events_left -= 1
                if self.events_left < 0:
                    raise ConnectionError("broken off")
            await send(message)

        await self._app(scope, receive, passing)


def ask(page: Any, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def ended(page: Any) -> None:
    expect(page.locator("#send")).to_be_visible(timeout=60_000)
    expect(page.locator(".answer[aria-busy=true]")).to_have_count(0)


def shoot(page: Any, name: str) -> None:
    page.wait_for_timeout(1500)  # the panel asks the server once more
    page.screenshot(path=IMAGES / f"page-{name}.png")
    page.close()


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with flashmoe.Model(flashmoe.demo_model_path(), memory="30MB") as model:
        slow = Slow(create_app(model, Settings(name="flashmoe-demo")))
        with serving_app(slow) as port, browser() as opened:

            def chat(scheme: str = "light") -> Any:
                page = opened.new_page(viewport=SIZE, color_scheme=scheme)
                page.goto(f"http://127.0.0.1:{port}/")
                page.fill("[name=temperature]", "0")
                return page

            page = chat()
            ask(page, QUESTION)
            ended(page)
            ask(page, RECIPE)
            ended(page)
            shoot(page, "finished")

            page = chat()
            page.select_option("[name=thinking]", "on")
            ask(page, RECIPE)
            ended(page)
            slow.pause = 0.05
            ask(page, STORY)
            expect(page.locator(".answer").last).to_contain_text("lost and far", timeout=60_000)
            shoot(page, "progress")

            page = chat("dark")
            ask(page, STORY)
            expect(page.locator(".answer").last).to_contain_text("lost and far", timeout=60_000)
            page.press("#prompt", "Escape")
            ended(page)
            shoot(page, "stopped")

            page = chat()
            slow.pause = 0.0
            ask(page, QUESTION)
            ended(page)
            slow.pause, slow.events_left = 0.02, 40
            ask(page, STORY)
            ended(page)
            shoot(page, "failed")


if __name__ == "__main__":
    main()
