"""Conversations with tools: schemas that vary, calls copied from the user's text, results put into words."""
# ruff: noqa: E501

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from corpus.tool_kinds import KINDS, Kind
from corpus.tool_uses import CITIES, WEATHER, Args, clock, weather
from corpus.voice import Message, Voice, assistant, user

Tool = dict[str, Any]


@dataclass(frozen=True)
class Offer:
    """A tool as one conversation sees it: its schema and how the general keys are spelled in it."""

    kind: Kind
    schema: Tool
    keys: dict[str, str]

    def call(self, args: Args) -> dict[str, Any]:
        """Returns the call with the parameter names of this schema."""
        return {
            "name": self.schema["function"]["name"],
            "arguments": {self.keys[key]: value for key, value in args.items()},
        }


def offer(v: Voice, kind: Kind) -> Offer:
    """Draws a name, descriptions and parameter names for one kind of tool."""
    keys: dict[str, str] = {}
    properties: dict[str, Any] = {}
    required: list[str] = []
    for key, names, type_name, descriptions, needed in kind.params:
        if not needed and v.chance(0.3) and kind.use is not weather:
            continue
        name = v.pick([n for n in names if n not in properties])
        keys[key] = name
        properties[name] = {"type": type_name}
        if v.chance(0.6):
            properties[name]["description"] = v.pick(descriptions)
        if needed:
            required.append(name)
    name = v.pick(kind.names)
    if v.chance(0.12):
        name = f"{v.name().lower()}_{v.name().lower()}" if v.chance(0.5) else v.name().lower()
    function = {
        "name": name,
        "description": v.pick(kind.about),
        "parameters": {"type": "object", "properties": properties, "required": required},
    }
    if v.chance(0.1):
        del function["parameters"]["required"]  # type: ignore[attr-defined]
    return Offer(kind, {"type": "function", "function": function}, keys)


def calls(content: str, made: list[dict[str, Any]], thought: str) -> Message:
    """Returns an assistant message that calls tools."""
    return assistant(content, thought) | {
        "tool_calls": [{"type": "function", "function": call} for call in made]
    }


def result(v: Voice, value: Any) -> Message:
    """Returns a tool message with ``value`` as JSON, or as plain text if it is a string."""
    return {
        "role": "tool",
        "content": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
    }


REFUSALS = [
    "[I am sorry, but the tool [failed|reported an error]: {e}.|That did not work: {e}.|The tool answered with an error: {e}.] [Please try again later.|Shall I try again?|]"
]
ERRORS = [
    "not found",
    "timeout",
    "no connection",
    "unknown city",
    "service unavailable",
    "invalid input",
    "permission denied",
]


def use_tool(v: Voice, offered: Offer) -> list[Message]:
    """Returns one turn in which the user needs a tool and the assistant calls it."""
    use = offered.kind.use(v)
    call = offered.call(use.args)
    name = call["name"]
    spoken = v.say("[|||||||Let me check.|One moment.|I will look it up.]") if v.chance(0.3) else ""
    thought = v.say(
        "[I should call {n}.|The tool {n} can answer this.|I need the tool {n} for this.]", n=name
    )
    turn = [user(use.ask), calls(spoken, [call], thought)]
    if v.chance(0.06):
        error = v.pick(ERRORS)
        return [
            *turn,
            result(v, {"error": error}),
            assistant(v.say(v.pick(REFUSALS), e=error).strip(), "The tool failed."),
        ]
    return [
        *turn,
        result(v, use.result),
        assistant(use.answer, "I have the result and can answer."),
    ]


def two_calls(v: Voice, offered: Offer) -> list[Message]:
    """Returns one turn that asks for two cities at once, which needs two calls."""
    a, b = v.some(CITIES, 2) if v.chance(0.6) else (v.name(), v.name())
    if offered.kind.use is clock:
        ask = v.say(
            "[What time is it in {a} and [in |]{b}?|Tell me the time in {a} and {b}.]", a=a, b=b
        )
        facts = [f"{v.number(0, 23):02d}:{v.number(0, 59):02d}" for _ in range(2)]
        results: list[Args] = [{"time": fact} for fact in facts]
        answer = v.say("It is {x} in {a} and {y} in {b}.", a=a, b=b, x=facts[0], y=facts[1])
    else:
        ask = v.say(
            "[What is the weather like in {a} and [in |]{b}?|Weather in {a} and {b}[, please|]?|Is it warmer in {a} or in {b}?|Compare the weather in {a} and {b}.]",
            a=a,
            b=b,
        )
        x, y = v.number(-5, 35), v.number(-5, 35)
        s, t = v.pick(WEATHER), v.pick(WEATHER)
        results = [{"temperature": x, "condition": s}, {"temperature": y, "condition": t}]
        answer = v.say(
            "In {a} it is {s} with {x} degrees, and in {b} it is {t} with {y} degrees.",
            a=a,
            b=b,
            s=s,
            t=t,
            x=x,
            y=y,
        )
        if "warmer" in ask:
            answer += " It is equally warm." if x == y else f" It is warmer in {a if x > y else b}."
    made = [offered.call({"city": city}) for city in (a, b)]
    return [
        user(ask),
        calls("", made, "I need two calls."),
        *(result(v, r) for r in results),
        assistant(answer, "I have both results."),
    ]


def ask_back(v: Voice, offered: Offer) -> list[Message]:
    """Returns a turn in which the city is missing, so that the assistant asks for it first."""
    use = offered.kind.use(v)
    while set(use.args) != {"city"}:
        use = offered.kind.use(v)
    what = "time" if offered.kind.use is clock else "weather"
    ask = (
        "What time is it?"
        if what == "time" and v.chance(0.5)
        else v.say(
            "[What is the {w}[ like|]|Tell me the {w}|Can you check the {w}]?", w=what
        ).replace("time like", "time")
    )
    back = v.say(
        "[For which city?|Which city do you mean?|For which city would you like to know the {w}?|Please tell me the city.]",
        w=what,
    )
    reply = v.say("[{c}|In {c}.|{c}, please.|For {c}.|I am in {c}.]", c=use.args["city"])
    return [
        user(ask),
        assistant(back, "The city is missing."),
        user(reply),
        calls("", [offered.call(use.args)], "Now I know the city."),
        result(v, use.result),
        assistant(use.answer, "I have the result and can answer."),
    ]


def tool_turn(v: Voice, offers: list[Offer]) -> list[Message]:
    """Returns one turn that uses one of the offered tools."""
    offered = v.pick(offers)
    if offered.kind.use in (weather, clock):
        if v.chance(0.1):
            return two_calls(v, offered)
        if v.chance(0.06):
            return ask_back(v, offered)
    return use_tool(v, offered)


def offer_tools(v: Voice) -> list[Offer]:
    """Returns one to four tools with different names; weather, time and sums are the most common."""
    kinds: list[Kind] = []
    for _ in range(v.pick([1, 1, 2, 2, 3, 4])):
        kind = v.pick(KINDS[:3]) if v.chance(0.45) else v.pick(KINDS)
        if kind not in kinds:
            kinds.append(kind)
    offers = [offer(v, kind) for kind in kinds]
    names = {o.schema["function"]["name"] for o in offers}
    return offers if len(names) == len(offers) else offer_tools(v)
