"""``flashmoe chat``: a conversation in the terminal."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import click

from flashmoe.cli import show
from flashmoe.cli.options import (
    SAMPLER_NAMES,
    THINK_OPTION,
    make_sampler,
    model_options,
    open_model,
    sampler_options,
)

if TYPE_CHECKING:
    from flashmoe.generator import Generator

EPILOG = """\b
Examples:
  flashmoe chat demo
  flashmoe chat ~/models/qwen3.6-35b-a3b-4bit --memory 6GB
  flashmoe chat ~/models/qwen3-30b-a3b-4bit -s "Answer in one sentence." -t 0.7 --no-think

Ctrl-C stops an answer, Ctrl-D leaves. Type /help for commands.
"""

HELP = """\
/system TEXT     a new system message (without TEXT: none); starts over
/clear           forget the conversation
/stats           what the last answer cost
/set             show the settings
/set NAME VALUE  change one: temperature, top_k, top_p, min_p, seed, max_tokens, …
/quit            leave, like Ctrl-D
Ctrl-C           stop an answer"""

PROMPT = "> "


@click.command(epilog=EPILOG)
@click.argument("model")
@click.option("-s", "--system", help="A system message.")
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), default=2048, show_default=True)
@THINK_OPTION
@sampler_options
@model_options
def command(
    model: str, system: str | None, max_tokens: int, think: bool | None, **options: Any
) -> None:
    """Talk with a model; its answers appear while they are made."""
    import flashmoe
    from flashmoe.cli.line_input import LineInput
    from flashmoe.errors import TemplateError

    with open_model(model, options) as opened:
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
        if sys.stdin.isatty():
            show.note("Ctrl-C stops an answer, Ctrl-D leaves, /help for commands.")
        generator = flashmoe.Generator(opened, make_sampler(options))
        Conversation(generator, system, max_tokens, think).run(LineInput(PROMPT))


class Conversation:
    """What has been said, and the settings it is said with."""

    def __init__(
        self, generator: Generator, system: str | None, max_tokens: int, think: bool | None
    ) -> None:
        """Begin.

        Args:
            generator: Answers.
            system: The system message.
            max_tokens: Longest answer.
            think: Passed to the chat template if not None.
        """
        self.generator = generator
        self.messages: list[dict[str, Any]] = []
        self.max_tokens = max_tokens
        self.think = think
        self.restart(system)

    def restart(self, system: str | None) -> None:
        """Forget everything.

        Args:
            system: The system message from now on.
        """
        self.system = system
        self.messages = [{"role": "system", "content": system}] if system else []

    def run(self, lines: Any) -> None:
        """Answer lines until there are no more.

        Args:
            lines: Has ``read()``, which gives a line, None at the end, and raises
                KeyboardInterrupt.
        """
        while True:
            try:
                line = lines.read()
            except KeyboardInterrupt:
                continue
            if line is None:
                return
            line = line.strip()
            if not line:
                continue
            if line.startswith("/"):
                if not self.obey(line):
                    return
            else:
                self.answer(line)

    def answer(self, text: str) -> None:
        """Answer one message; what Ctrl-C cuts off stays in the conversation as far as it is.

        Args:
            text: What the user says.
        """
        from flashmoe.errors import FlashMoEError

        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            with show.prompt_progress() as progress:
                for chunk in self.generator.stream_chat(
                    self.messages,
                    enable_thinking=self.think,
                    max_tokens=self.max_tokens,
                    progress=progress,
                ):
                    pieces.append(chunk.text)
                    click.echo(chunk.text, nl=False)
                    sys.stdout.flush()
            click.echo()
        except KeyboardInterrupt:
            click.echo(click.style(" [stopped]", dim=True))
        except FlashMoEError as error:
            self.messages.pop()
            click.echo(f"\nflashmoe: {error}", err=True)
            return
        self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def obey(self, line: str) -> bool:
        """Carry out a command.

        Args:
            line: Beginning with a slash.

        Returns:
            Whether the conversation goes on.
        """
        name, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        if name in ("quit", "exit", "bye"):
            return False
        if name == "help":
            click.echo(HELP)
        elif name == "clear":
            self.restart(self.system)
            show.note("forgotten")
        elif name == "system":
            self.restart(rest or None)
            show.note("a new conversation" + (" with this system message" if rest else ""))
        elif name == "stats":
            click.echo(show.stats_line(self.generator.stats))
        elif name == "set":
            self.set(rest)
        else:
            click.echo(f"there is no /{name}; /help lists what there is", err=True)
        return True

    def set(self, text: str) -> None:
        """Change a setting, or show all.

        Args:
            text: Name and value, or nothing.
        """
        from flashmoe.errors import ArgumentError
        from flashmoe.sampler import Sampler

        sampler = self.generator.sampler
        assert isinstance(sampler, Sampler)
        if not text:
            shown = {f.name: getattr(sampler, f.name) for f in fields(sampler)}
            shown = {n: shown[n] for n in SAMPLER_NAMES} | {"max_tokens": self.max_tokens}
            default = "the model's own"
            click.echo(show.pairs({n: default if v is None else str(v) for n, v in shown.items()}))
            return
        name, _, value = text.replace("=", " ").partition(" ")
        try:
            if name == "max_tokens":
                if int(value) < 1:
                    raise ValueError
                self.max_tokens = int(value)
            elif name in SAMPLER_NAMES:
                number: Any = int(value) if name in ("top_k", "seed") else float(value)
                self.generator.sampler = replace(sampler, **{name: number})
            else:
                names = ", ".join((*SAMPLER_NAMES, "max_tokens"))
                click.echo(f"there is no setting {name!r}; there are {names}", err=True)
                return
        except ArgumentError as error:
            click.echo(str(error), err=True)
        except ValueError:
            click.echo(f"{value.strip()!r} is not a value for {name}", err=True)
        else:
            show.note(f"{name} is {value.strip()}")
