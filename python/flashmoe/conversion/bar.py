"""A bar that counts bytes, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def byte_bar(total: int, description: str, shown: bool) -> Iterator[Callable[[int], object]]:
    """A bar on stderr for the time of a ``with`` block.

    Args:
        total: Bytes that make it full.
        description: Shown before it.
        shown: Whether there is one at all; if not, nothing is made that processes would share.

    Yields:
        What to call with every number of bytes done.
    """
    if not shown:
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="B", unit_scale=True, desc=description) as bar:
        yield bar.update
