"""The demo model's training data: deterministic, valid tool calls, and the shipped template."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TRAINING = Path(__file__).parents[1] / "training"
SEEDS = range(1500)
CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)

if not TRAINING.is_dir():
    pytest.skip("the training scripts are not beside these tests", allow_module_level=True)


@pytest.fixture(scope="module")
def training() -> Iterator[dict[str, Any]]:
    """Makes the training scripts importable for these tests only."""
    before = set(sys.modules)
    sys.path.insert(0, str(TRAINING))
    yield {name: importlib.import_module(name) for name in ("corpus.conversation", "rendering")}
    sys.path.remove(str(TRAINING))
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("corpus", "rendering"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def documents(training: dict[str, Any]) -> list[Any]:
    """Draws the documents of some seeds."""
    return [training["corpus.conversation"].document(f"test-{seed}") for seed in SEEDS]


def test_same_seed_same_document(training: dict[str, Any], documents: list[Any]) -> None:
    """A seed always gives the same document, and different seeds give different ones."""
    again = [training["corpus.conversation"].document(f"test-{seed}") for seed in range(200)]
    assert again == documents[:200]
    texts = {training["rendering"].render(drawn) for drawn in documents}
    assert len(texts) > 0.9 * len(documents)


def test_calls_fit_their_schema(documents: list[Any]) -> None:
    """Every call names an offered tool and gives each required argument in its declared type."""
    kinds: dict[str, Any] = {"string": str, "integer": int, "number": (int, float)}
    made = 0
    for drawn in documents:
        schemas = {t["function"]["name"]: t["function"]["parameters"] for t in drawn.tools}
        assert len(schemas) == len(drawn.tools)
        for message in drawn.messages:
            for call in message.get("tool_calls", []):
                schema = schemas[call["function"]["name"]]
                arguments = call["function"]["arguments"]
                assert set(schema.get("required", [])) <= set(arguments)
                for key, value in arguments.items():
                    assert isinstance(value, kinds[schema["properties"][key]["type"]])
                made += 1
    assert made > 300


def test_call_errors_finds_each_fault(training: dict[str, Any]) -> None:
    """The check that scores the trained model notices every way a call can be wrong."""
    check = training["corpus.conversation"].call_errors
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    }
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    good = {"name": "weather", "arguments": {"city": "Ulm", "days": 2}}
    assert check(good, tools) == []
    assert check(good | {"name": "time"}, tools) == ["unknown tool time"]
    assert check(good | {"arguments": {"days": 2}}, tools) == ["missing city"]
    assert check(good | {"arguments": {"city": "Ulm", "day": 2}}, tools) == ["undeclared day"]
    assert check(good | {"arguments": {"city": 5}}, tools) == ["city has the wrong type"]


def test_rendered_calls_are_json(training: dict[str, Any], documents: list[Any]) -> None:
    """The text that the model learns from holds each call as the same JSON object."""
    for drawn in documents:
        text = training["rendering"].render(drawn)
        start = text.find("<|im_start|>user")
        rendered = [json.loads(call) for call in CALL.findall(text[start:])]
        calls = [c["function"] for m in drawn.messages for c in m.get("tool_calls", [])]
        assert rendered == calls


def by_hand(drawn: Any) -> str:
    """Writes a conversation in the demo model's format without a template."""
    messages = drawn.messages
    last_query = max(i for i, m in enumerate(messages) if m["role"] == "user")
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    text = ""
    if drawn.tools:
        text += "<|im_start|>system\n" + (system + "\n\n" if system else "")
        text += "You can call these tools:\n<tools>\n"
        text += "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in drawn.tools)
        text += "</tools>\nTo call one, write its name and arguments as JSON:\n<tool_call>\n"
        text += '{"name": ..., "arguments": {...}}\n</tool_call><|im_end|>\n'
    elif system:
        text += f"<|im_start|>system\n{system}<|im_end|>\n"
    for i, message in enumerate(messages):
        role, content = message["role"], message["content"].strip()
        if role == "user":
            text += f"<|im_start|>user\n{content}<|im_end|>\n"
        if role == "tool":
            text += "" if messages[i - 1]["role"] == "tool" else "<|im_start|>user"
            text += f"\n<tool_response>\n{content}\n</tool_response>"
            more = i + 1 < len(messages) and messages[i + 1]["role"] == "tool"
            text += "" if more else "<|im_end|>\n"
        if role == "assistant":
            thought = message.get("reasoning_content")
            text += "<|im_start|>assistant\n"
            if thought is not None and i > last_query:
                text += f"<think>\n{thought}\n</think>\n\n"
            parts = [content] if content else []
            for call in message.get("tool_calls", []):
                arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
                name = call["function"]["name"]
                parts.append(
                    f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
                )
            text += "\n".join(parts) + "<|im_end|>\n"
    return text


def test_template_writes_the_format(training: dict[str, Any], documents: list[Any]) -> None:
    """The shipped template renders every kind of conversation exactly as written by hand."""
    seen = 0
    for drawn in documents:
        if drawn.messages:
            assert training["rendering"].render(drawn) == by_hand(drawn)
            seen += 1
    assert seen > 1000


def test_generation_prompt(training: dict[str, Any]) -> None:
    """The prompt opens the assistant's turn, and a thought only if thinking is asked for."""
    template = training["rendering"].template()
    messages = [{"role": "user", "content": " Hi "}]
    plain = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(messages=messages, add_generation_prompt=True) == plain
    for thinking, tail in ((True, "<think>\n"), (False, "")):
        text = template.render(
            messages=messages, add_generation_prompt=True, enable_thinking=thinking
        )
        assert text == plain + tail


def test_template_refuses_what_it_cannot_write(training: dict[str, Any]) -> None:
    """An unknown role and a late system message are errors, not silence."""
    jinja2 = pytest.importorskip("jinja2")
    template = training["rendering"].template()
    for messages, words in (
        ([{"role": "narrator", "content": "x"}], "Unknown role: narrator"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "must be the"),
    ):
        with pytest.raises(jinja2.exceptions.TemplateError, match=words):
            template.render(messages=messages)


def test_held_out_wordings_are_never_trained_on(documents: list[Any]) -> None:
    """No wording of more than 20 letters that marks a held-out document is in a trained one."""

    def said(drawn: Any) -> set[str]:
        texts = [m["content"] for m in drawn.messages if m["role"] == "user"]
        return {t.lower().strip(" .!?") for t in texts if len(t) > 24}

    held = [drawn for drawn in documents if drawn.held_out() and drawn.messages]
    trained = set().union(*(said(drawn) for drawn in documents if not drawn.held_out()))
    assert 0.05 < len(held) / len(documents) < 0.2
    single = [said(drawn) for drawn in held if len(said(drawn)) == 1]
    assert single
    assert not [texts for texts in single if texts <= trained]


def test_sums_are_right(training: dict[str, Any]) -> None:
    """The arithmetic in the data is arithmetic."""
    numbers = importlib.import_module("corpus.numbers")
    voice = importlib.import_module("corpus.voice")
    pattern = re.compile(r"(\d+) (plus|minus|times|divided by) (\d+) is (\d+)\b")
    checked = 0
    for seed in range(400):
        _, answer = numbers.small_sum(voice.Voice(seed))
        for a, word, b, result in pattern.findall(answer["content"]):
            expected = {
                "plus": int(a) + int(b),
                "minus": int(a) - int(b),
                "times": int(a) * int(b),
                "divided by": int(a) / int(b) if int(b) else 0,
            }[word]
            assert int(result) == expected
            checked += 1
    assert checked > 200


def test_unbalanced_pattern_is_refused() -> None:
    """A slip in a sentence pattern is an error where it is written."""
    voice = importlib.import_module("corpus.voice")
    assert voice.Voice(1).say("[a|a] {x}", x="[b]") == "a [b]"
    with pytest.raises(voice.PatternError, match="unbalanced"):
        voice.Voice(1).say("a] b")
    with pytest.raises(voice.PatternError, match="missing"):
        voice.Voice(1).say("[a b")
