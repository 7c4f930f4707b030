"""Grammars tried in a process of their own: the same verdicts, and no bomb goes off in this one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import flashmoe
from flashmoe.errors import ArgumentError
from flashmoe.grammar_worker import GrammarWorker
from flashmoe.structured import Trial, compile_constraint
from flashmoe.tokenizer import Tokenizer
from grammar_bombs import bombs

pytest.importorskip("llguidance")

ENDLESS = ("anything 30,000 times", "patterns that all hold")
"""They take minutes, or longer than anybody lives."""


@pytest.fixture
def tokenizer() -> Tokenizer:
    """One that has compiled nothing yet."""
    return Tokenizer.from_directory(flashmoe.demo_model_path())


@pytest.fixture
def worker(tokenizer: Tokenizer) -> Iterator[GrammarWorker]:
    worker = GrammarWorker(tokenizer)
    yield worker
    worker.close()


def choice(text: str) -> dict[str, Any]:
    return {"type": "choice", "choices": [text]}


def verdict(tokenizer: Tokenizer, wanted: dict[str, Any], trial: Trial | None = None) -> str:
    try:
        assert compile_constraint(tokenizer, wanted, trial=trial) is not None
    except ArgumentError as error:
        return str(error)
    return "taken"


def test_verdicts_are_those_of_this_process(tokenizer: Tokenizer, worker: GrammarWorker) -> None:
    seen = []
    for name, wanted in bombs():
        if name in ENDLESS or name in ("stars", "many properties"):  # about a second each
            continue
        here = verdict(tokenizer, wanted)
        tokenizer.grammars._compiled.clear()
        there = verdict(tokenizer, wanted, worker)
        assert here == there or "NoExtensionBias" in there, name  # a start that says nothing
        seen.append(here)
    assert 8 < seen.count("taken") < len(seen) - 8


@pytest.mark.parametrize("name", ENDLESS)
def test_bombs_are_stopped(tokenizer: Tokenizer, worker: GrammarWorker, name: str) -> None:
    assert verdict(tokenizer, choice("before"), worker) == "taken"
    assert worker._process is not None
    first = worker._process.pid
    start = time.monotonic()
    # on a thread, so that the test ends if the bomb does go off here
    found: list[str] = []
    wanted = dict(bombs())[name]
    thread = threading.Thread(
        target=lambda: found.append(verdict(tokenizer, wanted, worker)), daemon=True
    )
    thread.start()
    thread.join(8)
    assert found and "takes more than 1 s" in found[0]
    assert time.monotonic() - start < 4  # 1 s, and what a loaded machine adds
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert verdict(tokenizer, choice("after"), worker) == "taken"


def test_what_was_compiled_is_not_tried_again(tokenizer: Tokenizer) -> None:
    tried: list[str] = []
    for _ in range(3):
        compile_constraint(tokenizer, choice("yes"), trial=lambda grammar, what: tried.append(what))
    assert tried == ["response_format of type 'choice'"]


def test_threads_share_it(tokenizer: Tokenizer, worker: GrammarWorker) -> None:
    def one(i: int) -> str:
        wanted = {"type": "grammar", "grammar": f'start: "{i}"' if i % 2 else f"start: r{i}"}
        return verdict(tokenizer, wanted, worker)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(100)))
    assert found[1::2] == ["taken"] * 50
    assert all(f'unknown name: "r{2 * i}"' in text for i, text in enumerate(found[::2]))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_is_limited(tokenizer: Tokenizer) -> None:
    worker = GrammarWorker(tokenizer, seconds=20, memory=80 << 20)
    try:
        assert "more than 20 s or 80 MB" in verdict(
            tokenizer, dict(bombs())["anything 30,000 times"], worker
        )
        assert verdict(tokenizer, choice("after"), worker) == "taken"
    finally:
        worker.close()
