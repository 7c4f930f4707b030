"""``flashmoe demo``: the small model inside the package answers, and calls a tool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from flashmoe.cli import show
from flashmoe.cli.options import (
    JSON_OPTION,
    make_sampler,
    model_options,
    open_model,
    sampler_options,
)

if TYPE_CHECKING:
    from flashmoe.generator import Generator

EPILOG = """\b
Examples:
  flashmoe demo
  flashmoe demo "Tell me a story about a fox."
  flashmoe demo --memory 40MB -t 0        (experts that do not fit are read when they are picked)

Next: flashmoe chat demo
"""

PROMPT = "What is flashmoe?"
TOOL_PROMPT = "What is 37 * 12?"


@click.command(epilog=EPILOG)
@click.argument("prompt", required=False)
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), default=200, show_default=True)
@JSON_OPTION
@sampler_options
@model_options
def command(prompt: str | None, max_tokens: int, as_json: bool, **options: Any) -> None:
    """Ask the demo model a question; without one, watch it answer and call a tool.

    It is a real mixture-of-experts model, but a tiny one, trained in minutes: it speaks simple
    English about a few things and knows little.
    """
    import flashmoe

    with open_model("demo", options) as model:
        info = model.info()
        notice = show.fewer_experts(info["experts_per_token"], info["native_experts_per_token"])
        if notice:
            show.note(notice)
        generator = flashmoe.Generator(model, make_sampler(options))
        if as_json:
            messages = [{"role": "user", "content": prompt or PROMPT}]
            answer = generator.chat(messages, max_tokens=max_tokens)
            show.print_json({"text": answer.text, "stats": show.stats_dict(answer.stats)})
            return
        _introduce(info)
        _answer(generator, prompt or PROMPT, max_tokens)
        if prompt is None:
            _tool_call(generator, max_tokens)
            show.note("\nNext: flashmoe chat demo, or flashmoe doctor for real models.")


def _introduce(info: dict[str, Any]) -> None:
    experts = f"{info['num_hidden_layers']} layers, {info['num_experts']} experts each"
    show.note(
        f"demo model: {experts}, {info['experts_per_token']} per token; "
        f"{info['device']} with {info['kernels']} kernels, {info['threads']} threads"
    )


def _answer(generator: Generator, prompt: str, max_tokens: int) -> None:
    click.echo(click.style(f"\n> {prompt}", bold=True))
    chunks = generator.stream_chat([{"role": "user", "content": prompt}], max_tokens=max_tokens)
    show.print_stream(chunks)
    show.note(show.stats_line(generator.stats))


def _tool_call(generator: Generator, max_tokens: int) -> None:
    """A question, the model's call of a Python function, and its answer with the result."""
    import json

    from flashmoe.cli.tools import TOOLS, ToolCallError, call_tool, read_call

    click.echo(click.style("\nThe same model with a Python function that it may call:", dim=True))
    click.echo(click.style(f"\n> {TOOL_PROMPT}", bold=True))
    messages: list[dict[str, Any]] = [{"role": "user", "content": TOOL_PROMPT}]
    reply = generator.chat(messages, list(TOOLS.values()), max_tokens=max_tokens)
    try:
        call = read_call(reply.text)
        result = call_tool(call)
    except ToolCallError as error:
        click.echo(reply.text)
        show.note(f"(no tool was called: {error})")
        return
    click.echo(f"the model calls   {call['name']}({json.dumps(call['arguments'])})")
    click.echo(f"Python returns    {json.dumps(result)}")
    messages += [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": call}],
        },
        {"role": "tool", "content": json.dumps(result)},
    ]
    click.echo("the model says    ", nl=False)
    chunks = generator.stream_chat(messages, list(TOOLS.values()), max_tokens=max_tokens)
    show.print_stream(chunks)
    show.note(show.stats_line(generator.stats))
