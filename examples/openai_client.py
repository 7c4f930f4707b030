"""OpenAI's own client against `flashmoe serve`: answers, streams, tools, JSON schemas.

flashmoe serve --demo            # or: flashmoe serve MODEL --memory 6GB
pip install openai
python examples/openai_client.py
"""

from __future__ import annotations

import argparse
import json

from openai import OpenAI

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Gives the weather for a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city."},
                "days": {"type": "integer", "description": "Number of days."},
            },
            "required": ["city"],
        },
    },
}
TRIP = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Oslo", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}


def get_weather(city: str, days: int = 1) -> str:
    low, high = 14, 21  # a real one would ask a weather service
    forecast = {"city": city, "days": days, "condition": "sunny", "low": low, "high": high}
    return json.dumps(forecast)


def stream(client: OpenAI, model: str) -> None:
    messages = [{"role": "user", "content": "What is a mixture of experts?"}]
    with client.chat.completions.create(model=model, messages=messages, stream=True) as chunks:
        for chunk in chunks:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


def tools(client: OpenAI, model: str) -> None:
    """Two rounds: the model calls the function, and answers with what it gave."""
    messages = [{"role": "user", "content": "Weather forecast for Oslo, 3 days"}]
    options = {"model": model, "tools": [WEATHER], "temperature": 0}
    message = client.chat.completions.create(messages=messages, **options).choices[0].message
    messages.append(message)
    for call in message.tool_calls or ():
        print(f"{call.function.name}({call.function.arguments})")
        result = get_weather(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    print(client.chat.completions.create(messages=messages, **options).choices[0].message.content)


def json_schema(client: OpenAI, model: str) -> None:
    """An answer that follows a schema; the server needs the extra `structured`."""
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Plan a trip to Oslo for 3 days."}],
        response_format={"type": "json_schema", "json_schema": {"name": "trip", "schema": TRIP}},
        temperature=0,
    )
    print(json.loads(answer.choices[0].message.content))


def main() -> None:
    parser = argparse.ArgumentParser(description="OpenAI's client against flashmoe serve")
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--model", help="default: the one that the server has")
    options = parser.parse_args()

    client = OpenAI(base_url=options.url, api_key="none")
    model = options.model or client.models.list().data[0].id
    stream(client, model)
    tools(client, model)
    json_schema(client, model)


if __name__ == "__main__":
    main()
