"""Prompts that ask for a tool, and whether what a model writes is a call that fits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmoe.errors import ArgumentError, FlashMoEError
from flashmoe.reply import ReplyParser, starts_in_reasoning, tool_style

if TYPE_CHECKING:
    from flashmoe.model import Model

MAX_TOKENS = 300


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for an answer.

    Attributes:
        messages: As in the OpenAI API.
        tools: Schemas of the tools on offer; without any, the answer itself is to be JSON.
        expected: The calls that a good answer makes, each a name and its arguments; None where
            nobody wrote them down.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    expected: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class CallScore:
    """Answers to a set of prompts.

    Attributes:
        prompts: How many were asked.
        valid: Answers whose calls, one or more, are whole and valid JSON; without tools, answers
            that are JSON.
        fits: Those of them that name offered tools and keep to their schemas.
        expected: Prompts that say which calls they expect.
        exact: Answers that make exactly these calls.
        answers: The text of each answer.
    """

    prompts: int
    valid: int
    fits: int
    expected: int
    exact: int
    answers: list[str] = field(repr=False, default_factory=list)


def read_prompts(path: Path | str) -> list[Prompt]:
    """Read prompts from a JSONL file.

    Args:
        path: Each line an object with ``messages`` and, if wanted, ``tools`` and ``expected``: a
            call ``{"name": ..., "arguments": {...}}`` or a list of them.

    Raises:
        ArgumentError: A line is something else; the message has its number.
    """
    out = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            expected = value.get("expected")
            calls = [expected] if isinstance(expected, dict) else expected
            for call in calls or ():
                if not isinstance(call["name"], str) or not isinstance(call["arguments"], dict):
                    raise TypeError("an expected call needs a name and an object of arguments")
            if not isinstance(value["messages"], list):
                raise TypeError("messages is no list")
            out.append(Prompt(value["messages"], value.get("tools") or (), calls))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArgumentError(
                f"{path}, line {number}: {type(error).__name__}: {error}; a line is an object with "
                "messages, tools and expected"
            ) from error
    if not out:
        raise ArgumentError(f"{path} holds no prompts")
    return out


def score_calls(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int = MAX_TOKENS,
    on_answer: Callable[[], object] = lambda: None,
) -> CallScore:
    """Answer every prompt greedily and judge the answers.

    Args:
        model: What answers.
        prompts: What is asked.
        max_tokens: Longest answer.
        on_answer: Called after each.

    Raises:
        FlashMoEError: jsonschema is not installed, or a prompt cannot be answered.
    """
    from flashmoe.generator import Generator
    from flashmoe.sampler import Sampler

    _validator()
    with Generator(model, Sampler(temperature=0)) as generator:
        rendered = [generator.render(p.messages, p.tools or None) for p in prompts]
        answers = generator.generate_batch(
            [model.tokenizer.encode(text) for text in rendered],
            max_tokens=max_tokens,
            on_answer=lambda _index, _answer: on_answer(),
        )
    template = model.tokenizer.chat_template
    style = tool_style("\n".join(template.sources.values())) if template else None
    seen = [
        judge(p, a.text, style=style or "hermes", in_reasoning=starts_in_reasoning(text))
        for p, a, text in zip(prompts, answers, rendered, strict=True)
    ]
    return CallScore(
        prompts=len(prompts),
        valid=sum(valid for valid, _, _ in seen),
        fits=sum(fits for _, fits, _ in seen),
        expected=sum(p.expected is not None for p in prompts),
        exact=sum(exact for _, _, exact in seen),
        answers=[a.text for a in answers],
    )


def judge(
    prompt: Prompt, text: str, *, style: str = "hermes", in_reasoning: bool = False
) -> tuple[bool, bool, bool]:
    """Whether an answer is valid, fits the schemas, and is what was expected.

    Args:
        prompt: What was asked.
        text: The answer.
        style: How the model writes calls, of :func:`flashmoe.reply.tool_style`.
        in_reasoning: Whether the answer begins with what the model thinks.
    """
    reply = ReplyParser(
        style=style if prompt.tools else None, in_reasoning=in_reasoning, tools=prompt.tools
    )
    reply.push(text)
    reply.finish()
    if not prompt.tools:
        valid = _is_json(reply.content)
        return valid, valid, False
    if not reply.tool_calls or "<tool_call>" in reply.content:  # what is no call stays content
        return False, False, False
    calls = [{"name": c.name, "arguments": c.arguments} for c in reply.tool_calls]
    fits = all(_fits(call, prompt.tools) for call in calls)
    exact = prompt.expected is not None and calls == [
        {"name": c["name"], "arguments": c["arguments"]} for c in prompt.expected
    ]
    return True, fits, exact


def _is_json(text: str) -> bool:
    body = text.strip()
    fenced = re.fullmatch(r"```(?:json)?\n(.*)\n```", body, flags=re.DOTALL)
    try:
        json.loads(fenced[1] if fenced else body)
    except (ValueError, RecursionError):
        return False
    return True


def _fits(call: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> bool:
    functions = [tool.get("function", tool) for tool in tools]
    schemas = {f["name"]: f.get("parameters") or {} for f in functions}
    if call["name"] not in schemas:
        return False
    schema = schemas[call["name"]]
    undeclared = set(call["arguments"]) - set(schema.get("properties", call["arguments"]))
    if undeclared and "additionalProperties" not in schema:
        return False  # JSON schema allows what it does not name; a function does not take it
    return bool(_validator()(schema).is_valid(call["arguments"]))


def _validator() -> Any:
    try:
        from jsonschema import Draft202012Validator
    except ImportError as error:
        raise FlashMoEError(
            f'judging tool calls needs jsonschema ({error}): run pip install "flashmoe[bench]"'
        ) from error
    return Draft202012Validator
