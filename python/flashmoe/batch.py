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
from flashmoe.sampler import Sampler, TokenChooser
from flashmoe.stop import StopMatcher

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flashmoe import _core

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
    """

    ids: NDArray[np.int32]
    sampler: Sampler | TokenChooser
    matcher: StopMatcher
    max_tokens: int


class _Sequence:
    """One prompt and its answer so far.

    What was drawn stays when the session is given up: a later one is fed the same rows in the same
    steps, so the answer goes on with the same bits.
    """

    session: _core.Session
    logits: NDArray[np.float32]

    def __init__(self, model: Model, meter: Meter, index: int, request: Request) -> None:
        self.index = index
        self.ids = request.ids
        self.chunks: list[Chunk] = []
        self.position = 0
        self.most_tokens = min(self.ids.size + request.max_tokens, model.context_length)
        self.meter = meter
        self._answer = Answer(
            model, self.ids, request.sampler, request.matcher, request.max_tokens, meter
        )

    @property
    def known(self) -> int:
        """Tokens of the prompt and of the answer so far."""
        return self.ids.size + len(self.chunks)

    def open(self, session: _core.Session, vocab_size: int) -> None:
        """Begin with a session, or begin again."""
        import numpy as np

        self.session, self.position = session, 0
        self.logits = np.empty((1, vocab_size), np.float32)
        self.meter.attach(session)

    def next_tokens(self, room: int) -> NDArray[np.int32]:
        """Tokens to append in a step that has room for so many rows; maybe none."""
        import numpy as np

        ids, first = self.ids, self.position
        if first < ids.size:
            fits = ids.size - first <= room
            return ids[first:] if fits else ids[first : first + room // STEP_END * STEP_END]
        said = self.chunks[first - ids.size].token_id
        return np.array([said] if room else [], np.int32)

    def wanted(self, n: int) -> NDArray[np.float32]:
        """Where the logits go when ``n`` tokens are appended: no rows while more are known."""
        return self.logits[: self.position + n == self.known]

    def appended(self, n: int) -> Generation | None:
        """Move on by ``n`` evaluated tokens; the answer if it is complete."""
        self.position += n
        if self.position < self.known:
            return None
        if not self.chunks:
            self.meter.prefilled()
        self.chunks.append(self._answer.take(self.logits[0]))
        if self.chunks[-1].finish_reason is None:
            return None
        return Generation.of(self.chunks, self.meter.stats)


class Batch:
    """Prompts that share the model's steps.

    Sequences run in the order of their prompts. When memory runs short, the youngest one gives its
    session up and waits until another has ended.
    """

    def __init__(self, model: Model, requests: Sequence[Request], size: int | None) -> None:
        """Prepare; evaluates nothing.

        Args:
            model: Runs all of them.
            requests: Prompts and what is asked for with them.
            size: Most sequences at a time; ``None``: see :meth:`Generator.generate_batch`.
        """
        info = model.info()
        self._model = model
        self._waiting = deque(
            _Sequence(model, Meter(info, request.ids.size), index, request)
            for index, request in enumerate(requests)
        )
        self._running: list[_Sequence] = []
        self._rows = int(info["prefill_rows"])
        self._size = min(size or self._rows, self._rows)
        self._state_bytes, self._token_bytes = info["state_bytes"], info["kv_bytes_per_token"]
        self._room: int | None = None  # for sequences; None: as far as the budget goes
        if size is None:
            self._room = info["memory"] - info["held_bytes"]
            self._room += info["expert_slots"] * info["expert_bytes"] // 2
        self._short = False
        self._guard = threading.Lock()
        self._cancelled = False

    def run(self) -> PyGenerator[tuple[int, Generation], None, None]:
        """Evaluate everything.

        Yields:
            The index of a prompt and its answer, in the order in which answers end.
        """
        try:
            while self._waiting or self._running:
                self._admit()
                yield from self._step()
        finally:
            for sequence in list(self._running):
                self._leave(sequence)

    def cancel(self) -> None:
        """Stop it; called by another thread."""
        with self._guard:
            self._cancelled = True
            for sequence in self._running:
                sequence.session.cancel()

    def _fits(self, new: _Sequence) -> bool:
        """There is room for the whole of one more sequence."""
        tokens = sum(s.most_tokens + _KV_STEP for s in [*self._running, new])
        need = (len(self._running) + 1) * self._state_bytes + tokens * self._token_bytes
        return not self._running or self._room is None or need <= self._room

    def _admit(self) -> None:
        """Let waiting prompts run as long as there is room for them."""
        while self._waiting and len(self._running) < self._size and not self._short:
            new = self._waiting[0]
            if not self._fits(new):
                return
            try:
                with naming(new.index):
                    session = self._model.new_session()
            except BudgetError:
                if not self._running:
                    raise
                self._short = True
                return
            new.open(session, self._model.vocab_size)
            with self._guard:
                self._running.append(self._waiting.popleft())

    def _leave(self, sequence: _Sequence) -> None:
        with self._guard:
            self._running.remove(sequence)
        sequence.session.close()

    def _step(self) -> Iterator[tuple[int, Generation]]:
        """Append the next rows of all that run; the answers that are complete with them."""
        for sequence, tokens in self._evaluate():
            with naming(sequence.index):
                answer = sequence.appended(tokens.size)
            if answer is not None:
                self._leave(sequence)
                self._short = False
                yield sequence.index, answer

    def _evaluate(self) -> list[tuple[_Sequence, NDArray[np.int32]]]:
        from flashmoe import _core

        while True:
            if self._cancelled:
                raise CancelledError("cancelled")
            parts = self._compose()
            try:
                _core.eval_together(
                    [sequence.session for sequence, _ in parts],
                    [tokens for _, tokens in parts],
                    [sequence.wanted(tokens.size) for sequence, tokens in parts],
                )
                return parts
            except BudgetError as error:
                if len(self._running) == 1:
                    _name(error, self._running[0].index)
                    raise
                self._put_back()
            except FlashMoEError as error:
                if error.sequence is not None and not isinstance(error, CancelledError):
                    _name(error, parts[error.sequence][0].index)
                raise

    def _put_back(self) -> None:
        """The youngest waits until another has ended."""
        youngest = self._running[-1]
        youngest.meter.detach()
        self._leave(youngest)
        self._waiting.appendleft(youngest)
        self._short = True

    def _compose(self) -> list[tuple[_Sequence, NDArray[np.int32]]]:
        """The rows of the next step: first prompts, so that soon as many as possible decode."""
        parts = []
        room = self._rows
        for sequence in sorted(self._running, key=lambda s: s.position >= s.ids.size):
            tokens = sequence.next_tokens(room)
            room -= tokens.size
            if tokens.size:
                parts.append((sequence, tokens))
        return parts
