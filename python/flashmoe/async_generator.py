"""Answers for programs of asyncio: the same calls, awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from typing import Any

from flashmoe.answer import Chunk, Generation
from flashmoe.generator import Generator

_END = object()
_AGAIN = 0.02  # seconds between two attempts to stop a call that has not begun to compute


class AsyncGenerator:
    """A :class:`Generator` whose calls do not hold up an event loop.

    Each call computes on a thread of its own; calls take turns. A task that is cancelled, or leaves
    its loop over a stream, ends the computation within a layer.
    """

    def __init__(self, generator: Generator) -> None:
        """Wrap a generator.

        Args:
            generator: Not used by anybody else while a call of this runs.
        """
        self.generator = generator
        self._turn = asyncio.Lock()

    def stream(self, prompt: Any, **options: Any) -> AsyncIterator[Chunk]:
        """Generate token by token; see :meth:`Generator.stream`.

        Args:
            prompt: Text, or token ids.
            **options: As for :meth:`Generator.stream`.
        """
        return self._chunks(lambda: self.generator.stream(prompt, **options))

    def stream_chat(self, messages: Any, tools: Any = None, **options: Any) -> AsyncIterator[Chunk]:
        """Answer a conversation token by token; see :meth:`Generator.stream_chat`.

        Args:
            messages: Dictionaries with ``role`` and ``content``.
            tools: Functions the model may call.
            **options: As for :meth:`Generator.stream_chat`.
        """
        return self._chunks(lambda: self.generator.stream_chat(messages, tools, **options))

    async def generate(self, prompt: Any, **options: Any) -> Generation:
        """Generate a whole answer; see :meth:`Generator.generate`.

        Args:
            prompt: Text, or token ids.
            **options: As for :meth:`Generator.generate`.
        """
        chunks = [chunk async for chunk in self.stream(prompt, **options)]
        return Generation.of(chunks, self.generator.stats)

    async def chat(self, messages: Any, tools: Any = None, **options: Any) -> Generation:
        """Answer a conversation; see :meth:`Generator.chat`.

        Args:
            messages: Dictionaries with ``role`` and ``content``.
            tools: Functions the model may call.
            **options: As for :meth:`Generator.chat`.
        """
        chunks = [chunk async for chunk in self.stream_chat(messages, tools, **options)]
        return Generation.of(chunks, self.generator.stats, parts=True)

    async def _chunks(self, begin: Callable[[], Any]) -> AsyncIterator[Chunk]:
        async with self._turn:
            call = _Call(begin, asyncio.get_running_loop())
            try:
                while (chunk := await call.next()) is not None:
                    yield chunk
            finally:
                await asyncio.shield(asyncio.ensure_future(call.end(self.generator)))


class _Call:
    """A stream that a thread reads, for one task."""

    def __init__(self, begin: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self._begin, self._loop = begin, loop
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        self._unwanted = False
        self._thread = threading.Thread(target=self._work, name="flashmoe-call", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        last: Any = _END
        try:
            with closing(self._begin()) as chunks:
                for chunk in chunks:
                    if self._unwanted:
                        break
                    self._tell(chunk)
        except BaseException as error:  # whatever it is, it belongs to the task
            last = error
        self._tell(last)

    def _tell(self, item: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    async def next(self) -> Chunk | None:
        """The next chunk; None at the end."""
        item = await self._items.get()
        if isinstance(item, BaseException):
            raise item
        return None if item is _END else item

    async def end(self, generator: Generator) -> None:
        """Stop the thread, if it still computes."""
        self._unwanted = True
        while self._thread.is_alive():
            generator.cancel()
            await asyncio.to_thread(self._thread.join, _AGAIN)
