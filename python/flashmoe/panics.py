"""Errors of libraries in Rust, whose panics are no subclass of Exception."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flashmoe.errors import FlashMoEError


@contextmanager
def translated(kind: type[FlashMoEError], what: str) -> Iterator[None]:
    """Turn whatever goes wrong, a panic included, into one of our errors.

    Args:
        kind: Of error.
        what: Went wrong, in words.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # a panic derives from BaseException only
        raise kind(f"{what}: {error}") from error
