"""Lets a model call Python functions until it has its answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flashmoe.errors import ArgumentError, ToolLoopError

if TYPE_CHECKING:
    from flashmoe.answer import Generation
    from flashmoe.generator import Generator
    from flashmoe.reply import ToolCall

Approve = Callable[["ToolCall"], bool]


@dataclass(frozen=True)
class ToolRun:
    """A conversation in which functions were called.

    Attributes:
        answer: The last answer, which calls nothing.
        messages: The conversation with all calls, their results and the answer.
        calls: Every call and the text of its result, in order.
    """

    answer: Generation
    messages: list[dict[str, Any]]
    calls: list[tuple[ToolCall, str]]

    def __str__(self) -> str:
        return self.answer.content


def run_tools(
    generator: Generator,
    messages: Sequence[Any],
    functions: Sequence[Callable[..., Any]],
    *,
    max_rounds: int = 8,
    approve: Approve | None = None,
    **options: Any,
) -> ToolRun:
    """Answer a conversation, calling functions as the model wants.

    What a function raises, a function that there is not and arguments that do not fit go back to
    the model as text: it may correct itself.

    Args:
        generator: Answers.
        messages: The conversation so far; it is not changed.
        functions: With type hints and docstrings; a result that is no text becomes JSON.
        max_rounds: Answers that may call functions.
        approve: Asked before each call; ``False`` tells the model that it was refused.
        **options: Of :meth:`Generator.chat`.

    Raises:
        ToolLoopError: The model still calls functions after ``max_rounds`` answers.
    """
    if max_rounds < 1:
        raise ArgumentError(f"max_rounds must be at least 1, not {max_rounds}")
    known = {function.__name__: function for function in functions}
    if len(known) != len(functions):
        raise ArgumentError("two of the functions have the same name")
    said = [dict(message) for message in messages]
    calls: list[tuple[ToolCall, str]] = []
    for _ in range(max_rounds + 1):
        answer = generator.chat(said, list(functions), **options)
        said.append(answer.message)
        if not answer.tool_calls:
            return ToolRun(answer, said, calls)
        for call in answer.tool_calls:
            refused = approve is not None and not approve(call)
            result = call_function(call, None if refused else known)
            calls.append((call, result))
            said.append({"role": "tool", "tool_call_id": call.id, "content": result})
    raise ToolLoopError(
        f"the model called functions in each of {max_rounds + 1} answers; raise max_rounds if "
        "that is to be expected",
        said,
    )


def call_function(call: ToolCall, known: Mapping[str, Callable[..., Any]] | None) -> str:
    """What a call gives, as text for the model.

    Args:
        call: What the model wants.
        known: Functions by name; None if the user refused the call.
    """
    if known is None:
        return "The user refused this call."
    if call.name not in known:
        return f"Error: there is no function {call.name!r}, only {', '.join(sorted(known))}."
    try:
        value = known[call.name](**call.arguments)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except Exception as error:  # it is the function's, and the model's to deal with
        return f"Error: {type(error).__name__}: {error}"
