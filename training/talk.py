"""Talks to a checkpoint: prints dialogues, and measures how often held-out tool calls are exact."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from corpus.conversation import call_errors, document
from quantize import quantized
from transformers import AutoTokenizer, Qwen3_5MoeForCausalLM

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather for a city",
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
PROMPTS = [
    "Hello! Who are you?",
    "What is flashmoe?",
    "Why do the experts stay on the SSD?",
    "Explain quantisation to me.",
    "How do I run a large model on my laptop?",
    "What is the capital of Portugal?",
    "Tell me a short story about a fox.",
    "Tell me something about the moon.",
    "How do I make pancakes?",
    "What is 17 plus 25?",
    "Who won the world cup in 1998?",
    "I am a bit tired today.",
    "Why is the sky blue?",
    "Write a poem.",
    "Can you recommend a good book about birds?",
    "What animals live in Africa?",
]


def answer(model: Any, tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    """Returns the greedy answer to a conversation, with tool tokens but without control tokens."""
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **options
    )
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        out = model.generate(
            ids, max_new_tokens=300, do_sample=False, temperature=None, top_p=None, top_k=None
        )
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def parsed_calls(text: str) -> list[dict[str, Any]]:
    """Returns the tool calls in an answer.

    Raises:
        ValueError: A call is not valid JSON.
    """
    found = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text, flags=re.DOTALL)
    return [json.loads(call) for call in found]


def tool_score(model: Any, tokenizer: Any, count: int) -> dict[str, int]:
    """Counts valid and exact calls over ``count`` held-out turns that need a tool."""
    score = {"turns": 0, "valid_json": 0, "fits_schema": 0, "exact": 0}
    seed = 0
    while score["turns"] < count:
        drawn = document(f"validation-{seed}")
        seed += 1
        at = next((i for i, m in enumerate(drawn.messages) if m.get("tool_calls")), None)
        if at is None or not drawn.held_out() or drawn.thinking:
            continue
        text = answer(model, tokenizer, drawn.messages[:at], tools=drawn.tools)
        expected = [call["function"] for call in drawn.messages[at]["tool_calls"]]
        score["turns"] += 1
        try:
            made = parsed_calls(text)
        except ValueError:
            print("INVALID", text)
            continue
        score["valid_json"] += bool(made)
        score["fits_schema"] += bool(made) and not any(call_errors(c, drawn.tools) for c in made)
        score["exact"] += made == expected
        if made != expected:
            print("WANTED", json.dumps(expected), "\n   GOT", text)
    return score


def dialogues(model: Any, tokenizer: Any) -> None:
    """Prints answers to a fixed set of prompts, and one whole tool conversation."""
    for prompt in PROMPTS:
        text = answer(model, tokenizer, [{"role": "user", "content": prompt}])
        print(f"> {prompt}\n{text}\n")
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "What is the weather like in Lisbon today?"}
    ]
    text = answer(model, tokenizer, messages, tools=[WEATHER])
    print(f"> {messages[0]['content']} (get_weather)\n{text}\n")
    calls = [{"type": "function", "function": call} for call in parsed_calls(text)]
    messages += [
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": '{"temperature": 23, "condition": "sunny"}'},
    ]
    print(answer(model, tokenizer, messages, tools=[WEATHER]), "\n")
    question = [{"role": "user", "content": "What is the capital of Japan?"}]
    print(answer(model, tokenizer, question, enable_thinking=True), "\n")


def main() -> None:
    """Loads a checkpoint and talks to it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quantized", action="store_true", help="simulate the 4-bit weights")
    parser.add_argument("--tool-turns", type=int, default=0, dest="tool_turns")
    parser.add_argument("--ask", action="append", help="ask this instead of the fixed prompts")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(str(options.folder))
    model: Any = Qwen3_5MoeForCausalLM.from_pretrained(str(options.folder), dtype=torch.float32)
    model.eval()
    with quantized(model) if options.quantized else torch.no_grad():
        for prompt in options.ask or []:
            text = answer(model, tokenizer, [{"role": "user", "content": prompt}])
            print(f"> {prompt}\n{text}\n")
        if not options.ask:
            dialogues(model, tokenizer)
        if options.tool_turns:
            print(json.dumps(tool_score(model, tokenizer, options.tool_turns)))


if __name__ == "__main__":
    main()
