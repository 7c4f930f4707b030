"""Several sequences together: each step appends rows to all of them that fit."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator as PyGenerator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flashmoe.answer import Answer, Chunk, Generation, Meter
from flashmoe.errors import BudgetError, CancelledError, FlashMoEError
from flashmoe.model import STEP_END, Model
from flashmoe.prefix_points import PrefixPoints
from flashmoe.sampler import Sampler, TokenChooser
from flashmoe.stop import StopMatcher

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flashmoe import _core
    from flashmoe.prefix_cache import PrefixCache
    from flashmoe.structured import ConstraintFactory

_KV_STEP = 256
"""Tokens by which a KV cache may be longer than it must."""


@contextmanager
def naming(index: int) -> Iterator[None]:
    """Let the library's errors in a block tell which prompt they are about.

    Args:
        index: Of the prompt.
    """
    try:
        yield
    except FlashMoEError as error:
        _name(error, index)
        raise


def _name(error: FlashMoEError, index: int) -> None:
    error.sequence = index
    error.args = (f"prompt {index}: {error}",)


@dataclass(frozen=True)
class Request:
    """What is asked for with one prompt.

    Attributes:
        ids: The prompt's tokens.
        sampler: Draws the answer.
        matcher: Finds the texts that end it; not used before.
        max_tokens: Longest answer.
        top_logprobs: Likeliest tokens to tell with each token of the answer.
        prefixes: Where the prompt's beginning may be found, and where the sequence is kept.
        stable: Tokens of the prompt with which later ones will begin; ``None``: all.
        constraint: What the answer must follow.
    """

    ids: NDArray[np.int32]
    sampler: Sampler | TokenChooser
    matcher: StopMatcher
    max_tokens: int
    top_logprobs: int = 0
    prefixes: PrefixCache | None = None
    stable: int | None = None
    constraint: ConstraintFactory | None = None


class Growing:
    """One prompt and its answer so far.

    What was drawn stays when the session is given up: a later one is fed the same rows in the same
    steps, so the answer goes on with the same bits.

    Attributes:
        ids: The prompt's tokens.
        chunks: The answer so far.
        position: Tokens that were evaluated.
        meter: Fills the stats.
        cancelled: Somebody wants no more of it.
    """

    session: _core.Session
    logits: NDArray[np.float32]

    def __init__(self, model: Model, meter: Meter, request: Request) -> None:
        """Prepare; evaluates nothing.

        Args:
            model: Runs it.
            meter: Of this answer alone.
            request: The prompt and what is asked for with it.
        """
        self.ids = request.ids
        self.chunks: list[Chunk] = []
        self.position = 0
        self.most_tokens = min(self.ids.size + request.max_tokens, model.context_length)
        self.meter = meter
        self.cancelled = False
        self._points = PrefixPoints(request.prefixes, request.ids, request.stable)
        self._answer = Answer(
            model,
            self.ids,
            request.sampler,
            request.matcher,
            request.max_tokens,
            meter,
            top_logprobs=request.top_logprobs,
            constraint=request.constraint.start() if request.constraint else None,
        )

    @property
    def known(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return self.ids.size + len(self.chunks)

    @property
    def decoding(self) -> bool:
        """The whole prompt was evaluated."""
        return self.position >= self.ids.size

    def open(self, session: _core.Session, vocab_size: int) -> None:
        """Begin with a session, or begin again.

        Args:
            session: A new one.
            vocab_size: Of the model.
        """
        import numpy as np

        self.session, self.position = session, self._points.begin(session)
        self.meter.stats.cached_tokens = self.position
        self.logits = np.empty((1, vocab_size), np.float32)
        self.meter.attach(session)

    def next_tokens(self, room: int) -> NDArray[np.int32]:
        """Tokens to append in a step; maybe none.

        Args:
            room: Rows that the step has left.
        """
        import numpy as np

        ids, first = self.ids, self.position
        if not self.decoding:
            end = self._points.next(first)
            fits = end - first <= room
            return ids[first:end] if fits else ids[first : (first + room) // STEP_END * STEP_END]
        said = self.chunks[first - ids.size].token_id
        return np.array([said] if room else [], np.int32)

    def wanted(self, n: int) -> NDArray[np.float32]:
        """Where the logits go when ``n`` tokens are appended: no rows while more are known."""
        return self.logits[: self.position + n == self.known]

    def appended(self, n: int) -> Chunk | None:
        """Move on by ``n`` evaluated tokens; the next token of the answer if it is time for it."""
        self.position += n
        self._points.evaluated(self.session)
        if self.position < self.known:
            return None
        if not self.chunks:
            self.meter.prefilled()
        self.chunks.append(self._answer.take(self.logits[0]))
        if self.chunks[-1].finish_reason is not None:
            self._points.ended(self.session, [chunk.token_id for chunk in self.chunks[:-1]])
        return self.chunks[-1]

    def generation(self) -> Generation:
        """The finished answer."""
        return Generation.of(self.chunks, self.meter.stats)


@dataclass(frozen=True, slots=True)
class Event:
    """What a step did for one sequence.

    Attributes:
        growing: The sequence.
        chunk: The next token of its answer; ``None`` while the prompt is evaluated.
        error: Why it has ended without an answer. No event follows it.
    """

    growing: Growing
    chunk: Chunk | None = None
    error: FlashMoEError | None = None

    @property
    def last(self) -> bool:
        """No event follows for this sequence."""
        return self.error is not None or (
            self.chunk is not None and self.chunk.finish_reason is not None
        )


class Scheduler:
    """Sequences that share the model's steps; more may join while it runs.

    They run in the order in which they came. When memory runs short, the youngest one gives its
    session up and waits until another has ended. One thread adds and steps; any may cancel.
    """

    def __init__(self, model: Model, size: int | None = None) -> None:
        """Prepare; evaluates nothing.

        Args:
            model: Runs all of them.
            size: Most sequences at a time; ``None``: see :meth:`Generator.generate_batch`.
        """
        self._info = info = model.info()
        self._model = model
        self._waiting: deque[Growing] = deque()
        self._running: list[Growing] = []
        self._rows = int(info["prefill_rows"])
        self._size = min(size or self._rows, self._rows)
        self._state_bytes, self._token_bytes = info["state_bytes"], info["kv_bytes_per_token"]
        self._room: int | None = None  # for sequences; None: as far as the budget goes
        if size is None:
            self._room = info["memory"] - info["held_bytes"]
            self._room += info["expert_slots"] * info["expert_bytes"] // 2
        self._short = False
        self._guard = threading.Lock()

    @property
    def waiting(self) -> int:
        """Sequences that have not begun, or had to stop for want of memory."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences that take part in steps."""
        return len(self._running)

    def prepare(self, request: Request) -> Growing:
        """A sequence that :meth:`add` takes. For any thread.

        Args:
            request: The prompt and what is asked for with it.
        """
        return Growing(self._model, Meter(self._info, request.ids.size), request)

    def add(self, growing: Growing) -> None:
        """Let a sequence wait for its turn.

        Args:
            growing: A new one.
        """
        self._waiting.append(growing)

    def cancel(self, growing: Growing) -> None:
        """Ask for its end; the present step stops within a layer. For any thread.

        Args:
            growing: The next step has an event with a ``CancelledError`` for it.
        """
        with self._guard:
            growing.cancelled = True
            if growing in self._running:
                growing.session.cancel()

    def abandon(self, *, waiting: bool = False) -> list[Growing]:
        """Let go of all that run, as after a step that failed for all; who they were.

        Args:
            waiting: And of all that wait: the failure may be that of one about to begin.
        """
        left = list(self._running)
        for growing in left:
            self._leave(growing)
        self._short = False
        if waiting:
            left += self._waiting
            self._waiting.clear()
        return left

    def close(self) -> None:
        """Give all sessions back."""
        self.abandon(waiting=True)

    def step(self) -> list[Event]:
        """Append the next rows of all that run.

        Raises:
            FlashMoEError: The step failed for all of them; they are where they were.
        """
        events = [*self._drop_cancelled(), *self._admit()]
        if events or not self._running:
            return events
        for growing, n in self._evaluate(events):
            try:
                event = Event(growing, growing.appended(n))
            except FlashMoEError as error:
                event = Event(growing, error=error)
            if event.last:
                self._leave(growing)
                self._short = False
            events.append(event)
        return events

    def _drop_cancelled(self) -> list[Event]:
        gone = [g for g in (*self._running, *self._waiting) if g.cancelled]
        for growing in gone:
            if growing in self._running:
                self._leave(growing)
                self._short = False
            else:
                self._waiting.remove(growing)
        return [Event(growing, error=CancelledError("cancelled")) for growing in gone]

    def _fits(self, new: Growing) -> bool:
        """There is room for the whole of one more sequence."""
        tokens = sum(s.most_tokens + _KV_STEP for s in [*self._running, new])
        need = (len(self._running) + 1) * self._state_bytes + tokens * self._token_bytes
        return not self._running or self._room is None or need <= self._room

    def _admit(self) -> list[Event]:
        """Let waiting sequences run as long as there is room for them."""
        while self._waiting and len(self._running) < self._size and not self._short:
            new = self._waiting[0]
            if not self._fits(new):
                break
            try:
                session = self._model.new_session()
            except BudgetError as error:
                if not self._running:
                    return [Event(self._waiting.popleft(), error=error)]
                self._short = True
                break
            except FlashMoEError as error:
                return [Event(self._waiting.popleft(), error=error)]
            new.open(session, self._model.vocab_size)
            with self._guard:
                self._running.append(self._waiting.popleft())
        return []

    def _leave(self, growing: Growing) -> None:
        with self._guard:
            self._running.remove(growing)
        growing.session.close()

    def _evaluate(self, events: list[Event]) -> list[tuple[Growing, int]]:
        """Who got how many tokens. Who failed alone is dropped, with an event."""
        from flashmoe import _core

        while parts := self._compose():
            try:
                _core.eval_together(
                    [growing.session for growing, _ in parts],
                    [tokens for _, tokens in parts],
                    [growing.wanted(tokens.size) for growing, tokens in parts],
                )
                return [(growing, tokens.size) for growing, tokens in parts]
            except BudgetError as error:
                if len(self._running) == 1:
                    self._fail(self._running[0], error, events)
                else:
                    self._put_back()
            except FlashMoEError as error:
                if error.sequence is None:
                    raise
                self._fail(parts[error.sequence][0], error, events)
        return []

    def _fail(self, growing: Growing, error: FlashMoEError, events: list[Event]) -> None:
        error.sequence = None
        self._leave(growing)
        self._short = False
        events.append(Event(growing, error=error))

    def _put_back(self) -> None:
        """The youngest waits until another has ended."""
        youngest = self._running[-1]
        youngest.meter.detach()
        self._leave(youngest)
        self._waiting.appendleft(youngest)
        self._short = True

    def _compose(self) -> list[tuple[Growing, NDArray[np.int32]]]:
        """The rows of the next step: a prompt's, beside one of every answer that grows."""
        decoding = sum(growing.decoding for growing in self._running)
        room = self._rows - decoding
        if room < STEP_END:  # too few for a prompt: then it goes first
            room = self._rows
        parts, left = [], self._rows
        for growing in sorted(self._running, key=lambda g: g.decoding):
            tokens = growing.next_tokens(left if growing.decoding else room)
            room -= tokens.size
            left -= tokens.size
            if tokens.size:
                parts.append((growing, tokens))
        return parts


class Batch:
    """Prompts that are answered together, the first failure ending all."""

    def __init__(self, model: Model, requests: Sequence[Request], size: int | None) -> None:
        """Prepare; evaluates nothing.

        Args:
            model: Runs all of them.
            requests: Prompts and what is asked for with them.
            size: Most sequences at a time; ``None``: see :meth:`Generator.generate_batch`.
        """
        self._scheduler = Scheduler(model, size)
        self._index = {self._scheduler.prepare(r): i for i, r in enumerate(requests)}
        for growing in self._index:
            self._scheduler.add(growing)

    def run(self) -> PyGenerator[tuple[int, Generation], None, None]:
        """Evaluate everything.

        Yields:
            The index of a prompt and its answer, in the order in which answers end.
        """
        scheduler = self._scheduler
        try:
            while scheduler.waiting or scheduler.running:
                for event in scheduler.step():
                    index = self._index[event.growing]
                    if isinstance(event.error, CancelledError):
                        raise event.error
                    if event.error is not None:
                        _name(event.error, index)
                        raise event.error
                    if event.last:
                        yield index, event.growing.generation()
        finally:
            scheduler.close()

    def cancel(self) -> None:
        """Stop it; called by another thread."""
        for growing in self._index:
            self._scheduler.cancel(growing)
