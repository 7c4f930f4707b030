"""The text of a tool call, as models write it, and the call that it is."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flashmoe import strict_json

Schema = Mapping[str, Any]

_FUNCTION = re.compile(r"\s*<function=([^>\n]*)>")
_PARAMETER = re.compile(r"<parameter=([^>\n]*)>")
# A value may hold "</parameter>" itself: only one that the next part follows ends it.
_VALUE_END = re.compile(r"</parameter>\s*(?=<parameter=|</function>|\Z)")
_VALUE_CUT = re.compile(r"\n<parameter=|</function>|\Z")


def tool_style(template: str) -> str | None:
    """How a checkpoint's model writes calls, by the text of its chat template.

    Args:
        template: Jinja source.

    Returns:
        ``"xml"`` (Qwen3-Coder, Qwen3.5 and later), ``"hermes"`` (JSON; Qwen3), or ``None`` where
        neither is known.
    """
    if re.search(r"<tool_call>(\\n|\s)*<function=", template):
        return "xml"
    if "<tool_call>" in template and "<arg_key>" not in template:
        return "hermes"
    return None


def parse_call(
    text: str, style: str, tools: Sequence[Schema], *, whole: bool = False
) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments of a call.

    Args:
        text: What stands between ``<tool_call>`` and ``</tool_call>``.
        style: Of :func:`tool_style`.
        tools: The tools that were offered, in OpenAI's form: their schemas tell the types.
        whole: Take no call in XML that lacks its last tag.

    Returns:
        ``None`` if it is no call.
    """
    # a model may use the other form all the same
    forms = (_xml, _hermes) if style == "xml" else (_hermes, _xml)
    if whole and "<function=" in text and not text.rstrip().endswith("</function>"):
        forms = (_hermes, _hermes)
    call = forms[0](text, tools) or forms[1](text, tools)
    return call if call is None or "\\" not in text else _whole_characters(call)


def _whole_characters(call: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]] | None:
    """U+FFFD for halves of characters, which escapes such as ``\\ud800`` give and UTF-8 lacks."""
    try:
        halves = json.dumps(call, ensure_ascii=False).encode("utf-16-le", "surrogatepass")
        name, arguments = json.loads(halves.decode("utf-16-le", "replace"))
    except RecursionError:
        return None
    return name, arguments


def _hermes(text: str, tools: Sequence[Schema]) -> tuple[str, dict[str, Any]] | None:
    """``{"name": …, "arguments": {…}}``"""
    try:
        call = strict_json.loads(text, halves=True)
        if not isinstance(call, dict):
            return None
        arguments = call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = strict_json.loads(arguments, halves=True) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return None
    name = call.get("name")
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return None
    return name, arguments


def _xml(text: str, tools: Sequence[Schema]) -> tuple[str, dict[str, Any]] | None:
    """``<function=f><parameter=k>v</parameter></function>``"""
    begin = _FUNCTION.match(text)
    if begin is None or not begin[1].strip():
        return None
    name, at = begin[1].strip(), begin.end()
    properties = _properties(name, tools)
    arguments: dict[str, Any] = {}
    while parameter := _PARAMETER.search(text, at):
        end = _VALUE_END.search(text, parameter.end())
        cut = _VALUE_CUT.search(text, parameter.end())
        if end is None or (cut is not None and "</parameter>" not in text[end.start() : end.end()]):
            end = cut  # it was not closed
        assert end is not None  # the end of the text, if nothing else
        key, value = parameter[1].strip(), text[parameter.end() : end.start()]
        value = value.removeprefix("\n").removesuffix("\n")
        arguments[key] = typed(value, properties.get(key))
        at = end.end() if end.re is _VALUE_END else end.start()
    return name, arguments


def _properties(name: str, tools: Sequence[Schema]) -> Mapping[str, Any]:
    """The parameters' schemas of a tool; none if there is no such tool."""
    for tool in tools:
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and function.get("name") == name:
            parameters = function.get("parameters")
            properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
            return properties if isinstance(properties, Mapping) else {}
    return {}


def typed(value: str, schema: Any) -> Any:
    """A value that was written as text, as what its schema says that it is.

    Args:
        value: The text.
        schema: Of the parameter; ``None`` if it was not declared.

    Returns:
        The text itself where it is none of the types that it may have.
    """
    kinds = _kinds(schema)
    if not kinds:
        found = _literal(value)
        return found if isinstance(found, (dict, list)) else value
    if "null" in kinds and value.strip() in ("null", "None"):
        return None
    for kind in kinds:
        found = _as(kind, value)
        if found is not None:
            return found
    return value


def _kinds(schema: Any) -> list[str]:
    """The types that a schema allows, strings last."""
    if not isinstance(schema, Mapping):
        return []
    kinds: list[str] = []
    given = schema.get("type")
    kinds += [given] if isinstance(given, str) else given if isinstance(given, list) else []
    for name in ("anyOf", "oneOf"):
        for part in _list(schema.get(name)):
            kinds += _kinds(part)
    if schema.get("nullable") is True:
        kinds.append("null")
    for one in _list(schema.get("enum")) if not kinds else ():
        kinds.append("string" if isinstance(one, str) else "json")
    return sorted((k for k in kinds if isinstance(k, str)), key=lambda kind: kind == "string")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _as(kind: str, value: str) -> Any:
    """A value as a type; None if it is none of it."""
    text = value.strip()
    try:
        match kind:
            case "integer":
                whole = re.fullmatch(r"([-+]?\d{1,400})(\.0+)?", text)
                return int(whole[1]) if whole else None
            case "number":
                if re.fullmatch(r"[-+]?\d{1,400}", text):
                    return int(text)
                number = float(text)
                return number if math.isfinite(number) else None
            case "boolean":
                return {"true": True, "false": False}.get(text.lower())
            case "object":
                found = _literal(text)
                return found if isinstance(found, dict) else None
            case "array":
                found = _literal(text)
                return found if isinstance(found, list) else None
            case "json":
                return _literal(text)
    except ValueError:
        return None
    return None


def _literal(text: str) -> Any:
    """JSON, or the Python literal that some models write instead; None if it is neither."""
    try:
        return strict_json.loads(text, halves=True)
    except (ValueError, RecursionError):
        pass
    try:
        found = ast.literal_eval(text.strip())
        plain = json.dumps(found, allow_nan=False)  # sets and bytes are no JSON
        return json.loads(plain)  # keys are strings now
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
