"""``flashmoe chat``: a conversation in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashmoe.cli import show
from flashmoe.cli.options import (
    THINK_OPTION,
    make_sampler,
    model_options,
    open_model,
    sampler_options,
)

if TYPE_CHECKING:
    from flashmoe.cli.chat.commands import Commands
    from flashmoe.cli.chat.line_input import LineInput

EPILOG = """\b
Examples:
  flashmoe chat demo
  flashmoe chat ~/models/qwen3.6-35b-a3b-4bit --memory 6GB
  flashmoe chat ~/models/qwen3-30b-a3b-4bit -s "Answer in one sentence." -t 0.7 --no-think
  flashmoe chat demo --tools weather.py          (functions with type hints and docstrings)
  flashmoe chat demo --resume                    (goes on with the last conversation)
  echo "What is an expert?" | flashmoe chat demo

Ctrl-C stops an answer, Ctrl-D leaves. Type /help for commands. Markdown and editing of several
lines need `pip install "flashmoe[chat]"`; conversations are kept in ~/.local/state/flashmoe.
"""

PROMPT = "> "


@click.command(epilog=EPILOG)
@click.argument("model", required=False)
@click.option("--demo", is_flag=True, help="The model inside the package, as MODEL demo.")
@click.option("-s", "--system", help="A system message.")
@click.option("-p", "--prompt", help="Answer this and end.")
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), default=2048, show_default=True)
@THINK_OPTION
@click.option(
    "--tools",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A Python file whose functions the model may call; you are asked before each.",
)
@click.option("-y", "--yes", is_flag=True, help="Call functions without asking.")
@click.option("--resume", is_flag=False, flag_value="", metavar="[NAME]",
              help="Go on with the last conversation, or with NAME.")  # fmt: skip
@click.option("--plain", is_flag=True, help="No Markdown and no colours.")
@click.option("--prefix-memory", default="512MB", show_default=True,
              help="For states that save evaluating a conversation again; 0 for none.")  # fmt: skip
@sampler_options
@model_options
def command(
    model: str | None,
    demo: bool,
    system: str | None,
    prompt: str | None,
    max_tokens: int,
    think: bool | None,
    tools: Path | None,
    yes: bool,
    resume: str | None,
    plain: bool,
    prefix_memory: str,
    **options: Any,
) -> None:
    """Talk with a model; its answers appear while they are made."""
    if demo == (model is not None):
        raise click.UsageError("give a MODEL, or --demo for the one inside the package")
    import flashmoe
    from flashmoe.cli.chat.commands import Commands
    from flashmoe.cli.chat.conversation import Conversation
    from flashmoe.cli.chat.functions import Approval, load_functions
    from flashmoe.cli.chat.line_input import LineInput
    from flashmoe.cli.chat.screen import make_screen
    from flashmoe.errors import TemplateError
    from flashmoe.machine import parse_size

    functions = load_functions(tools) if tools else {}
    kept = 0 if prefix_memory in ("0", "0B") else parse_size(prefix_memory)
    with open_model(model or "demo", options) as opened:
        if opened.tokenizer.chat_template is None:
            raise TemplateError(
                f"{opened.path} has no chat template, so it cannot chat; "
                f"use flashmoe generate {model} --raw"
            )
        info = opened.info()
        show.note(f"{info['path']}: {info['model_type']}, memory {show.size(info['memory'])}")
        notice = show.fewer_experts(info["experts_per_token"], info["native_experts_per_token"])
        if notice:
            show.note(notice)
        person = sys.stdin.isatty() and prompt is None
        if person:
            show.note("Ctrl-C stops an answer, Ctrl-D leaves, /help for commands.")
        generator = flashmoe.Generator(
            opened,
            make_sampler(options),
            prefix_cache=flashmoe.PrefixCache(opened, memory=kept) if kept else None,
        )
        talk = Conversation(generator, system, think, max_tokens, functions)
        talk.approve = Approval(always=yes, ask=input if person else None)
        commands = Commands(talk, make_screen(plain), info["path"])
        if resume is not None:
            commands.load(resume)
        if prompt is not None:
            talk.say(prompt, commands.screen)
        else:
            _talk(commands, LineInput(PROMPT, commands.names), person)


def _talk(commands: Commands, lines: LineInput, person: bool) -> None:
    """Answer messages until there are no more.

    Args:
        commands: What is done with them.
        lines: Where they come from.
        person: Whether somebody types them.
    """
    leaving = False
    while True:
        try:
            line = lines.read()
            leaving = False
            if line is None or not _take(commands, line.strip(), person):
                return
        except KeyboardInterrupt:  # at the prompt, or just before it
            if leaving:
                return
            leaving = True
            show.note("Ctrl-C once more leaves")


def _take(commands: Commands, line: str, person: bool) -> bool:
    """Do what a line wants, which Ctrl-C may stop; False if that is to leave."""
    from flashmoe.errors import FlashMoEError

    with commands.conversation.interrupts as interrupts:
        try:
            return _obey_or_answer(commands, line, person)
        except KeyboardInterrupt:  # just before an answer, or while its end is written down
            with interrupts.held():
                commands.screen.end(True)
        except FlashMoEError as error:
            click.echo(f"\nflashmoe: {error}", err=True)
        except OSError as error:
            click.echo(f"flashmoe: the conversation cannot be kept: {error}", err=True)
    return True


def _obey_or_answer(commands: Commands, line: str, person: bool) -> bool:
    """Obey a command, False if that is to leave, or answer a message."""
    if line.startswith("/"):
        return commands.obey(line)
    if line:
        commands.conversation.say(line, commands.screen)
        if person:
            show.note(show.short_stats(commands.conversation.generator.stats))
            commands.keep()
    return True
