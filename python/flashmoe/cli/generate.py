"""``flashmoe generate``: answer one prompt."""

from __future__ import annotations

import sys
from typing import Any

import click

from flashmoe.cli import show
from flashmoe.cli.options import (
    JSON_OPTION,
    MAX_TOKENS_OPTION,
    THINK_OPTION,
    make_sampler,
    model_options,
    open_model,
    sampler_options,
)

EPILOG = """\b
Examples:
  flashmoe generate demo -p "Why is the sky blue?"
  flashmoe generate ~/models/qwen3-30b-a3b-4bit --memory 4GB -p "Write a haiku." -t 0.7
  cat notes.txt | flashmoe generate ~/models/qwen3-30b-a3b-4bit -n 200
  flashmoe generate demo --raw -p "Once upon a time" --json
"""


@click.command(epilog=EPILOG)
@click.argument("model")
@click.option("-p", "--prompt", help="The prompt; without it, standard input is read.")
@click.option("-s", "--system", help="A system message before the prompt.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without the chat template.")
@click.option("--stop", multiple=True, help="End the answer at this text. May be repeated.")
@MAX_TOKENS_OPTION
@THINK_OPTION
@JSON_OPTION
@sampler_options
@model_options
def command(
    model: str,
    prompt: str | None,
    system: str | None,
    raw: bool,
    stop: tuple[str, ...],
    max_tokens: int,
    think: bool | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer one prompt.

    The answer goes to standard output while it is made, its figures to standard error. The prompt
    is put into the model's chat template if it has one.
    """
    if raw and system:
        raise click.UsageError("--system needs the chat template; leave out --raw")
    text = _read_prompt(prompt)
    import flashmoe

    with open_model(model, options) as opened:
        info = opened.info()
        notice = show.fewer_experts(info["experts_per_token"], info["native_experts_per_token"])
        if notice:
            show.note(notice)
        plain = raw or opened.tokenizer.chat_template is None
        messages = [{"role": "user", "content": text}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        generator = flashmoe.Generator(opened, make_sampler(options))
        with show.prompt_progress() as progress:
            limits: dict[str, Any] = {"max_tokens": max_tokens, "stop": stop, "progress": progress}
            if plain:
                chunks = generator.stream(text, **limits)
            else:
                chunks = generator.stream_chat(messages, enable_thinking=think, **limits)
            if not as_json:
                show.print_stream(chunks)
                show.note(show.stats_line(generator.stats))
                return
            made = list(chunks)
        show.print_json(
            {
                "model": info["path"],
                "text": "".join(c.text for c in made),
                "token_ids": [c.token_id for c in made],
                "finish_reason": made[-1].finish_reason,
                "chat_template": not plain,
                "stats": show.stats_dict(generator.stats),
            }
        )


def _read_prompt(prompt: str | None) -> str:
    if prompt is not None:
        return prompt
    if sys.stdin.isatty():
        raise click.UsageError("no prompt; give one with -p or through standard input")
    return sys.stdin.read()
