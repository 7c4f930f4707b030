"""How an answer appears: as Markdown while it grows, or as plain text."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from flashmoe.cli import show
from flashmoe.cli.chat.text import finished_blocks, printable

if TYPE_CHECKING:
    from flashmoe.answer import Chunk
    from flashmoe.reply import ToolCall

_THOUGHT_LINES = 4
"""Of the reasoning, so many lines are seen while it grows."""


def call_line(call: ToolCall) -> str:
    """A function call as Python would write it."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    return printable(f"{call.name}({arguments})")


class PlainScreen:
    """Text as it comes; reasoning and notes only where a person looks."""

    def __init__(self, *, interactive: bool) -> None:
        """Prepare.

        Args:
            interactive: Whether stdout is a terminal.
        """
        self._interactive = interactive
        self._stack = ExitStack()
        self._bar: Any = None
        self._thinking = 0.0
        self._thought = 0
        self._said = False
        self.reasoning = ""

    def progress(self, done: int, total: int) -> None:
        """See :class:`Screen`."""
        if self._bar is None:
            self._bar = self._stack.enter_context(show.prompt_progress())
        self._bar(done, total)
        if done >= total:
            self._stack.close()
            self._bar = None

    def show(self, chunk: Chunk) -> None:
        """See :class:`Screen`."""
        for delta in chunk.deltas:
            if delta.kind == "reasoning":
                if not self._thinking:
                    self._thinking, self.reasoning = time.monotonic(), ""
                self._thought += 1
                self.reasoning += delta.text
                self.reason(printable(delta.text))
            elif delta.kind == "content":
                self._end_thought()
                self.content(printable(delta.text))

    def reason(self, text: str) -> None:
        """More of the reasoning."""
        if self._interactive:
            click.echo(click.style(text, dim=True), nl=False)
            sys.stdout.flush()

    def content(self, text: str) -> None:
        """More of the answer."""
        self._said = True
        click.echo(text, nl=False)
        sys.stdout.flush()

    def fold(self, line: str) -> None:
        """The reasoning is over; ``line`` stands for it."""
        if self._interactive:
            click.echo("\n" + click.style(line, dim=True))

    def _end_thought(self) -> None:
        if self._thinking:
            seconds = time.monotonic() - self._thinking
            self.fold(f"(thought for {seconds:.1f} s, {self._thought} tokens; /think show)")
        self._thinking, self._thought = 0.0, 0

    def end(self, stopped: bool) -> None:
        """See :class:`Screen`."""
        self._stack.close()
        self._bar = None
        self._end_thought()
        self.finish(stopped)
        self._said = False

    def finish(self, stopped: bool) -> None:
        """The answer has ended."""
        if stopped:
            click.echo(click.style(" [stopped]", dim=True))
        elif self._said:
            click.echo()

    def called(self, call: ToolCall, result: str) -> None:
        """See :class:`Screen`."""
        show.note(f"{call_line(call)} → {printable(result)[:500]}")


class MarkdownScreen(PlainScreen):
    """Markdown by rich. What is finished stays; only the block that still grows is drawn again."""

    def __init__(self) -> None:
        """Prepare.

        Raises:
            ImportError: There is no rich.
        """
        super().__init__(interactive=True)
        from rich.console import Console

        self._console = Console(highlight=False)
        self._live: Any = None
        self._text = ""

    def _draw(self, what: Any) -> None:
        from rich.live import Live

        if self._live is None:
            self._live = Live(
                console=self._console,
                refresh_per_second=12,
                transient=True,
                vertical_overflow="crop",
            )
            self._live.start()
        self._live.update(what)

    def _undraw(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def reason(self, text: str) -> None:
        """See :class:`PlainScreen`."""
        from rich.text import Text

        lines = printable(self.reasoning).strip().splitlines()[-_THOUGHT_LINES:]
        self._draw(Text("\n".join(lines), style="dim italic"))

    def fold(self, line: str) -> None:
        """See :class:`PlainScreen`."""
        self._undraw()
        self._console.print(line, style="dim", markup=False)

    def content(self, text: str) -> None:
        """See :class:`PlainScreen`."""
        from rich.markdown import Markdown

        self._text += text
        done = finished_blocks(self._text)
        if done and self._text[:done].strip():
            self._keep(self._text[:done])
            self._text = self._text[done:]
        self._draw(Markdown(self._text))

    def _keep(self, text: str) -> None:
        from rich.markdown import Markdown

        self._undraw()
        self._console.print(Markdown(text))
        self._console.print()

    def finish(self, stopped: bool) -> None:
        """See :class:`PlainScreen`."""
        from rich.markdown import Markdown

        self._undraw()
        if self._text.strip():
            self._console.print(Markdown(self._text))
        if stopped:
            self._console.print("[stopped]", style="dim", markup=False)
        self._text = ""


def make_screen(plain: bool) -> PlainScreen:
    """The screen for this terminal.

    Args:
        plain: Whether plain text is wanted anyway.
    """
    import os

    person = sys.stdout.isatty()
    if plain or not person or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return PlainScreen(interactive=person)
    try:
        return MarkdownScreen()
    except ImportError:
        return PlainScreen(interactive=True)
