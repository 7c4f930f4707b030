"""Anthropic's own client against `flashmoe serve`: answers, streams, tools with JSON schemas.

flashmoe serve --demo            # or: flashmoe serve MODEL --memory 6GB
pip install anthropic
python examples/anthropic_client.py
"""

from __future__ import annotations

import argparse
import json

from anthropic import Anthropic

WEATHER = {
    "name": "get_weather",
    "description": "Gives the weather for a city.",
    "input_schema": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city."},
            "days": {"type": "integer", "description": "Number of days."},
        },
        "required": ["city"],
    },
}
TRIP = {
    "name": "plan_trip",
    "description": "Notes down a trip.",
    "input_schema": {
        "type": "object",
        "properties": {
            "city": {"enum": ["Oslo", "Rome"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}


def get_weather(city: str, days: int = 1) -> str:
    low, high = 14, 21  # a real one would ask a weather service
    forecast = {"city": city, "days": days, "condition": "sunny", "low": low, "high": high}
    return json.dumps(forecast)


def stream(client: Anthropic, model: str) -> None:
    messages = [{"role": "user", "content": "What is a mixture of experts?"}]
    with client.messages.stream(model=model, max_tokens=300, messages=messages) as answer:
        for text in answer.text_stream:
            print(text, end="", flush=True)
    print()


def tools(client: Anthropic, model: str) -> None:
    """Two rounds: the model calls the function, and answers with what it gave."""
    messages = [{"role": "user", "content": "Weather forecast for Oslo, 3 days"}]
    options = {
        "model": model,
        "max_tokens": 300,
        "tools": [WEATHER],
        "extra_body": {"temperature": 0},
    }
    answer = client.messages.create(messages=messages, **options)
    messages.append({"role": "assistant", "content": answer.content})
    results = []
    for block in answer.content:
        if block.type == "tool_use":
            print(f"{block.name}({block.input})")
            text = get_weather(**block.input)
            results.append({"type": "tool_result", "tool_use_id": block.id, "content": text})
    messages.append({"role": "user", "content": results or "Thank you."})
    answer = client.messages.create(messages=messages, **options)
    print("".join(block.text for block in answer.content if block.type == "text"))


def json_schema(client: Anthropic, model: str) -> None:
    """A forced call, whose input follows its schema; the server needs the extra `structured`."""
    answer = client.messages.create(
        model=model,
        max_tokens=300,
        messages=[{"role": "user", "content": "Plan a trip to Oslo for 3 days."}],
        tools=[TRIP],
        tool_choice={"type": "tool", "name": "plan_trip"},
        extra_body={"temperature": 0},
    )
    print(next(block.input for block in answer.content if block.type == "tool_use"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Anthropic's client against flashmoe serve")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", help="default: the one that the server has")
    options = parser.parse_args()

    client = Anthropic(base_url=options.url, api_key="none")
    model = options.model or client.models.list().data[0].id
    stream(client, model)
    tools(client, model)
    json_schema(client, model)


if __name__ == "__main__":
    main()
