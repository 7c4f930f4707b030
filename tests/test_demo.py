"""The model that ships inside the package: small, fluent, and the same with every kernel table."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import flashmoe
from flashmoe import Generator, Model, Sampler, _core, demo_model_path
from flashmoe.checkpoint import open_checkpoint
from flashmoe.errors import BudgetError

GREEDY = Sampler(temperature=0)
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Gives the weather for a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city"},
                "days": {"type": "integer", "description": "Number of days"},
            },
            "required": ["city"],
        },
    },
}
QUESTIONS = [
    "What is flashmoe?",
    "What is the capital of France?",
    "Tell me a short story about a fox.",
    "How do I cook rice?",
    "What is a mixture of experts?",
    "Tell me about cats.",
    "What is 12 plus 30?",
    "Which planet is closest to the sun?",
]


@pytest.fixture(scope="module")
def model():
    with Model(demo_model_path()) as model:
        yield model


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_size_and_shape(model):
    size = sum(f.stat().st_size for f in demo_model_path().iterdir())
    assert size <= 12_000_000
    info = model.info()
    assert info["num_experts"] >= 32 and info["experts_per_token"] >= 4
    kinds = {
        type(layer.mixer).__name__
        for layer in open_checkpoint(demo_model_path()).manifest.spec.layers
    }
    assert kinds == {"Attention", "Delta"}


@pytest.mark.parametrize(
    ("question", "pattern"),
    [
        ("What is flashmoe?", r"(?i)expert|memory|disk|ssd"),
        ("What is the capital of France?", r"Paris"),
        ("Tell me about cats.", r"(?i)\bcats?\b"),
        ("What is 12 plus 30?", r"42"),
    ],
)
def test_answers_are_on_topic(model, question, pattern):
    out = Generator(model, GREEDY).chat(user(question), max_tokens=150)
    assert out.finish_reason == "stop"
    assert re.search(pattern, out.text), out.text
    assert re.fullmatch(r"([A-Z0-9]|flashmoe).*[.!?]", out.text, re.DOTALL), out.text


@pytest.mark.parametrize("city", ["Oslo", "Lima", "Quito"])
def test_calls_a_tool_with_valid_json(model, city):
    out = Generator(model, GREEDY).chat(
        user(f"What is the weather in {city} for 3 days?"), tools=[WEATHER]
    )
    call = json.loads(
        re.fullmatch(r"\s*<tool_call>\n(.*)\n</tool_call>\s*", out.text, re.DOTALL)[1]
    )
    assert call == {"name": "get_weather", "arguments": {"city": city, "days": 3}}


def negative_log_likelihood(
    table: str, ids: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> float:
    monkeypatch.setenv("FLASHMOE_KERNELS", table)
    total, count = 0.0, 0
    with Model(demo_model_path()) as model:
        for text in ids:
            logits = model.logits(text)[:-1].astype(np.float64)
            top = logits.max(-1, keepdims=True)
            norm = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
            total += float((norm - logits[np.arange(len(text) - 1), text[1:]]).sum())
            count += len(text) - 1
    return total / count


def test_perplexity_of_fast_kernels(model, monkeypatch):
    """int8 activations change the perplexity of the demo model by less than 0.2 %."""
    generator = Generator(model, Sampler(temperature=1.0, top_k=0, top_p=1.0, seed=7))
    texts = []
    for question in QUESTIONS * 2:
        prompt = model.tokenizer.encode(generator.render(user(question)))
        answer = generator.generate(prompt, max_tokens=120)
        texts.append(np.array(prompt + answer.token_ids, np.int32))
    want = np.exp(negative_log_likelihood("ref", texts, monkeypatch))
    for table in _core.kernels():
        got = np.exp(negative_log_likelihood(table, texts, monkeypatch))
        assert abs(got / want - 1) < 0.002, (table, got, want)


def smallest_budget(fixed: int) -> int:
    """The least memory, to 200 kB, with which the demo model opens."""
    for budget in range(fixed, fixed + 100_000_000, 200_000):
        try:
            Model(demo_model_path(), memory=budget, threads=1).close()
        except BudgetError:
            continue
        return budget
    raise AssertionError("no budget is enough")


def test_greedy_text_does_not_depend_on_the_budget(model):
    want = Generator(model, GREEDY).chat(user(QUESTIONS[2]), max_tokens=80).text
    i = model.info()
    budget = smallest_budget(i["resident_bytes"] + i["state_bytes"])
    for spare in (0, 300_000, 2_000_000):
        with Model(demo_model_path(), memory=budget + spare, threads=1) as small:
            assert small.info()["expert_slots"] < i["expert_slots"]
            out = Generator(small, GREEDY).chat(user(QUESTIONS[2]), max_tokens=80)
            assert out.text == want and out.stats.expert_hit_rate < 1
            assert small.info()["held_bytes"] <= budget + spare


def test_checksums_hold():
    report = flashmoe.verify(demo_model_path(), progress=False)
    assert report.has_checksums and report.mismatch is None and report.records == 256
