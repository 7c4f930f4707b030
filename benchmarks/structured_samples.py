"""Draws answers that must follow JSON schemas, at 2 bits, and counts those that do not."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema

import flashmoe

_NAME = {"type": "string", "maxLength": 20}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: dict[str, dict[str, Any]] = {
    "flat": _object(city=_NAME, days={"type": "integer", "minimum": 1, "maximum": 30}),
    "enum": _object(unit={"enum": ["celsius", "fahrenheit", 7, None]}, sure={"type": "boolean"}),
    "nested": _object(who=_object(name=_NAME, at=_object(x={"type": "number"}))),
    "array": _object(tags={"type": "array", "items": _NAME, "minItems": 1, "maxItems": 3}),
    "pattern": _object(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    "any_of": _object(id={"anyOf": [{"type": "integer"}, _NAME, {"type": "null"}]}),
    "refs": {
        **_object(first={"$ref": "#/$defs/point"}, second={"$ref": "#/$defs/point"}),
        "$defs": {"point": _object(x={"type": "integer"}, y={"type": "integer"})},
    },
    "optional": {**_object(a=_NAME, b={"type": "number"}), "required": ["b"]},
    "date": _object(on={"type": "string", "format": "date"}),
    "constant": _object(kind={"const": 'é\n"quoted"'}, level={"enum": [1, 2, 3]}),
}
SAMPLERS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0},
    "t=1": {"temperature": 1, "top_k": 0, "top_p": 1},
    "t=1 top_p=0.9": {"temperature": 1, "top_k": 0, "top_p": 0.9},
    "t=1.5 top_k=40": {"temperature": 1.5, "top_k": 40, "top_p": 1},
    "t=1 min_p penalties": {
        "temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0.05,
        "repetition_penalty": 1.2, "frequency_penalty": 0.3,
    },
}  # fmt: skip


def wanted(name: str) -> dict[str, Any]:
    """A schema as a response format."""
    schema = {"name": name, "schema": SCHEMAS[name], "strict": True}
    return {"type": "json_schema", "json_schema": schema}


def main() -> None:
    """Report the answers of each kind; ends with an error if one is not valid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="bf16 release to convert; without it the demo as it is")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--experts", type=int, default=4, help="experts per token")
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--sampler", choices=SAMPLERS, default="t=1")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = flashmoe.demo_model_path()
        if options.model is not None:
            path = flashmoe.convert(options.model, Path(scratch) / "model", bits=options.bits)
        with flashmoe.Model(path, experts_per_token=options.experts) as model:
            ends = _sample(model, options)
    print(json.dumps(dict(ends)))
    if ends["invalid"]:
        raise SystemExit(f"{ends['invalid']} answers are not valid")


def _sample(model: flashmoe.Model, options: argparse.Namespace) -> Counter[str]:
    generator = flashmoe.Generator(model)
    ends: Counter[str] = Counter()
    per_call, drawn, start = 100, 0, time.perf_counter()
    names = list(SCHEMAS)
    while drawn < options.samples:
        n = min(per_call, options.samples - drawn)
        name = names[drawn // per_call % len(names)]
        answers = generator.generate_batch(
            [f"Question {drawn + i}: a {name} value as JSON.\n" for i in range(n)],
            max_tokens=options.max_tokens,
            response_format=wanted(name),
            samplers=[
                flashmoe.Sampler(seed=drawn + i, **SAMPLERS[options.sampler]) for i in range(n)
            ],
        )
        check = jsonschema.Draft202012Validator(
            SCHEMAS[name], format_checker=jsonschema.FormatChecker()
        )
        for answer in answers:
            ends["tokens"] += len(answer.token_ids)
            if answer.finish_reason != "stop":
                ends["length"] += 1
                continue
            try:
                check.validate(json.loads(answer.text))
                ends["valid"] += 1
            except (ValueError, jsonschema.ValidationError) as error:
                ends["invalid"] += 1
                print(f"{name}, seed {drawn}: {answer.text!r}: {error}")
        drawn += n
    ends["seconds"] = round(time.perf_counter() - start)
    return ends


if __name__ == "__main__":
    main()
