"""The grammar of tool calls, in the forms in which checkpoints write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flashmoe.errors import ArgumentError

Schema = Mapping[str, Any]

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
_LAYOUT = {"whitespace_flexible": True, "whitespace_pattern": r"\x20|\n\x20{0,32}"}
"""JSON on one line or indented; a model that got lost could otherwise say spaces for ever."""

_CLOSES = r"/(.|\n)*<\/parameter>(.|\n)*/"


def forced_tools(
    tools: Sequence[Schema] | None, tool_choice: str | Schema | None
) -> list[dict[str, Any]]:
    """The functions of which one must be called; none if the answer is free.

    Args:
        tools: Functions in the OpenAI form.
        tool_choice: As in the OpenAI API.

    Raises:
        ArgumentError: The choice is unknown, or names a function that is not there.
    """
    if tool_choice in (None, "auto", "none"):
        return []
    functions = [dict(_object(tool.get("function", tool), "a tool")) for tool in tools or ()]
    if tool_choice == "required":
        if not functions:
            raise ArgumentError('tool_choice is "required", but there are no tools')
        return functions
    name = None
    if isinstance(tool_choice, Mapping):
        chosen = tool_choice.get("function", tool_choice)
        name = chosen.get("name") if isinstance(chosen, Mapping) else None
    if not isinstance(name, str):
        raise ArgumentError(
            'tool_choice must be "auto", "none", "required" or '
            '{"type": "function", "function": {"name": …}}, ' + f"not {tool_choice!r}"
        )
    named = [function for function in functions if function.get("name") == name]
    if not named:
        raise ArgumentError(f"tool_choice names {name!r}, which is not among the tools")
    return named[:1]


def tool_call_grammar(
    functions: Sequence[Schema],
    style: str | None,
    token_id: Callable[[str], int | None],
    *,
    many: bool,
) -> str:
    """A Lark grammar of one valid call, or of several.

    Args:
        functions: Those that may be called.
        style: ``"hermes"`` or ``"xml"``.
        token_id: Id of a token given by its text: where the checkpoint has tokens of their own for
            the tags, they must be used.
        many: More calls may follow the first.

    Raises:
        ArgumentError: The style is unknown, or a function has no usable parameters.
    """
    if style not in ("hermes", "xml"):
        raise ArgumentError(
            "how this checkpoint writes tool calls is not known, so a call cannot be forced; "
            'use tool_choice="auto"'
        )
    body = _hermes if style == "hermes" else _xml
    rules = [body(i, function) for i, function in enumerate(functions)]
    calls = " | ".join(f"call_{i}" for i in range(len(rules)))
    lines = [
        'start: block ("\\n" block)*' if many else "start: block",
        f"block: {_tag('<tool_call>', token_id)} call {_tag('</tool_call>', token_id)}",
        f"call: {calls}",
    ]
    return "\n".join([*lines, *rules]) + "\n"


def laid_out(schema: Schema) -> str:
    """A schema as JSON, with the white space that may be written.

    Args:
        schema: What is described.

    Raises:
        ArgumentError: A number in it is below what is compiled.
    """
    text = json.dumps({**schema, "x-guidance": _LAYOUT})
    nodes: list[Any] = [schema]
    while nodes:
        node = nodes.pop()
        if isinstance(node, Mapping):
            nodes += node.values()
        elif isinstance(node, (list, tuple)):
            nodes += node
        else:
            check_number(node, "the schema")
    return text


def check_number(value: Any, what: str) -> None:
    """Refuse a number that llguidance 1.9 rounds to -2^63.

    It recurses on the negative of that one, which is the same, until the stack ends and the process
    with it.

    Args:
        value: A number; anything else is right.
        what: It is in, for the error.

    Raises:
        ArgumentError: It is one of these.
    """
    if isinstance(value, (int, float)) and value <= 512 - 2**63:
        raise ArgumentError(f"{what}: numbers must be above -2^63, not {str(value)[:80]}")


def _tag(text: str, token_id: Callable[[str], int | None]) -> str:
    known = token_id(text)
    return _text(text) if known is None else f"<[{known}]>"


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{what} must be an object, not {str(value)[:80]}")
    return value


def _schema(value: Any, what: str) -> Schema:
    """A schema; ``true`` is one, too."""
    return {} if value is True else _object(value, f"{what}: its schema")


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _parameters(function: Schema) -> Schema:
    name, schema = function.get("name"), function.get("parameters") or _NO_PARAMETERS
    if not isinstance(name, str) or not name or any(c in name for c in '<>="\n'):
        raise ArgumentError(f"a tool cannot be called {name!r}")
    if not isinstance(schema, Mapping) or schema.get("type") != "object":
        raise ArgumentError(f"tool {name}: its parameters must be a schema of type object")
    return schema


def _hermes(index: int, function: Schema) -> str:
    schema = _parameters(function)
    head = f'\n{{"name": {_text(str(function["name"]))}, "arguments": '
    return (
        f"call_{index}: {_text(head)} arguments_{index} {_text('}') + ' ' + _text(chr(10))}\n"
        f"arguments_{index}: %json {laid_out(schema)}"
    )


def _xml(index: int, function: Schema) -> str:
    schema = _parameters(function)
    what = f"tool {function['name']}"
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
        raise ArgumentError(f"{what}: required must be a list of names")
    properties = _object(schema.get("properties", {}), f"{what}: properties")
    shared = {
        key: _object(schema[key], f"{what}: {key}")
        for key in ("$defs", "definitions")
        if key in schema
    }
    unknown = [key for key in required if key not in properties]
    if unknown:
        raise ArgumentError(f"{what}: {unknown[0]!r} is required but not declared")
    parts, rules = [_text(f"\n<function={function['name']}>\n")], []
    for at, (key, value) in enumerate(properties.items()):
        rule = f"p_{index}_{at}"
        if not key or any(c in key for c in "<>\n"):
            raise ArgumentError(f"{what}: a parameter cannot be called {key!r}")
        parts.append(rule if key in required else f"{rule}?")
        rules.append(_xml_parameter(rule, key, value, shared))
    parts.append(_text("</function>\n"))
    return "\n".join([f"call_{index}: {' '.join(parts)}", *rules])


def _xml_parameter(rule: str, key: str, given: Any, shared: Schema) -> str:
    """Text stands as it is, every other value as JSON."""
    where = f"parameter {key}"
    schema = _resolved(_schema(given, where), shared)
    opening = _text(f"<parameter={key}>\n")
    ending = "\\n<\\/parameter>\\n"
    if "enum" in schema or "const" in schema:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        if not isinstance(values, list) or not values:
            raise ArgumentError(f"{where}: enum must be a list, not empty")
        said = (value if isinstance(value, str) else json.dumps(value) for value in values)
        values_rule = " | ".join(_text(f"{value}\n</parameter>\n") for value in said)
        return f"{rule}: {opening} ({values_rule})"
    if "anyOf" in schema:
        if not isinstance(schema["anyOf"], list) or not schema["anyOf"]:
            raise ArgumentError(f"{where}: anyOf must be a list, not empty")
        names = [f"{rule}_{i}" for i in range(len(schema["anyOf"]))]
        each = zip(names, schema["anyOf"], strict=True)
        rules = [_xml_parameter(name, key, branch, shared) for name, branch in each]
        return "\n".join([f"{rule}: {' | '.join(names)}", *rules])
    kinds = schema.get("type")
    if kinds == "string" or (isinstance(kinds, list) and "string" in kinds):
        # One terminal up to its closing tag, which the value itself cannot hold.
        return (
            f"{rule}: {opening} {rule.upper()}\n"
            f"{rule.upper()}: ({_string(schema, where)} & ~{_CLOSES}) /{ending}/"
        )
    return (
        f"{rule}: {opening} {rule}_value {_text(chr(10) + '</parameter>' + chr(10))}\n"
        f"{rule}_value: %json {laid_out({**schema, **shared})}"
    )


def _resolved(schema: Schema, shared: Schema) -> Schema:
    """Follow references to the shared definitions."""
    for _ in range(16):
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        _, group, name = [*reference.split("/", 2), "", ""][:3]
        found = shared.get(group, {}).get(name)
        if not isinstance(found, Mapping):
            return schema
        schema = found
    return schema


def _string(schema: Schema, where: str) -> str:
    """The texts of a string schema as a terminal."""
    for key in ("format", "not", "anyOf", "oneOf", "allOf"):
        if key in schema:
            raise ArgumentError(f"{where}: {key} of a text cannot be enforced in this call style")
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    if type(least) is not int or least < 0 or (most != "" and (type(most) is not int or most < 0)):
        raise ArgumentError(f"{where}: minLength and maxLength must be whole numbers")
    terminal = f"/(.|\\n){{{least},{most}}}/"
    if "pattern" in schema:
        import llguidance

        pattern = str(schema["pattern"])
        head = "" if pattern.startswith("^") else "(.|\\n)*"
        tail = "" if pattern.endswith("$") else "(.|\\n)*"
        inner = pattern.removeprefix("^").removesuffix("$")
        inner = llguidance.regex_to_lark(inner, use_ascii="dw")
        terminal = f"{terminal} & /{head}({inner}){tail}/"
    return terminal
