"""Ctrl-C while an answer is made."""

from __future__ import annotations

import signal
from types import FrameType


class Interrupts:
    """Remembers SIGINT for the time of a ``with`` block; it raises KeyboardInterrupt as ever.

    Python drops the exception where it comes up in a finaliser, which may run at any moment.

    Attributes:
        heard: Whether there was one.
    """

    def __init__(self) -> None:
        self.heard = False
        # else it is ignored, or somebody's own
        self._usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def __enter__(self) -> Interrupts:
        if self._usual:
            signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.heard = True
        signal.default_int_handler(number, frame)
