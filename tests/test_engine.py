"""Many requests on one engine: each answered as if it were alone; queues, failures, ends."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import flashmoe
from flashmoe.batch import Event, Request
from flashmoe.engine import Engine, Job
from flashmoe.stop import StopMatcher

PROMPTS = [
    "The capital of France is",
    "Once upon a time",
    "Two and two make",
    "A mixture of experts " * 40,
]


@pytest.fixture(scope="module")
def model() -> Iterator[flashmoe.Model]:
    with flashmoe.Model(flashmoe.demo_model_path(), memory="200MB") as opened:
        yield opened


def request(model: flashmoe.Model, prompt: str, n: int = 24, **options: Any) -> Request:
    sampler = options.pop("sampler", flashmoe.Sampler(temperature=0))
    return Request(
        model.check_tokens(model.tokenizer.encode(prompt)), sampler, StopMatcher(), n, **options
    )


class Listener:
    """Keeps the events of one job."""

    def __init__(self) -> None:
        self.events: queue.Queue[Event] = queue.Queue()

    def whole(self) -> list[Event]:
        """All of them, to the last."""
        got = [self.events.get(timeout=60)]
        while not got[-1].last:
            got.append(self.events.get(timeout=60))
        return got

    def text(self) -> str:
        events = self.whole()
        assert events[-1].error is None, events[-1].error
        return "".join(event.chunk.text for event in events if event.chunk)


def submit(engine: Engine, *args: Any, client: str = "", **options: Any) -> tuple[Job, Listener]:
    listener = Listener()
    job = engine.submit(request(engine.model, *args, **options), listener.events.put, client)
    return job, listener


def alone(model: flashmoe.Model, prompt: str, n: int = 24) -> str:
    generator = flashmoe.Generator(model, flashmoe.Sampler(temperature=0))
    ids = model.tokenizer.encode(prompt)
    return generator.generate(ids, max_tokens=n).text


@pytest.fixture
def engine(model: flashmoe.Model) -> Iterator[Engine]:
    made = Engine(model)
    yield made
    made.close()


def test_each_answer_is_what_it_is_alone(model: flashmoe.Model, engine: Engine) -> None:
    listeners = []
    for round in range(3):
        for prompt in PROMPTS:
            listeners.append((prompt, submit(engine, prompt)[1]))
            time.sleep(0.003 * round)  # some join while others are under way
    for prompt, listener in listeners:
        assert listener.text() == alone(model, prompt)
    assert (engine.running, engine.waiting) == (0, 0)


def test_a_long_prompt_does_not_stop_the_others(model: flashmoe.Model) -> None:
    long = "The expert loader reads what the router picks. " * 300
    engine = Engine(model)
    order: list[str] = []

    def note(name: str) -> Callable[[Event], object]:
        return lambda event: order.append(name + ("!" if event.last else ""))

    engine.submit(request(model, "Once upon a time", 40), note("short"))
    engine.submit(request(model, long, 1), note("long"))
    assert engine.drain(60)
    engine.close()
    first, last = order.index("long"), order.index("long!")
    assert order[first:last].count("long") >= 2
    assert "short" in order[first:last]


def test_the_queue_has_an_end(model: flashmoe.Model) -> None:
    engine = Engine(model, queue=2, batch_size=1)
    busy, _ = submit(engine, "Once upon a time", 400)
    while not engine.running:
        time.sleep(0.001)
    waiting = [submit(engine, "Two and two make", 2) for _ in range(2)]
    with pytest.raises(flashmoe.QueueFullError, match="2 requests wait"):
        submit(engine, "Two and two make", 2)
    engine.cancel(busy)
    for _, listener in waiting:
        assert listener.text() == alone(model, "Two and two make", 2)
    engine.close()
    with pytest.raises(flashmoe.ClosedError):
        submit(engine, "Two and two make", 2)


def test_places_are_held_before_the_work(model: flashmoe.Model) -> None:
    engine = Engine(model, queue=2)
    kept, left = engine.reserve(), engine.reserve()
    assert engine.waiting == 2
    with pytest.raises(flashmoe.QueueFullError, match="2 requests wait"):
        engine.reserve()
    with pytest.raises(flashmoe.QueueFullError):
        submit(engine, "Two and two make", 2)
    with left:
        pass
    left.leave()  # no more than once
    assert engine.waiting == 1
    listener = Listener()
    with kept:
        engine.submit(request(model, PROMPTS[0], 5), listener.events.put, place=kept)
    assert listener.text() == alone(model, PROMPTS[0], 5)
    assert engine.waiting == 0
    with pytest.raises(flashmoe.ArgumentError), engine.reserve():
        raise flashmoe.ArgumentError("while it is made ready")
    assert engine.waiting == 0
    engine.close()
    with pytest.raises(flashmoe.ClosedError):
        engine.reserve()


def test_clients_take_turns(model: flashmoe.Model) -> None:
    engine = Engine(model, batch_size=1)
    order: list[str] = []
    busy, _ = submit(engine, "Once upon a time", 400)
    while not engine.running:
        time.sleep(0.001)
    for client in "aaaabbc":
        asked = request(model, "Two and two make", 1)
        engine.submit(
            asked, lambda event, c=client: order.append(c) if event.last else None, client
        )
    engine.cancel(busy)
    assert engine.drain(60)
    engine.close()
    assert "".join(order) == "abcabaa"


@pytest.mark.parametrize("when", ["waiting", "prompt", "answer"])
def test_cancelling(model: flashmoe.Model, when: str) -> None:
    engine = Engine(model, batch_size=1 if when == "waiting" else None)
    other, others = submit(engine, "Once upon a time", 60)
    prompt = (
        "The expert loader reads what the router picks. " * 200 if when == "prompt" else "Two and"
    )
    job, listener = submit(engine, prompt, 400)
    if when == "answer":
        listener.events.get(timeout=60)
    engine.cancel(job)
    assert isinstance(listener.whole()[-1].error, flashmoe.CancelledError)
    assert others.text() == alone(model, "Once upon a time", 60)
    engine.cancel(job)  # nothing
    engine.cancel(other)
    assert submit(engine, "Two and two make")[1].text() == alone(model, "Two and two make")
    engine.close()


def test_one_that_fails_fails_alone(model: flashmoe.Model, engine: Engine) -> None:
    def broken(logits: np.ndarray) -> int:
        raise flashmoe.ArgumentError("no choice")

    _, bad = submit(engine, "Once upon a time", sampler=broken)
    _, good = submit(engine, "Once upon a time")
    assert isinstance(bad.whole()[-1].error, flashmoe.ArgumentError)
    assert good.text() == alone(model, "Once upon a time")


def test_an_unforeseen_failure_ends_what_runs_and_nothing_else(
    model: flashmoe.Model, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(logits: np.ndarray) -> int:
        raise ZeroDivisionError

    _, bad = submit(engine, "Once upon a time", sampler=broken)
    error = bad.whole()[-1].error
    assert type(error) is flashmoe.FlashMoEError
    assert "ZeroDivisionError" in caplog.text
    assert submit(engine, "Two and two make")[1].text() == alone(model, "Two and two make")


def test_closing_ends_what_runs_and_waits(model: flashmoe.Model) -> None:
    engine = Engine(model, batch_size=1)
    listeners = [submit(engine, "Once upon a time", 400)[1] for _ in range(3)]
    listeners[0].events.get(timeout=60)
    engine.close()
    for listener in listeners:
        assert isinstance(listener.whole()[-1].error, flashmoe.CancelledError)
    engine.close()
    assert not any(t.name == "flashmoe-engine" for t in threading.enumerate())


def test_the_likeliest_tokens(model: flashmoe.Model, engine: Engine) -> None:
    _, listener = submit(engine, "Once upon a time", 5, top_logprobs=3)
    ids = model.tokenizer.encode("Once upon a time")
    for event in listener.whole():
        chunk = event.chunk
        if chunk is None:
            continue
        row = model.logits(ids)[-1].astype(np.float64)[: model.tokenizer.vocab_size]
        logs = row - row.max() - np.log(np.exp(row - row.max()).sum())
        best = np.argsort(-logs, kind="stable")[:3]
        assert [i for i, _ in chunk.top_logprobs] == best.tolist()
        np.testing.assert_allclose([p for _, p in chunk.top_logprobs], logs[best], atol=2e-2)
        assert chunk.top_logprobs[0] == (chunk.token_id, pytest.approx(chunk.logprob, abs=1e-5))
        ids.append(chunk.token_id)
