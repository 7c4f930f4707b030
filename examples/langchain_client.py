"""LangChain against `flashmoe serve`: a stream, a tool, a structured answer.

flashmoe serve --demo            # or: flashmoe serve MODEL --memory 6GB
pip install langchain-openai
python examples/langchain_client.py
"""

from __future__ import annotations

import argparse
import json
from typing import Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import BaseModel, Field


@tool
def get_weather(city: str, days: int = 1) -> str:
    """Gives the weather for a city."""
    low, high = 14, 21  # a real one would ask a weather service
    forecast = {"city": city, "days": days, "condition": "sunny", "low": low, "high": high}
    return json.dumps(forecast)


class Trip(BaseModel):
    """A trip."""

    city: Literal["Oslo", "Rome"]
    days: int = Field(ge=1, le=14)


def main() -> None:
    parser = argparse.ArgumentParser(description="LangChain against flashmoe serve")
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--model", help="default: the one that the server has")
    options = parser.parse_args()

    name = options.model or OpenAI(base_url=options.url, api_key="none").models.list().data[0].id
    model = ChatOpenAI(base_url=options.url, api_key="none", model=name, temperature=0)

    for chunk in model.stream("What is a mixture of experts?"):
        print(chunk.text, end="", flush=True)
    print()

    with_tools = model.bind_tools([get_weather])
    messages = [HumanMessage("Weather forecast for Oslo, 3 days")]
    answer = with_tools.invoke(messages)
    messages.append(answer)
    for call in answer.tool_calls:
        print(f"{call['name']}({call['args']})")
        result = get_weather.invoke(call["args"])
        messages.append(ToolMessage(result, tool_call_id=call["id"]))
    print(with_tools.invoke(messages).text)

    # Follows the class whatever the model would like to say; the server needs the extra
    # `structured`.
    planner = model.with_structured_output(Trip, method="json_schema")
    print(repr(planner.invoke("Plan a trip to Oslo for 3 days.")))


if __name__ == "__main__":
    main()
