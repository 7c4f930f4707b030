"""Templates in a process of their own: the same text, and nothing that they do reaches further."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import flashmoe
import tiny
from flashmoe.chat import ChatTemplate
from flashmoe.errors import TemplateError
from flashmoe.template_worker import TemplateWorker

DATA = Path(__file__).parent / "data" / "chat"
USER = [{"role": "user", "content": "Hello"}]
PLAIN = "{{ messages[0].content }}{{ extra }}"

BOMBS = {
    "endless loop": "{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "sorting": "{% for i in range(99999) %}{{ range(99999)|sort|length }}{% endfor %}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(90) }}",
    "doubled list": "{% set ns = namespace(t=[1]) %}{% for i in range(60) %}"
    "{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.t|string|length }}",
    "lorem ipsum": "{{ lipsum(999999999) }}",
    "doubled text": "{% set ns = namespace(t='aaaaaaaa') %}{% for i in range(60) %}"
    "{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t|length }}",
    "padding": "{{ 'a'.ljust(10**12) }}",
    "format width": "{{ '{:>999999999}'.format('a') }}",
    "printf width": "{{ '%0999999999d' % 1 }}",
    "joining": "{{ range(99999)|map('string')|join('a' * 99999) }}",
    "indentation": "{{ ('a\\n' * 99999)|indent(9999999) }}",
    "JSON indentation": "{{ [[[[[1]]]]]|tojson(indent=999999999) }}",
    "batches": "{{ [1]|batch(999999999, 'aaaa')|list }}",
    "tabs": "{{ '\\t'.expandtabs(2147483647) }}",
    "bytes": "{{ (1).to_bytes(999999999) }}",
    "captured text": "{% set x %}{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}"
    "{% endset %}{{ x|length }}",
    "translation": "{{ ('a' * 999999).translate({97: 'b' * 99999})|length }}",
    "wrapping": "{{ ('a ' * 999999)|wordwrap(1, wrapstring='b' * 9999) }}",
    "deep brackets": "{{ " + "(" * 30000 + "1" + ")" * 30000 + " }}",
    "deep blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
}


@pytest.fixture(scope="module")
def worker() -> Iterator[TemplateWorker]:
    worker = TemplateWorker()
    yield worker
    worker.close()


def process(worker: TemplateWorker) -> int:
    """The process that has just rendered."""
    assert worker._process is not None
    return worker._process.pid


def highest_memory(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def outcome(template: ChatTemplate, *args: Any, **options: Any) -> str:
    try:
        return template.render(*args, **options)
    except TemplateError as error:
        return f"refused: {error}"


def test_text_and_refusals_are_those_of_this_process(worker: TemplateWorker) -> None:
    golden = json.loads((DATA / "golden.json").read_text(encoding="utf-8"))
    conversations = json.loads((DATA / "conversations.json").read_text(encoding="utf-8"))
    texts, refused = 0, 0
    for file in sorted((DATA / "templates").glob("*.jinja")):
        here = ChatTemplate(file.read_text(encoding="utf-8"), golden["special_tokens"])
        there = here.rendered_by(worker)
        for one in conversations:
            options = {"tools": one.get("tools"), **one.get("kwargs", {})}
            want = outcome(here, one["messages"], **options)
            assert outcome(there, one["messages"], **options) == want
            texts += 1
            refused += want.startswith("refused")
    assert texts > 300 and 0 < refused < texts / 2
    values = {"a": 1, "b": [1.5, True, None, "\ud800", "é\n\u2028", 10**300]}
    for source in (
        "{{ extra }}",
        "{{ extra|tojson }}",
        "{{ missing is defined }}",
        "{{ nothing }}",
    ):
        here = ChatTemplate(source)
        want = here.render(USER, extra=values, nothing=None)
        assert here.rendered_by(worker).render(USER, extra=values, nothing=None) == want


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_stopped(worker: TemplateWorker, name: str) -> None:
    plain = ChatTemplate(PLAIN, renderer=worker)
    assert plain.render(USER) == "Hello"
    before = process(worker)
    start = time.monotonic()
    with pytest.raises(TemplateError):
        ChatTemplate(BOMBS[name], renderer=worker).render(USER)
    assert time.monotonic() - start < 4  # 1.5 s, and what a loaded machine adds
    assert plain.render(USER) == "Hello"
    if process(worker) == before and Path("/proc/self/status").exists():
        assert highest_memory(before) <= worker.memory


def test_the_process_starts_again_and_ends_with_its_owner(worker: TemplateWorker) -> None:
    plain = ChatTemplate(PLAIN, renderer=worker)
    plain.render(USER)
    first = process(worker)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(TemplateError, match=r"more than 1\.5 s or 512 MB"):
        plain.render(USER)
    assert plain.render(USER) == "Hello"
    second = process(worker)
    assert second != first
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)
    assert plain.render(USER) == "Hello"


def test_threads_share_it(worker: TemplateWorker) -> None:
    plain = ChatTemplate(PLAIN, renderer=worker)

    def one(i: int) -> str:
        return plain.render(USER, extra=i)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(200))) == [f"Hello{i}" for i in range(200)]


def test_an_interrupted_call_leaves_no_answer_for_the_next(worker: TemplateWorker) -> None:
    slow = "{% for i in range(9999) %}{{ range(9999)|sort|length }}{% endfor %}"
    assert threading.current_thread() is threading.main_thread()
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        ChatTemplate(slow, renderer=worker).render(USER)
    timer.join()
    assert ChatTemplate(PLAIN, renderer=worker).render(USER) == "Hello"


def test_a_frozen_application_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TemplateWorker.possible()
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert not TemplateWorker.possible()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_the_process_is_told_no_secrets(
    worker: TemplateWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHMOE_TEST_SECRET", "hidden")
    worker.close()
    ChatTemplate(PLAIN, renderer=worker).render(USER)
    assert b"hidden" not in Path(f"/proc/{process(worker)}/environ").read_bytes()


@pytest.mark.parametrize("name", ["endless loop", "doubled text"])
def test_a_server_goes_on(tmp_path: Path, name: str) -> None:
    pytest.importorskip("uvicorn")
    from serving import serving

    path = tmp_path / "model"
    tiny.write(path, "qwen3_5_moe", seed=5, vocab_size=320)
    tiny.tokenizer(path, 320)
    source = "{% if messages[0].content == 'bomb' %}" + BOMBS[name] + "{% endif %}" + PLAIN
    (path / "chat_template.jinja").write_text(source)
    with flashmoe.Model(path, threads=1) as model, serving(model) as port:

        def fetch(method: str, path: str, body: object = None) -> tuple[int, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            with closing(connection):
                connection.request(method, path, json.dumps(body))
                answer = connection.getresponse()
                return answer.status, json.loads(answer.read())

        def ask(text: str) -> tuple[int, Any]:
            said = [{"role": "user", "content": text}]
            body = {"messages": said, "max_tokens": 4, "temperature": 0}
            return fetch("POST", "/v1/chat/completions", body)

        want = ask("Hello")[1]["choices"]
        with ThreadPoolExecutor(1) as pool:
            bomb = pool.submit(ask, "bomb")
            waits = []
            while not bomb.done():
                start = time.monotonic()
                assert fetch("GET", "/health")[0] == 200
                waits.append(time.monotonic() - start)
            status, answer = bomb.result()
        assert status == 400 and "chat template" in answer["error"]["message"]
        assert waits and sorted(waits)[len(waits) // 2] < 0.1
        assert ask("Hello")[1]["choices"] == want
