"""Reduces rich Python values to plain JSON types before a chat template sees them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from flashmoe.errors import TemplateError


def plain_value(value: Any) -> Any:
    """Rebuild a value out of plain JSON types.

    A template gets no objects whose methods it could misuse. Subclasses of the plain
    types lose what they add, numpy scalars become numbers, dataclasses and pydantic
    models become dictionaries, and anything else becomes a text such as ``<ndarray>``.

    Args:
        value: Any value; it is not modified.

    Returns:
        ``None``, str, int, float, bool, or dicts, lists and tuples of them.

    Raises:
        TemplateError: It is nested too deeply.
    """
    try:
        return _plain(value)
    except RecursionError:
        raise TemplateError("what the template is given is nested too deeply") from None


def _plain(value: Any) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        return _plain(value.item())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _plain(getattr(value, field.name)) for field in fields}
    if callable(getattr(value, "model_dump", None)):
        return _plain(value.model_dump())
    return f"<{type(value).__name__}>"
