"""Ctrl-C while an answer is made."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Remembers SIGINT for the time of a ``with`` block; it raises KeyboardInterrupt as ever.

    Python drops the exception where it comes up in a finaliser, which may run at any moment, and
    what draws on the terminal cannot be stopped half-way.

    Attributes:
        heard: Whether there was one.
    """

    def __init__(self) -> None:
        self.heard = False
        self._held = False
        self._usual = False

    def __enter__(self) -> Interrupts:
        self.heard = False
        # else it is ignored, or somebody's own
        self._usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._usual:
            signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A time in which it is only remembered."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was one."""
        if self.heard:
            raise KeyboardInterrupt

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = True
        if not self._held:
            signal.default_int_handler(number, frame)
