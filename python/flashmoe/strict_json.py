"""JSON as its standard has it, without what Python's reader also takes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def loads(text: str | bytes, *, halves: bool = False, **hooks: Callable[..., Any]) -> Any:
    """Read a value that can be written again, as JSON and as UTF-8.

    Args:
        text: Bytes are UTF-8.
        halves: Take escapes for half a character, such as ``\\ud800``; the caller mends them.
        **hooks: Of ``json.loads``.

    Raises:
        ValueError: It is not JSON: NaN, Infinity, a number beyond float64 or an escape for half a
            character is none either. ``json.JSONDecodeError`` and ``UnicodeDecodeError``, where the
            place is known.
        RecursionError: It is nested too deeply.
    """
    text = text.decode() if isinstance(text, bytes) else text
    strict: dict[str, Any] = {"parse_constant": _constant, "parse_float": finite}
    value = json.loads(text, **strict | hooks)
    if not halves and _HALF.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("it has an escape for half a character") from error
    return value


def finite(word: str) -> float:
    """A number that float64 has; for ``parse_float``.

    Args:
        word: As it is written.

    Raises:
        ValueError: It is too large.
    """
    if not math.isfinite(value := float(word)):
        _constant(word)
    return value


def _constant(word: str) -> NoReturn:
    raise ValueError(f"it contains {word[:40]}")
