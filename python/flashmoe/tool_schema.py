"""Describes a Python function as a tool: its signature and docstring as a JSON schema.

The schema is the one that transformers makes of the same function, because models
were trained on prompts that hold it.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from flashmoe.errors import TemplateError

Schema = dict[str, Any]

_SCALARS = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
_PLAIN_TYPES: dict[Any, Schema] = {
    **{kind: {"type": name} for kind, name in _SCALARS.items()},
    list: {"type": "array"},
    tuple: {"type": "array"},
    dict: {"type": "object"},
    Any: {},
}


def function_schema(function: Callable[..., Any]) -> Schema:
    """Describe a function as a tool.

    Args:
        function: A function or method with type hints, and a Google-style docstring
            that says something about every argument. A description may end with
            ``(choices: ["a", "b"])``.

    Returns:
        ``{"type": "function", "function": {name, description, parameters}}``.

    Raises:
        TemplateError: The docstring, a type hint or a description is missing, or a
            type has no JSON form.
    """
    name = getattr(function, "__name__", "operation")
    docstring = (inspect.getdoc(function) or "").strip()
    if not docstring:
        raise TemplateError(f"tool {name!r}: the function has no docstring to describe it with")
    description, arguments, returns = _parse_docstring(docstring)
    hints = _type_hints(function, name)
    signature = inspect.signature(function).parameters
    properties = {}
    for argument in [argument for argument in hints if argument != "return"]:
        schema = _hint_schema(hints[argument], f"tool {name!r}, argument {argument!r}")
        if argument not in arguments:
            raise TemplateError(f"tool {name!r}: the docstring does not describe {argument!r}")
        properties[argument] = {**schema, **_described(arguments[argument], name, argument)}
    required = [
        argument
        for argument in properties
        if argument in signature and signature[argument].default is inspect.Parameter.empty
    ]
    parameters: Schema = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    described: Schema = {"name": name, "description": description, "parameters": parameters}
    result = _return_schema(hints, returns)
    if result is not None:
        described["return"] = result
    return {"type": "function", "function": described}


def _type_hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """Type hints of the arguments that a model fills in, and of the result."""
    for position, parameter in enumerate(inspect.signature(function).parameters.values()):
        is_receiver = position == 0 and parameter.name in {"self", "cls"}
        if parameter.annotation is inspect.Parameter.empty and not is_receiver:
            raise TemplateError(f"tool {name!r}: argument {parameter.name!r} has no type hint")
    try:
        return get_type_hints(function)
    except NameError as error:
        raise TemplateError(f"tool {name!r}: a type hint cannot be resolved: {error}") from error


def _return_schema(hints: dict[str, Any], description: str | None) -> Schema | None:
    """Schema of the result; the model never writes one, so a type without JSON form is left out."""
    if "return" not in hints:
        return None
    try:
        schema = dict(_hint_schema(hints["return"], "result"))
    except TemplateError:
        return None
    if description is not None:
        schema["description"] = description
    return schema


def _described(text: str, name: str, argument: str) -> Schema:
    """Description of an argument, its trailing ``(choices: [...])`` as an enum."""
    choices = re.search(r"\(choices:\s*(.*?)\)\s*$", text, flags=re.IGNORECASE)
    if choices is None:
        return {"description": text}
    try:
        values = json.loads(choices.group(1))
    except ValueError as error:
        raise TemplateError(
            f"tool {name!r}, argument {argument!r}: the choices are not a JSON list: {error}"
        ) from error
    return {
        "enum": [value.strip() if isinstance(value, str) else value for value in values],
        "description": text[: choices.start()].strip(),
    }


def _hint_schema(hint: Any, where: str) -> Schema:
    """JSON schema of a type hint."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is None:
        if isinstance(hint, type) and issubclass(hint, Enum):
            return _values_schema([member.value for member in hint], where)
        if (hint is Any or isinstance(hint, type)) and hint in _PLAIN_TYPES:
            return dict(_PLAIN_TYPES[hint])
    elif origin is Union or origin is types.UnionType:
        return _union_schema(inner, where)
    elif origin is Literal:
        return _values_schema(list(inner), where)
    elif origin in (list, tuple, dict) and not inner:
        return dict(_PLAIN_TYPES[origin])
    elif origin is list:
        return {"type": "array", "items": _hint_schema(inner[0], where)}
    elif origin is tuple and len(inner) > 1 and Ellipsis not in inner:
        return {"type": "array", "prefixItems": [_hint_schema(part, where) for part in inner]}
    elif origin is dict:
        return {"type": "object", "additionalProperties": _hint_schema(inner[1], where)}
    raise TemplateError(
        f"{where}: the type {hint!r} has no JSON schema; use int, float, str, bool, list, dict, "
        "Literal, an Enum or unions of them, or pass the tool as a schema"
    )


def _union_schema(members: tuple[Any, ...], where: str) -> Schema:
    schemas = [_hint_schema(member, where) for member in members if member is not type(None)]
    if len(schemas) == 1:
        union = schemas[0]
    elif all(set(schema) == {"type"} and isinstance(schema["type"], str) for schema in schemas):
        names = sorted({schema["type"] for schema in schemas})
        union = {"type": names[0] if len(names) == 1 else names}
    else:
        union = {"anyOf": schemas}
    if type(None) in members:
        union["nullable"] = True
    return union


def _values_schema(values: list[Any], where: str) -> Schema:
    """Schema of a value that is one of a few."""
    if not values or any(type(value) not in _SCALARS for value in values):
        raise TemplateError(f"{where}: the values {values!r} are not plain JSON scalars")
    names = list(dict.fromkeys(_SCALARS[type(value)] for value in values))
    return {"type": names[0] if len(names) == 1 else names, "enum": values}


def _parse_docstring(docstring: str) -> tuple[str, dict[str, str], str | None]:
    """Description, arguments and result of a Google-style docstring."""
    parts = re.split(r"[\n\s]*(Args|Returns|Raises):", docstring)
    sections: dict[str, str] = {}
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        sections.setdefault(title, body)
    returns = sections["Returns"].strip() if "Returns" in sections else None
    return parts[0].strip(), _parse_arguments(sections.get("Args", "")), returns


def _parse_arguments(block: str) -> dict[str, str]:
    """Descriptions of the ``Args:`` block, continued lines joined."""
    arguments: dict[str, str] = {}
    name, indent = "", ""
    for line in filter(str.strip, block.split("\n")):
        entry = re.match(r"([ \t]*)(\w+):\s*(.*)", line)
        deeper = bool(name) and line.startswith((indent + " ", indent + "\t"))
        if entry is not None and not deeper:
            indent, name, text = entry.groups()
            arguments[name] = text.strip()
        elif name:
            arguments[name] = f"{arguments[name]} {line.strip()}".strip()
    return arguments
