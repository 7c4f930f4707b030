"""An answer's parts, however its text is cut; calls in both forms, whole and broken."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from flashmoe.reply import Delta, ReplyParser, starts_in_reasoning, tool_style
from flashmoe.tool_calls import typed

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "metric": {"type": "boolean"},
                "where": {"type": "object"},
                "names": {"type": "array"},
                "limit": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            },
        },
    },
}


def parse(
    text: str | list[str], style: str | None = "xml", in_reasoning: bool = False
) -> tuple[str, str, list[tuple[str, dict[str, Any]]]]:
    parser = ReplyParser(style=style, in_reasoning=in_reasoning, tools=[WEATHER])
    deltas: list[Delta] = []
    for piece in [text] if isinstance(text, str) else text:
        deltas += parser.push(piece)
    deltas += parser.finish()
    assert parser.finish() == []

    def joined(kind: str, index: int = 0) -> str:
        return "".join(d.text for d in deltas if (d.kind, d.index) == (kind, index))

    assert (joined("reasoning"), joined("content")) == (parser.reasoning, parser.content)
    for index, call in enumerate(parser.tool_calls):
        assert joined("tool_name", index) == call.name
        assert json.loads(joined("tool_arguments", index)) == call.arguments
    calls = [(call.name, call.arguments) for call in parser.tool_calls]
    return parser.reasoning, parser.content, calls


def xml(**arguments: str) -> str:
    inner = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in arguments.items())
    return f"<tool_call>\n<function=weather>\n{inner}</function>\n</tool_call>"


def hermes(**arguments: Any) -> str:
    call = json.dumps({"name": "weather", "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


OSLO = ("weather", {"city": "Oslo", "days": 3})
CASES = [
    ("plain", "Hello there.\n", False, ("", "Hello there.\n", [])),
    ("thought", "I see.\n</think>\n\nHello.", True, ("I see.", "Hello.", [])),
    ("opened by itself", "<think>\nI see.\n</think>\n\nHello.", False, ("I see.", "Hello.", [])),
    ("no end of thought", "I see, and\n", True, ("I see, and", "", [])),
    ("empty thought", "\n</think>\n\nHi", True, ("", "Hi", [])),
    ("xml", xml(city="Oslo", days="3"), False, ("", "", [OSLO])),
    ("hermes", hermes(city="Oslo", days=3), False, ("", "", [OSLO])),
    (
        "two after words",
        f"I will look.\n\n{xml(city='Oslo', days='3')}\n{xml(city='Bern')}",
        False,
        ("", "I will look.", [OSLO, ("weather", {"city": "Bern"})]),
    ),
    (
        "words after a call",
        xml(city="Oslo", days="3") + "\nDone.",
        False,
        ("", "Done.", [OSLO]),
    ),
    (
        "a call in a thought is a thought",
        f"maybe {xml(city='x')}\n</think>\n\n{xml(city='Oslo', days='3')}",
        True,
        (f"maybe {xml(city='x')}", "", [OSLO]),
    ),
    ("never closed", xml(city="Oslo", days="3").removesuffix("\n</function>\n</tool_call>"), False,
     ("", "", [OSLO])),
    ("no opening tag", xml(city="Oslo", days="3").removeprefix("<tool_call>\n"), False,
     ("", "", [OSLO])),
    ("no call", "<tool_call>never mind</tool_call> ok", False,
     ("", "<tool_call>never mind</tool_call> ok", [])),
    ("no call at all", "a <tool_call>", False, ("", "a <tool_call>", [])),
    (
        "ends inside an argument",
        xml(city="a</parameter>b</tool_call>c", days="3"),
        False,
        ("", "", [("weather", {"city": "a</parameter>b</tool_call>c", "days": 3})]),
    ),
    (
        "an end inside JSON",
        hermes(city="</tool_call>"),
        False,
        ("", "", [("weather", {"city": "</tool_call>"})]),
    ),
    ("a number that JSON lacks", hermes(city=float("nan")), False,
     ("", hermes(city=float("nan")), [])),
    ("one too large for JSON", hermes(days=1).replace(": 1}", ": 1e999}"), False,
     ("", hermes(days=1).replace(": 1}", ": 1e999}"), [])),
    ("the same in tags", xml(list="[NaN]", more="{'a': 1e999}", days="1e999"), False,
     ("", "", [("weather", {"list": "[NaN]", "more": "{'a': 1e999}", "days": "1e999"})])),
    ("half a tag", "1 <tool and <thin", False, ("", "1 <tool and <thin", [])),
    ("spaces stay inside", "a  \n\n b", False, ("", "a  \n\n b", [])),
    ("lines stay inside", xml(city="  lead\n\ntrail \n"), False,
     ("", "", [("weather", {"city": "  lead\n\ntrail \n"})])),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "thinking", "want"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_parts(text: str, thinking: bool, want: Any) -> None:
    assert parse(text, in_reasoning=thinking) == want
    assert parse(list(text), in_reasoning=thinking) == want
    for at in range(len(text)):
        assert parse([text[:at], text[at:]], in_reasoning=thinking) == want
        assert parse([text[:at], text[at : at + 1], text[at + 1 :]], in_reasoning=thinking) == want


def test_without_tools_no_call_is_looked_for() -> None:
    text = xml(city="Oslo")
    assert parse(text, style=None) == ("", text, [])


@pytest.mark.parametrize("seed", range(8))
def test_any_stream_gives_the_same_however_it_is_cut(seed: int) -> None:
    draw = random.Random(seed)
    bits = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<function=weather>",
            "</function>", "<parameter=city>", "</parameter>", "\n", " ", "x",
            "{", "}", '"', '{"name": "weather"}',
            "<", ">", "</", "<tool", "é", "💡"]  # fmt: skip
    for _ in range(400):
        text = "".join(draw.choices(bits, k=draw.randrange(1, 14)))
        style, thinking = draw.choice(["xml", "hermes", None]), draw.random() < 0.4
        whole = parse(text, style, thinking)
        cuts = sorted(draw.choices(range(len(text) + 1), k=draw.randrange(0, 6)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert parse(pieces, style, thinking) == whole, text
        assert parse(list(text), style, thinking) == whole, text


@pytest.mark.parametrize(
    ("value", "schema", "want"),
    [
        ("3", {"type": "integer"}, 3),
        ("3.0", {"type": "integer"}, 3),
        ("x", {"type": "integer"}, "x"),
        ("2.5", {"type": "number"}, 2.5),
        ("nan", {"type": "number"}, "nan"),
        ("TRUE", {"type": "boolean"}, True),
        ("yes", {"type": "boolean"}, "yes"),
        ("null", {"type": "string"}, "null"),
        ("null", {"type": ["string", "null"]}, None),
        ("None", {"type": "string", "nullable": True}, None),
        ("5", {"anyOf": [{"type": "string"}, {"type": "integer"}]}, 5),
        ('{"a": 1}', {"type": "object"}, {"a": 1}),
        ("['x', 1]", {"type": "array"}, ["x", 1]),
        ("[1", {"type": "array"}, "[1"),
        ("5", None, "5"),
        ('{"a": [1]}', None, {"a": [1]}),
        ("5", {"enum": [5, 6]}, 5),
        ("a", {"enum": ["a", "b"]}, "a"),
        ("[" * 100_000, {"type": "array"}, "[" * 100_000),
    ],
)
def test_values_have_the_types_of_their_schemas(value: str, schema: Any, want: Any) -> None:
    got = typed(value, schema)
    assert (got, type(got)) == (want, type(want))


def test_forms_are_read_off_the_template_and_the_prompt() -> None:
    assert tool_style("… '<tool_call>\\n<function=' …") == "xml"
    assert tool_style('{{- \'<tool_call>\\n{"name": "\' }}') == "hermes"
    assert tool_style("<tool_call>{{ name }}<arg_key>") is None
    assert tool_style("{{ messages }}") is None
    assert starts_in_reasoning("…assistant\n<think>\n")
    assert not starts_in_reasoning("…assistant\n<think>\n\n</think>\n\n")
    assert not starts_in_reasoning("say <think> to me<|im_end|>\n<|im_start|>assistant\n")
