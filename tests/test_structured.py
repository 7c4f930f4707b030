"""Answers that must follow a schema, a regex, a grammar, a choice or the form of a tool call."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import jsonschema
import numpy as np
import pytest

import flashmoe
import tiny
from flashmoe import Generator, Model, Sampler, structured
from flashmoe.errors import ArgumentError
from flashmoe.reply import ReplyParser
from flashmoe.structured import compile_constraint

QUESTION = [{"role": "user", "content": "What is the weather in Oslo for 3 days?"}]
TEXT = {"type": "string", "maxLength": 8}


def closed(**properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS = {
    "nested": closed(who=closed(name=TEXT, sure={"type": "boolean"})),
    "enum": closed(unit={"enum": ["C", 'é\n"', 7, None]}),
    "array": closed(tags={"type": "array", "items": TEXT, "minItems": 1, "maxItems": 2}),
    "pattern": closed(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    "any_of": closed(id={"anyOf": [{"type": "integer", "maximum": 99, "minimum": 0}, TEXT]}),
    "refs": {
        **closed(a={"$ref": "#/$defs/p"}, b={"$ref": "#/$defs/p"}),
        "$defs": {"p": closed(x={"type": "integer", "minimum": -9, "maximum": 9})},
    },
    "optional": {**closed(a=TEXT, b={"type": "null"}), "required": ["b"]},
}
SAMPLERS = [
    {"temperature": 0},
    {"temperature": 1, "top_k": 0, "top_p": 1},
    {"temperature": 1, "top_k": 0, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 1.5, "top_k": 20, "repetition_penalty": 1.3, "presence_penalty": 0.5},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "trip",
        "parameters": {
            **closed(
                city=TEXT,
                code={"type": "string", "pattern": "^[a-z]{2}$"},
                unit={"enum": ["C", "F"]},
                days={"type": "integer", "minimum": 1, "maximum": 9},
                back={"type": "boolean"},
                stops={"type": "array", "items": {"$ref": "#/$defs/stop"}, "maxItems": 2},
                note={"anyOf": [TEXT, {"type": "null"}]},
            ),
            "required": ["city", "code", "unit", "days", "stops"],
            "$defs": {"stop": closed(at=TEXT)},
        },
    },
}


def schema_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


@pytest.fixture(scope="module")
def demo():
    with Model(flashmoe.demo_model_path()) as model:
        yield model


@pytest.fixture(scope="module")
def two_bits(tmp_path_factory):
    """Random weights at 2 bits: a model that means nothing."""
    path = tmp_path_factory.mktemp("structured")
    tiny.write(path / "plain", "qwen3_5_moe", seed=31, vocab_size=320)
    tiny.tokenizer(path / "plain", 320)
    return flashmoe.convert(path / "plain", path / "packed", bits=2, progress=False)


def check_all(model, count):
    finished = 0
    generator = Generator(model)
    for name, schema in SCHEMAS.items():
        samplers = [Sampler(seed=i, **how) for how in SAMPLERS for i in range(count)]
        for out in generator.generate_batch(
            [f"Question {i}: {name}?" for i in range(len(samplers))],
            max_tokens=300,
            response_format=schema_format(schema),
            samplers=samplers,
        ):
            assert out.finish_reason in ("stop", "length")
            if out.finish_reason == "stop":
                jsonschema.validate(json.loads(out.text), schema)
                finished += 1
    return finished / (len(SCHEMAS) * len(SAMPLERS) * count)


@pytest.mark.parametrize("experts", [1, 2, 3, 4])
def test_every_finished_answer_is_valid(experts):
    with Model(flashmoe.demo_model_path(), experts_per_token=experts) as model:
        assert check_all(model, 2) > 0.9


def test_random_weights_at_two_bits(two_bits):
    with Model(two_bits) as model:
        assert check_all(model, 2) > 0.5


def test_unconstrained_the_same_model_breaks(two_bits):
    with Model(two_bits) as model:
        text = Generator(model, Sampler(temperature=1, seed=1)).generate("x", max_tokens=60).text
        with pytest.raises(ValueError):
            json.loads(text)


def test_other_formats(demo):
    generator = Generator(demo, Sampler(temperature=1, top_k=0, top_p=1, seed=5))

    def said(**wanted):
        out = generator.generate("x", max_tokens=400, response_format=wanted)
        assert out.finish_reason == "stop"
        return out.text

    assert re.fullmatch(r"[ab]{3}-\d", said(type="regex", regex=r"[ab]{3}-[0-9]"))
    assert said(type="choice", choices=["yes", 'né "x"']) in ("yes", 'né "x"')
    lark = 'start: "(" start ")" | /[0-9]{1,2}/\n'
    assert re.fullmatch(r"\(*\d{1,2}\)*", said(type="grammar", grammar=lark))
    free = generator.generate("x", max_tokens=20).token_ids
    text = {"type": "text"}
    assert generator.generate("x", max_tokens=20, response_format=text).token_ids == free


def test_any_json_object(demo):
    generator = Generator(demo, Sampler(temperature=0))
    out = generator.chat(QUESTION, max_tokens=300, response_format={"type": "json_object"})
    assert out.text.startswith("{")
    if out.finish_reason == "stop":
        assert isinstance(json.loads(out.text), dict)


def test_ends_without_a_token_more(demo):
    """When nothing can follow, no step is spent on an end token; cut short it says so."""
    generator = Generator(demo, Sampler(temperature=0))
    wanted = {"type": "choice", "choices": ["a house"]}
    out = generator.generate("x", response_format=wanted)
    assert (out.text, out.finish_reason) == ("a house", "stop")
    assert out.token_ids[-1] not in demo.tokenizer.eos_token_ids
    cut = generator.generate("x", max_tokens=1, response_format=wanted)
    assert cut.finish_reason == ("stop" if len(out.token_ids) == 1 else "length")


def test_log_probabilities_are_the_models_own(demo):
    free = Generator(demo, Sampler(temperature=0)).generate("x", max_tokens=1)
    text = demo.tokenizer.decode(free.token_ids)
    wanted = {"type": "regex", "regex": re.escape(text) + ".?"}
    bound = Generator(demo, Sampler(temperature=0)).generate(
        "x", max_tokens=1, response_format=wanted
    )
    if bound.token_ids == free.token_ids:
        assert bound.logprobs == free.logprobs
    assert bound.logprobs[0] <= free.logprobs[0]


@pytest.mark.parametrize("style", ["hermes", "xml"])
def test_forced_calls_are_valid(demo, style):
    schema = TOOL["function"]["parameters"]
    factory = compile_constraint(
        demo.tokenizer, None, tools=[TOOL], tool_choice="required", style=style
    )
    named = {"type": "function", "function": {"name": "trip"}}
    one = compile_constraint(demo.tokenizer, None, tools=[TOOL], tool_choice=named, style=style)
    finished = 0
    for seed in range(12):
        generator = Generator(demo, Sampler(temperature=1, top_k=0, top_p=1, seed=seed))
        chunks = list(generator._start("x", 400, (), None, None, one if seed % 2 else factory))
        if chunks[-1].finish_reason != "stop":
            continue
        finished += 1
        parser = ReplyParser(style=style, in_reasoning=False, tools=[TOOL])
        parser.push("".join(chunk.text for chunk in chunks))
        parser.finish()
        assert not parser.content.strip()
        assert len(parser.tool_calls) == 1 or not seed % 2
        for call in parser.tool_calls:
            assert call.name == "trip"
            jsonschema.validate(call.arguments, schema)
    assert finished > 6


def test_chat_forces_a_call_with_a_python_function(demo):
    def get_weather(city: str, days: int = 1) -> str:
        """Gives the weather.

        Args:
            city: Name of the city.
            days: Number of days.
        """
        return city * days

    out = Generator(demo, Sampler(temperature=0)).chat(
        QUESTION, [get_weather], tool_choice="required"
    )
    assert [call.name for call in out.tool_calls] == ["get_weather"] and not out.content


def test_reasoning_stays_free(demo):
    wanted = {"type": "regex", "regex": "[xyz]{5}"}
    out = Generator(demo, Sampler(temperature=0)).chat(
        QUESTION, enable_thinking=True, response_format=wanted
    )
    prompt = Generator(demo).render(QUESTION, enable_thinking=True)
    assert prompt.endswith("<think>\n") and out.finish_reason == "stop"
    text = demo.tokenizer.decode(out.token_ids)
    thought, answer = text.split("</think>")
    assert len(thought) > 5 and re.fullmatch("\n\n[xyz]{5}", answer)


def test_padding_rows_stay_forbidden(demo):
    factory = compile_constraint(demo.tokenizer, {"type": "regex", "regex": "a+"})
    constraint = factory.start()
    row = np.zeros(demo.tokenizer.vocab_size + 50, np.float32)
    row[3] = np.nan
    constraint.apply(row)
    left = np.flatnonzero(np.isfinite(row))
    assert left.size and (row[demo.tokenizer.vocab_size :] == -np.inf).all()
    assert all(set(demo.tokenizer.decode([int(i)])) == {"a"} for i in left)
    assert np.isnan(row[3])  # a broken model is not hidden


def test_what_is_wrong_is_named(demo):
    generator = Generator(demo)
    deep = {"type": "string"}
    for _ in range(400):
        deep = {"type": "array", "items": deep}
    for wanted, message in [
        ({"type": "yaml"}, "one of text"),
        ({"type": "json_schema"}, "json_schema.schema"),
        (schema_format({"type": "strin"}), "strin"),
        (schema_format({"not": {"type": "string"}}), "not"),
        (schema_format({"enum": ["x" * 70_000]}), "65536"),
        ({"type": "regex", "regex": "(a"}, "regex"),
        ({"type": "regex", "regex": "(?=a)b"}, "look-around"),
        ({"type": "grammar", "grammar": "start: nothing"}, "nothing"),
        ({"type": "choice", "choices": []}, "choices"),
        (schema_format(deep), "schema"),
        (schema_format({"enum": [{"a": [-(2**63)]}]}), "above -2^63"),
        (schema_format({"type": "integer", "minimum": -1e300, "maximum": -1e300}), "above -2^63"),
        ({"type": "grammar", "grammar": 'start: %json {"const": -1e19}'}, "above -2^63"),
    ]:
        with pytest.raises(ArgumentError, match=re.escape(message)):
            generator.generate("x", response_format=wanted)
    named = {"type": "function", "function": {"name": "nobody"}}
    with pytest.raises(ArgumentError, match="nobody"):
        generator.chat(QUESTION, [TOOL], tool_choice=named)
    with pytest.raises(ArgumentError, match="no tools"):
        generator.chat(QUESTION, tool_choice="required")
    with pytest.raises(ArgumentError, match="cannot follow"):
        Generator(demo, lambda logits: 5).generate(
            "x", response_format={"type": "regex", "regex": "z"}
        )


def test_few_grammars_are_kept(demo):
    tokenizer = demo.tokenizer
    for i in range(structured.MAX_COMPILED + 6):
        compile_constraint(tokenizer, {"type": "regex", "regex": f"x{i}"})
    assert len(tokenizer.grammars._compiled) == structured.MAX_COMPILED
    first = compile_constraint(tokenizer, {"type": "regex", "regex": "x69"})
    again = compile_constraint(tokenizer, {"type": "regex", "regex": "x69"})
    assert first._matcher is again._matcher


def test_without_llguidance_the_command_is_named():
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "import flashmoe\n"
        "model = flashmoe.Model(flashmoe.demo_model_path())\n"
        "try: flashmoe.Generator(model).generate('x', response_format={'type': 'json_object'})\n"
        "except flashmoe.ArgumentError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'flashmoe[structured]'" in done.stdout, done.stderr
