"""Where one answer begins with what was kept, and when what it evaluates is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from flashmoe.model import Model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flashmoe import _core
    from flashmoe.prefix_cache import PrefixCache


class PrefixPoints:
    """One answer's use of a prefix cache: restored before its first step, stored at two points.

    The first is the end of the last turn, just before the header of the answer: whatever a template
    does with the answer later, the next prompt begins with the same tokens as far as there. The
    second is the end of the answer.
    """

    def __init__(
        self, cache: PrefixCache | None, ids: NDArray[np.int32], stable: int | None = None
    ) -> None:
        """Find the first point.

        Args:
            cache: ``None``: nothing is restored or stored.
            ids: The prompt.
            stable: Tokens of it with which later prompts will begin; ``None``: all.
        """
        self._cache, self._ids = cache, ids
        self._cut = 0 if cache is None else cache.cut(ids.size if stable is None else stable)

    def begin(self, session: _core.Session) -> int:
        """Restore; tokens of the prompt that need not be evaluated.

        Args:
            session: A new one.
        """
        return 0 if self._cache is None else self._cache.restore(session, self._ids)

    def next(self, position: int) -> int:
        """Where a step from this position of the prompt must end at the latest."""
        return self._cut if position < self._cut else self._ids.size

    def steps(self, model: Model, position: int) -> Iterator[tuple[int, int]]:
        """The rest of the prompt in steps: pairs of first and last + 1.

        Args:
            model: Cuts them.
            position: Tokens that the session has.
        """
        stops = sorted({position, self.next(position), self._ids.size})
        for begin, end in pairwise(stops):
            for first, last in model.prefill_steps(begin, end - begin):
                yield begin + first, begin + last

    def evaluated(self, session: _core.Session) -> None:
        """A step of the prompt was done: store if this is the point."""
        if self._cache is not None and 0 < self._cut == session.position:
            self._cache.store(session, self._ids[: self._cut])

    def ended(self, session: _core.Session, said: Sequence[int]) -> None:
        """The answer is complete: store it.

        Args:
            session: Has the prompt and these tokens.
            said: Tokens of the answer but for the last, which was not evaluated.
        """
        import numpy as np

        if self._cache is not None:
            ids = np.concatenate([self._ids, np.array(said, np.int32)])
            self._cache.store(session, ids, decoded=len(said) > 0)


def stable_tokens(turns: Sequence[int], ids: Sequence[int]) -> int:
    """Tokens that a prompt shares with the conversation without the header of the answer.

    Args:
        turns: The conversation, rendered with ``add_generation_prompt=False``.
        ids: The prompt.
    """
    pairs = enumerate(zip(turns, ids, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(turns), len(ids)))
