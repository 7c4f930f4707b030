"""A model that calls Python functions: the demo model for real, and a scripted one for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import flashmoe
from flashmoe.answer import Chunk, Generation, Stats
from flashmoe.reply import ToolCall

QUESTION = [{"role": "user", "content": "What is the weather in Oslo for 3 days?"}]


def get_weather(city: str, days: int = 1) -> str:
    """Gives the weather for a city.

    Args:
        city: Name of the city.
        days: Number of days.
    """
    return f"sunny in {city} for {days} days"


@pytest.fixture(scope="module")
def generator() -> Iterator[flashmoe.Generator]:
    with flashmoe.Model(flashmoe.demo_model_path()) as model:
        yield flashmoe.Generator(model, flashmoe.Sampler(temperature=0))


def test_an_answer_in_its_parts(generator: flashmoe.Generator) -> None:
    got = generator.chat(QUESTION, tools=[get_weather])
    (call,) = got.tool_calls
    assert (call.name, call.arguments) == ("get_weather", {"city": "Oslo", "days": 3})
    assert (got.finish_reason, got.content, got.reasoning) == ("tool_calls", "", "")
    assert "<tool_call>" in got.text
    said = [*QUESTION, got.message]
    # the call, rendered again, is what the model wrote
    assert got.text in generator.render(said, [get_weather], add_generation_prompt=False)
    plain = generator.chat([{"role": "user", "content": "What is a mixture of experts?"}])
    assert (plain.content, plain.tool_calls) == (plain.text, [])
    assert generator.generate("Once", max_tokens=3).content


def test_the_model_calls_and_answers(generator: flashmoe.Generator) -> None:
    run = flashmoe.run_tools(generator, QUESTION, [get_weather], max_tokens=100)
    called, result = run.calls[0]
    assert (called.name, result) == ("get_weather", "sunny in Oslo for 3 days")
    assert run.messages[: len(QUESTION)] == QUESTION
    assert run.messages[-1]["content"] == run.answer.content == str(run) != ""


class Script:
    """A generator whose answers are known."""

    def __init__(self, *answers: list[ToolCall] | str) -> None:
        self.answers = list(answers)
        self.seen: list[list[Any]] = []

    def chat(self, messages: list[Any], tools: list[Any], **options: Any) -> Generation:
        self.seen.append(messages)
        answer = self.answers.pop(0)
        chunk = Chunk("", 0, 0.0, "stop")
        made = Generation.of([chunk], Stats())
        calls = answer if isinstance(answer, list) else []
        text = answer if isinstance(answer, str) else ""
        return Generation(made.text, [0], [0.0], "stop", Stats(), text, "", calls)


def call(name: str = "get_weather", **arguments: Any) -> list[ToolCall]:
    return [ToolCall("call_1", name, arguments)]


def broken() -> None:
    """Fails."""
    raise ValueError("no luck")


def table() -> dict[str, int]:
    """Gives a table."""
    return {"é": 1}


@pytest.mark.parametrize(
    ("asked", "result"),
    [
        (call(city="Oslo"), "sunny in Oslo for 1 days"),
        (
            call("nothing"),
            "Error: there is no function 'nothing', only broken, get_weather, table.",
        ),
        (call(town="Oslo"), "Error: TypeError: "),
        (call("broken"), "Error: ValueError: no luck"),
        (call("table"), '{"é": 1}'),
    ],
)
def test_what_goes_back_to_the_model(asked: list[ToolCall], result: str) -> None:
    script: Any = Script(asked, "done")
    run = flashmoe.run_tools(script, QUESTION, [get_weather, broken, table])
    assert run.messages[-2]["content"].startswith(result)
    assert str(run) == "done"


def test_a_call_may_be_refused() -> None:
    script: Any = Script([*call(city="Oslo"), *call(city="Bern")], "done")
    run = flashmoe.run_tools(
        script, QUESTION, [get_weather], approve=lambda c: c.arguments["city"] == "Bern"
    )
    assert [text for _, text in run.calls] == [
        "The user refused this call.",
        "sunny in Bern for 1 days",
    ]


def test_there_is_an_end() -> None:
    script: Any = Script(*[call(city="Oslo")] * 4)
    with pytest.raises(flashmoe.ToolLoopError, match="each of 3 answers") as end:
        flashmoe.run_tools(script, QUESTION, [get_weather], max_rounds=2)
    assert len(end.value.messages) == 1 + 2 * 3
    with pytest.raises(flashmoe.ArgumentError):
        flashmoe.run_tools(script, QUESTION, [get_weather], max_rounds=0)
    with pytest.raises(flashmoe.ArgumentError, match="same name"):
        flashmoe.run_tools(script, QUESTION, [get_weather, get_weather])
