"""The web page in a real browser: chats, stops, failures, hostile text, keys."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import expect

import flashmoe
from chromium import browser as open_browser
from chromium import chromium, make_endless
from serving import serving

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="there is no Chromium here: apt-get install chromium-headless-shell"
)

CHAT = "**/v1/chat/completions"
RECIPE = "Give me a recipe for pancakes."
STORY = "Tell me a short story about a fox."


@pytest.fixture(scope="module")
def model() -> Iterator[flashmoe.Model]:
    with flashmoe.Model(flashmoe.demo_model_path(), memory="200MB") as opened:
        yield opened


@pytest.fixture(scope="module")
def address(model: flashmoe.Model) -> Iterator[str]:
    with serving(model) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages; in the end none of them has had an error or broken its security policy."""
    contexts = []
    wrong: list[str] = []

    def listen(message: Any) -> None:
        # The browser itself logs every status of an error; the page shows it to the user.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            wrong.append(message.text)

    def make(address: str, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", listen)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        return page

    yield make
    for context in contexts:
        context.close()
    assert not wrong


@pytest.fixture
def page(new_page: Callable[..., Any], address: str) -> Any:
    opened = new_page(address)
    expect(opened.locator("#model")).to_have_text("demo")
    return opened


def ask(page: Any, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def ended(page: Any, answers: int = 1) -> Any:
    """The last answer, when so many are there and it has ended."""
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(answers)
    expect(page.locator("#send")).to_be_visible()
    return page.locator(".answer").last


def get(address: str, **headers: str) -> tuple[int, Any, str]:
    try:
        with urlopen(
            Request(address, headers={n.replace("_", "-"): v for n, v in headers.items()})
        ) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.headers, ""


def running(address: str) -> int:
    return int(json.loads(get(f"{address}api/status")[2])["running"])


def stream(*events: Any, whole: bool = True) -> dict[str, Any]:
    """An answer of the server, for a route: text becomes a delta."""
    chunks = [{"choices": [{"delta": {"content": e}}]} if isinstance(e, str) else e for e in events]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    done = "data: [DONE]\n\n" if whole else ""
    return {"content_type": "text/event-stream", "body": "".join(lines) + done}


def test_files_come_with_their_types_and_are_asked_for_once(address: str) -> None:
    text = get(address)[2]
    names = re.findall(r'(?:src|href)="([\w.]+)"', text)
    assert {"page.js", "page.css", "icon.svg"} <= set(names)
    kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    for name in ("", *names):
        code, headers, _ = get(address + name)
        kind = kinds.get(name.partition(".")[2], "text/html")
        assert (code, headers["content-type"].split(";")[0]) == (200, kind)
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-cache"
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        for rule in ("default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"):
            assert rule in policy
        assert get(address + name, If_None_Match=headers["etag"])[0] == 304
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! type=\"module\" src=)", text)


def test_a_chat(page: Any) -> None:
    page.fill("[name=temperature]", "0")
    ask(page, RECIPE)
    answer = ended(page)
    assert answer.locator("ol > li").count() == 4
    stats = answer.locator(".stats").inner_text()
    for part in (
        r"[\d.]+ tok/s",
        r"\d\d tokens",
        r"prompt \d+",
        r"\d+ % expert hits",
        r"[KM]B read",
    ):
        assert re.search(part, stats), (part, stats)
    expect(page.locator("#heat-readout")).to_contain_text("of 256 experts used. Most: layer")
    painted = page.evaluate(
        """() => {
            const map = document.querySelector('#heat-map');
            const {data} = map.getContext('2d').getImageData(0, 0, map.width, map.height);
            return new Set(new Uint32Array(data.buffer)).size;
        }"""
    )
    assert painted > 4
    assert page.locator("#log").get_attribute("aria-live") == "polite"
    assert page.inner_text("#status") == "The answer is complete"
    ask(page, STORY)
    assert re.search(r"prompt \d+, \d+ cached", ended(page, 2).locator(".stats").inner_text())
    page.reload()
    assert page.locator(".answer").count() == 2
    page.click("#new-chat")
    assert page.locator(".answer").count() == 0
    assert page.is_visible("#welcome")


def test_an_answer_streams_and_stop_ends_it_in_the_server(page: Any, address: str) -> None:
    page.route(CHAT, make_endless)
    for stop in (lambda: page.click("#stop"), lambda: page.keyboard.press("Escape")):
        ask(page, STORY)
        expect(page.locator(".live")).to_contain_text("Writing")
        text = page.locator(".answer > .markdown")
        expect(text).not_to_have_text(text.inner_text())
        assert running(address) == 1
        stop()
        answer = ended(page)
        deadline = time.monotonic() + 5
        while running(address):
            assert time.monotonic() < deadline
        assert "Stopped." in answer.inner_text()
        assert len(text.inner_text()) > 10
        page.click("#new-chat")
    page.unroute(CHAT)


def test_reasoning_folds(page: Any) -> None:
    page.select_option("[name=thinking]", "on")
    ask(page, STORY)
    answer = ended(page)
    fold = answer.locator("details")
    assert fold.locator("summary").inner_text().startswith("Thought")
    assert fold.get_attribute("open") is None
    fold.locator("summary").click()
    assert fold.locator(".markdown").inner_text()
    page.reload()
    assert page.input_value("[name=thinking]") == "on"


def test_settings_are_sent_and_checked(page: Any) -> None:
    page.fill("[name=system]", "Be short.")
    page.fill("[name=temperature]", "7")
    ask(page, RECIPE)
    assert page.locator(".question").count() == 0
    page.fill("[name=temperature]", "0.5")
    page.fill("[name=max_tokens]", "3")
    with page.expect_request(CHAT) as request:
        page.press("#prompt", "Enter")
    body = json.loads(request.value.post_data)
    assert body["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": RECIPE},
    ]
    assert (body["temperature"], body["max_tokens"], body["stream"]) == (0.5, 3, True)
    assert not {"seed", "top_p", "enable_thinking", "thinking", "system"} & body.keys()
    assert "limit of tokens" in ended(page).inner_text()


def test_progress_of_a_long_prompt(page: Any) -> None:
    page.evaluate(
        """() => {
            window.told = [];
            const look = () => {
                const bar = document.querySelector('progress');
                if (bar && !bar.hidden) window.told.push([bar.value, bar.max]);
            };
            new MutationObserver(look).observe(document.querySelector('#log'),
                {subtree: true, attributes: true});
        }"""
    )
    ask(page, "The loader reads what it needs. " * 400)
    ended(page)
    told = page.evaluate("window.told")
    assert told and all(0 <= done <= total > 2000 for done, total in told)
    assert len({done for done, _ in told}) > 1


def test_failures_are_shown_and_can_be_tried_again(page: Any) -> None:
    error = {"error": {"message": "the queue is full"}}
    busy = {"status": 503, "json": error, "headers": {"Retry-After": "5"}}
    for reply, text in (
        (lambda route: route.fulfill(**busy), "The queue is full. Try again in 5 s."),
        (lambda route: route.fulfill(status=502, body="<html>Bad"), "The server answered 502."),
        (lambda route: route.fulfill(**stream("One", error)), "the queue is full"),
        (
            lambda route: route.fulfill(**stream("One", whole=False)),
            "before the answer was complete",
        ),
        (lambda route: route.abort(), "The server cannot be reached."),
    ):
        page.route(CHAT, reply)
        ask(page, RECIPE)
        answer = ended(page)
        assert text in answer.locator(".error").inner_text()
        page.unroute(CHAT)
        answer.get_by_text("Try again", exact=True).click()
        assert ended(page).locator(".stats").count() == 1
        assert page.locator(".error").count() == 0
        page.click("#new-chat")


HOSTILE = """
<script>window.hit = 1</script><img src=x onerror="window.hit = 2"><svg onload=window.hit=3>
[a](javascript:window.hit=4) [b](JaVaScRiPt:window.hit=5)
[c](data:text/html,<script>window.hit=6</script>)
[d](https://example.com/" onclick="window.hit=7) ![e](https://example.com/e.png)
<https://example.com/f>
<iframe srcdoc="<script>parent.hit = 8</script>"></iframe> [g](vbscript:x) [h](//example.com)

| <b onmouseover=window.hit=9>x</b> | y |
|---|--:|
| <style>body{display:none}</style> | `<i>` |

```html" onclick="window.hit=10
<script>window.hit = 11</script>
```
"""


def test_what_a_model_writes_stays_inert(page: Any) -> None:
    deltas = [HOSTILE[at : at + 7] for at in range(0, len(HOSTILE), 7)]
    page.route(CHAT, lambda route: route.fulfill(**stream(*deltas)))
    ask(page, HOSTILE)
    answer = ended(page)
    inside = page.locator("#log")
    assert inside.locator("script, img, svg, iframe, style, b, i").count() == 0
    for link in inside.locator("a").all():
        assert link.get_attribute("href").startswith("https://example.com/")
        assert link.get_attribute("rel") == "noopener noreferrer"
    assert inside.locator("a").count() == 3
    names = inside.evaluate(
        "log => [...log.querySelectorAll('*')].flatMap(node => node.getAttributeNames())"
    )
    assert not [name for name in names if name.startswith("on") or name == "style"]
    answer.locator("th").first.hover()
    answer.locator(".code code").click()
    text = answer.inner_text()
    for part in ("<script>window.hit = 1</script>", "[a](javascript:window.hit=4)", "<b onmouse"):
        assert part in text
    assert page.evaluate("window.hit") is None


MARKDOWN = """# Title
Some *em*, **strong with *em* inside**, ***both***, ~~gone~~, `a * b`, snake_case_name, 2 * 3 * 4.
A second line with [a link](https://example.com/a_(b)) and https://example.com/x.

- one
  - inner
    ```python
    print("hi")

    ```
- two

3. three
4. four

> quoted
> **text**

| a | b |
|:-:|--:|
| 1 | 2 \\| 3 |
---
```
open
"""


def test_markdown(page: Any) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    deltas = [MARKDOWN[at : at + 3] for at in range(0, len(MARKDOWN), 3)]
    page.route(CHAT, lambda route: route.fulfill(**stream(*deltas)))
    ask(page, "Show all.")
    answer = ended(page)
    shape = answer.locator(".markdown").last.evaluate(
        """root => (function walk(node) {
            if (node.nodeType === 3) return node.data;
            if (node.matches('.code')) return `<code ${node.querySelector('span').textContent}>`
                + node.querySelector('code').textContent + '</code>';
            const name = node.tagName.toLowerCase();
            return `<${name}>${[...node.childNodes].map(walk).join('')}</${name}>`;
        })(root)"""
    )
    assert shape == (
        "<div><h3>Title</h3>"
        "<p>Some <em>em</em>, <strong>strong with <em>em</em> inside</strong>,"
        " <strong><em>both</em></strong>, <s>gone</s>, <code>a * b</code>, snake_case_name,"
        " 2 * 3 * 4.\nA second line with <a>a link</a> and <a>https://example.com/x</a>.</p>"
        '<ul><li>one<ul><li>inner<code python>print("hi")\n</code></li></ul></li>'
        "<li>two</li></ul>"
        "<ol><li>three</li><li>four</li></ol>"
        "<blockquote><p>quoted\n<strong>text</strong></p></blockquote>"
        "<div><table><thead><tr><th>a</th><th>b</th></tr></thead>"
        "<tbody><tr><td>1</td><td>2 | 3</td></tr></tbody></table></div>"
        "<hr></hr><code text>open\n</code></div>"
    )
    assert answer.locator("ol").get_attribute("start") == "3"
    answer.locator(".code button").first.click()
    answer.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == 'print("hi")\n'


def test_long_and_odd_text_is_parsed_quickly(page: Any) -> None:
    pieces = (
        "*a **b ",
        "[",
        "[a](",
        "`" * 9 + " ",
        "~~x",
        "_a",
        "> ",
        "- ",
        "|a|\n|-|\n",
        "http://",
    )
    took = page.evaluate(
        """async pieces => {
            const { MarkdownView } = await import('/markdown.js');
            return pieces.map(piece => {
                const start = performance.now();
                new MarkdownView().update(piece.repeat(20000 / piece.length));
                return performance.now() - start;
            });
        }""",
        pieces,
    )
    assert max(took) < 1000, dict(zip(pieces, took, strict=True))


def test_the_key_is_asked_for(model: flashmoe.Model, new_page: Callable[..., Any]) -> None:
    with serving(model, api_keys=("secret-one",)) as port:
        page = new_page(f"http://127.0.0.1:{port}/")
        for key in ("wrong", "secret-one"):
            page.wait_for_selector("#key-dialog[open]")
            page.fill("#key", key)
            page.press("#key", "Enter")
        expect(page.locator("#model")).to_have_text("demo")
        assert not page.is_visible("#key-dialog")
        ask(page, RECIPE)
        assert ended(page).locator(".stats").count() == 1
        kept = page.evaluate("[JSON.stringify(localStorage), JSON.stringify(sessionStorage)]")
        assert ["secret-one" in one for one in kept] == [False, True]


def test_a_phone_and_the_dark(new_page: Callable[..., Any], address: str, page: Any) -> None:
    phone = new_page(address, viewport={"width": 360, "height": 740}, color_scheme="dark")
    ask(phone, RECIPE)
    ended(phone)
    width = "document.documentElement.scrollWidth"
    assert phone.evaluate(width) == 360
    assert not phone.is_visible("#panel")
    phone.click("#panel-toggle")
    assert phone.is_visible("#heat-map")
    assert phone.locator("#panel").bounding_box()["x"] >= 0
    assert phone.evaluate(width) == 360
    phone.keyboard.press("Escape")
    assert not phone.is_visible("#panel")
    light, dark = (
        one.evaluate("getComputedStyle(document.body).backgroundColor") for one in (page, phone)
    )
    assert light == "rgb(251, 250, 248)" and dark == "rgb(25, 24, 22)"


def test_shift_enter_begins_a_line(page: Any) -> None:
    page.fill("#prompt", "one")
    height = page.locator("#prompt").bounding_box()["height"]
    page.press("#prompt", "Shift+Enter")
    page.keyboard.type("two")
    assert page.input_value("#prompt") == "one\ntwo"
    assert page.locator("#prompt").bounding_box()["height"] > height
    page.keyboard.press("Enter")
    assert page.inner_text(".question") == "one\ntwo"
    ended(page)
