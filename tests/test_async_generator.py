"""Awaited calls give what plain ones give, stop when their task does, and leave nothing behind."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator

import pytest

import flashmoe
from flashmoe import AsyncGenerator, Generator, Model, Sampler
from flashmoe.errors import PromptError

QUESTION = [{"role": "user", "content": "What does the expert loader read?"}]


@pytest.fixture(scope="module")
def plain() -> Iterator[Generator]:
    with Model(flashmoe.demo_model_path()) as model, Generator(model, Sampler(temperature=0)) as g:
        yield g


def calls() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "flashmoe-call"]


def test_the_same_answers(plain: Generator) -> None:
    want = plain.chat(QUESTION, max_tokens=40)
    text = plain.generate("The expert", max_tokens=12).text

    async def main() -> None:
        generator = AsyncGenerator(plain)
        got = await generator.chat(QUESTION, max_tokens=40)
        assert (got.text, got.content, got.finish_reason) == (
            want.text, want.content, want.finish_reason)  # fmt: skip
        assert got.stats.prompt_tokens == want.stats.prompt_tokens
        pieces = [chunk.text async for chunk in generator.stream("The expert", max_tokens=12)]
        assert "".join(pieces) == text
        assert (await generator.generate("The expert", max_tokens=12)).text == text

    asyncio.run(main())
    assert not calls()


def test_tasks_take_turns_and_the_loop_goes_on(plain: Generator) -> None:
    prompts = [f"Question {i}: the expert" for i in range(5)]
    want = [plain.generate(p, max_tokens=20).text for p in prompts]

    async def main() -> None:
        generator, ticks = AsyncGenerator(plain), 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.create_task(tick())
        got = await asyncio.gather(*(generator.generate(p, max_tokens=20) for p in prompts))
        ticking.cancel()
        assert [g.text for g in got] == want
        assert ticks > 10

    asyncio.run(main())


def test_a_cancelled_task_stops_computing(plain: Generator) -> None:
    want = plain.generate("Once", max_tokens=10).token_ids
    endless = {"max_tokens": 100000, "stop": ()}
    rng = random.Random(0)

    async def one(generator: AsyncGenerator, wait: float) -> float:
        task = asyncio.create_task(generator.generate([7, 8, 9] * 1000, **endless))
        await asyncio.sleep(wait)
        task.cancel()
        start = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - start

    async def main() -> None:
        generator = AsyncGenerator(plain)
        ends = dict.fromkeys(plain.model.tokenizer.eos_token_ids, -1e9)
        long = AsyncGenerator(Generator(plain.model, Sampler(temperature=0, logit_bias=ends)))
        for _ in range(20):
            assert await one(long, rng.uniform(0, 0.12)) < 2
            assert not calls()
        assert (await generator.generate("Once", max_tokens=10)).token_ids == want

    asyncio.run(main())
    assert plain.generate("Once", max_tokens=10).token_ids == want


def test_leaving_a_stream_ends_it(plain: Generator) -> None:
    async def main() -> None:
        generator = AsyncGenerator(plain)
        stream = generator.stream("Once", max_tokens=3000)
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]
        assert not calls()
        assert (await generator.generate("Once", max_tokens=3)).token_ids

    asyncio.run(main())


def test_errors_reach_the_task(plain: Generator) -> None:
    async def main() -> None:
        generator = AsyncGenerator(plain)
        with pytest.raises(PromptError):
            await generator.generate("")
        with pytest.raises(TypeError, match="unexpected"):
            await generator.generate("Once", temperature=1)
        assert (await generator.generate("Once", max_tokens=3)).token_ids

    asyncio.run(main())
    assert not calls()


def test_a_cancel_that_comes_too_late_is_forgotten(plain: Generator) -> None:
    want = plain.generate("Once", max_tokens=5).token_ids
    plain.cancel()
    assert plain.generate("Once", max_tokens=5).token_ids == want
