"""Functions that the demo model may call, and the way from its text to a call."""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable
from typing import Any

_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
_MOST_DIGITS = 50
_OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


class ToolCallError(ValueError):
    """The model's text holds no call that can be carried out."""


def calculator(expression: str) -> dict[str, float]:
    """Evaluate an arithmetic expression

    Args:
        expression: The expression, such as 2 + 3
    """
    if len(expression) > _MOST_DIGITS:
        raise ToolCallError(f"{expression[:20]}… is longer than {_MOST_DIGITS} characters")
    text = expression.replace("×", "*").replace("÷", "/")
    try:
        value = _evaluate(ast.parse(text, mode="eval").body)
    except (SyntaxError, ZeroDivisionError, ToolCallError) as error:
        raise ToolCallError(f"{expression!r} cannot be evaluated: {error}") from error
    return {"result": round(value, 10)}


def _evaluate(node: ast.expr) -> float:
    """The value of numbers, + - * / and brackets; nothing else is an expression here."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_evaluate(node.operand))
    raise ToolCallError("only numbers, + - * / and brackets are allowed")


TOOLS: dict[str, Callable[..., Any]] = {"calculator": calculator}


def read_call(text: str) -> dict[str, Any]:
    """The first tool call in a model's answer.

    Args:
        text: The answer.

    Returns:
        ``name`` and ``arguments``.

    Raises:
        ToolCallError: There is none, or its JSON is not a call.
    """
    match = _CALL.search(text)
    if match is None:
        raise ToolCallError("the answer holds no <tool_call>")
    try:
        call = json.loads(match[1])
    except ValueError as error:
        raise ToolCallError(f"the call is not JSON: {error}") from error
    if not isinstance(call, dict) or not isinstance(call.get("arguments"), dict):
        raise ToolCallError("the call has no arguments")
    if call.get("name") not in TOOLS:
        raise ToolCallError(f"there is no tool {call.get('name')!r}")
    return {"name": call["name"], "arguments": call["arguments"]}


def call_tool(call: dict[str, Any]) -> Any:
    """Carry out a call.

    Args:
        call: From :func:`read_call`.

    Raises:
        ToolCallError: The arguments are not the function's.
    """
    try:
        return TOOLS[call["name"]](**call["arguments"])
    except TypeError as error:
        raise ToolCallError(str(error)) from error
