"""Schemas, expressions and grammars that are small to send and large to compile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def bombs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Names, and values of response_format."""

    def schema(value: Any) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}

    def regex(value: str) -> dict[str, Any]:
        return {"type": "regex", "regex": value}

    yield "30,000 parentheses", regex("(" * 30_000 + "a" + ")" * 30_000)
    yield "repeats of repeats", regex("(a{1000}){1000}")
    yield "three deep", regex("((a{1000}){1000}){1000}")
    yield "a large count", regex("a{1000000000}")
    yield "alternatives", regex("(a|aa|aaa)+" * 500)
    yield "backtracking", regex("(a+)+" * 200 + "b")
    yield "classes", regex(r"[\w\W]{0,50000}" * 20)
    yield "stars", regex("(.*)*" * 3000)
    yield "anything 30,000 times", regex(".*" * 30_000)
    yield "unicode", regex(r"\p{L}{1,2000}" * 100)
    yield "intersections", {"type": "grammar", "grammar": "start: " + "a & " * 2000 + "a\na: /x/"}
    yield "100 deep", schema(nested(100))
    yield (
        "many properties",
        schema({"properties": {f"p{i}": {"type": "integer"} for i in range(2000)}}),
    )
    yield "endless recursion", schema({"$ref": "#"})
    yield (
        "mutual recursion",
        schema(
            {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
        ),
    )
    fan = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)}
    yield "2 to the 30", schema({"$defs": {**fan, "d30": {}}, "$ref": "#/$defs/d0"})
    yield (
        "any of any of",
        schema({"anyOf": [{"anyOf": [{"const": i * j} for i in range(30)]} for j in range(30)]}),
    )
    yield "lengths", schema({"type": "string", "minLength": 10**9})
    yield "items", schema({"type": "array", "minItems": 10**9, "items": {}})
    yield "a far address", schema({"$ref": "http://198.51.100.7/schema.json"})
    yield "a file", schema({"$ref": "file:///etc/passwd"})
    yield "an odd pattern", schema({"type": "string", "pattern": "(a{999}){999}(?=x)"})
    several = [{"pattern": f"a{i}"} for i in range(50)]
    yield "patterns that all hold", schema({"type": "string", "allOf": several})
    yield "a number", schema({"type": "number", "multipleOf": 1e-300, "minimum": 1e308})
    yield "left recursion", {"type": "grammar", "grammar": 'start: start start | "a" |'}
    yield "rules", {"type": "grammar", "grammar": "\n".join(
        ["start: r0", *(f"r{i}: r{i + 1} r{i + 1}" for i in range(999)), 'r999: "a"'])}  # fmt: skip
    yield "a chain of rules", {"type": "grammar", "grammar": "\n".join(
        ["start: r0", *(f"r{i}: r{i + 1}" for i in range(3500)), 'r3500: "a"'])}  # fmt: skip
    yield "500 rules", {"type": "grammar", "grammar": "\n".join(
        ["start: r0", *(f"r{i}: r{i + 1}" for i in range(498)), 'r498: "a"'])}  # fmt: skip
    yield "choices", {"type": "choice", "choices": [f"{i:x}" * 5 for i in range(8000)]}
    yield "too long", regex("a" * 70_000)
