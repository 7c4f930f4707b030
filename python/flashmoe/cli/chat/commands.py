"""What can be typed with a slash in a chat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from flashmoe.cli import show
from flashmoe.cli.chat import sessions
from flashmoe.cli.chat.conversation import Conversation
from flashmoe.cli.chat.screen import PlainScreen
from flashmoe.cli.chat.text import printable
from flashmoe.errors import ArgumentError, FlashMoEError

HELP = """\
/system TEXT     a new system message (without TEXT: none); starts over
/think WHAT      on, off or auto: ask the model to think first; show: its last thoughts
/retry           answer the last message again
/undo            forget the last message and its answer
/clear           forget the conversation
/save [NAME]     keep the conversation, in a file if NAME is a path
/load NAME       go on with a kept one
/tools [on|off]  show the functions that the model may call; let it, or not
/stats           what the last answer cost
/set             show the settings
/set NAME VALUE  change one: temperature, top_k, top_p, min_p, seed, max_tokens, …
/quit            leave, like Ctrl-D
Enter ends a message; a backslash before it, or Alt-Enter, begins another line.
Ctrl-C stops an answer."""


class Commands:
    """Carries out commands on a conversation."""

    def __init__(self, conversation: Conversation, screen: PlainScreen, model: str) -> None:
        """Prepare.

        Args:
            conversation: That is changed.
            screen: Where an answer appears that is made again.
            model: What is kept with a conversation.
        """
        self.conversation = conversation
        self.screen = screen
        self.model = model
        self.name = sessions.fresh_name()
        self._verbs: dict[str, Callable[[str], None]] = {
            "help": lambda _: click.echo(HELP),
            "system": self._system,
            "think": self._think,
            "retry": self._retry,
            "undo": self._undo,
            "clear": self._clear,
            "save": self._save,
            "load": self.load,
            "tools": self._tools,
            "stats": lambda _: click.echo(show.stats_line(conversation.generator.stats)),
            "set": self._set,
        }

    @property
    def names(self) -> list[str]:
        """All commands, with their slash."""
        return [f"/{verb}" for verb in (*self._verbs, "quit")]

    def obey(self, line: str) -> bool:
        """Carry out a command.

        Args:
            line: Beginning with a slash.

        Returns:
            Whether the conversation goes on.
        """
        name, _, rest = line[1:].partition(" ")
        if name in ("quit", "exit", "bye"):
            return False
        verb = self._verbs.get(name)
        if verb is None:
            click.echo(f"there is no /{name}; /help lists what there is", err=True)
            return True
        try:
            verb(rest.strip())
        except FlashMoEError as error:
            click.echo(f"flashmoe: {error}", err=True)
        except OSError as error:
            click.echo(f"flashmoe: /{name}: {error}", err=True)
        return True

    def keep(self) -> None:
        """Save the conversation under its name, if anything was said."""
        if self.conversation.messages:
            self._write(sessions.place(self.name))

    def load(self, name: str) -> None:
        """Go on with a kept conversation.

        Args:
            name: A name or a path; empty for the one that was saved last.
        """
        name = name or sessions.latest()
        kept = sessions.load(sessions.place(name))
        self.conversation.system = kept["system"]
        self.conversation.messages = kept["messages"]
        self.name = name
        show.note(f"{len(kept['messages'])} messages of {name}")
        if kept["model"] != self.model:
            show.note(f"they were said with another model, {printable(kept['model'])}")
        for message in kept["messages"][-2:]:
            if message["role"] == "user":
                click.echo(f"> {printable(message['content'])}")
            elif message["role"] == "assistant":
                click.echo(printable(message["content"]))

    def _write(self, path: Path) -> None:
        talk = self.conversation
        sessions.save(path, {"model": self.model, "system": talk.system, "messages": talk.messages})

    def _save(self, name: str) -> None:
        path = sessions.place(name or self.name)
        self._write(path)
        self.name = name or self.name
        show.note(f"kept as {path}")

    def _system(self, text: str) -> None:
        self.conversation.system = text or None
        self.conversation.clear()
        self.name = sessions.fresh_name()
        show.note("a new conversation" + (" with this system message" if text else ""))

    def _clear(self, _: str) -> None:
        self.conversation.clear()
        self.name = sessions.fresh_name()
        show.note("forgotten")

    def _think(self, what: str) -> None:
        if what == "show":
            click.echo(printable(self.screen.reasoning).strip() or "there were no thoughts")
            return
        states = {"on": True, "off": False, "auto": None}
        if what not in states:
            raise ArgumentError("/think takes on, off, auto or show")
        self.conversation.think = states[what]
        show.note(f"thinking is {what}")

    def _undo(self, _: str) -> None:
        show.note("undone" if self.conversation.undo() else "there is nothing to undo")

    def _retry(self, _: str) -> None:
        if not self.conversation.retry():
            show.note("there is nothing to answer again")
            return
        self.conversation.answer(self.screen)
        self.keep()

    def _tools(self, what: str) -> None:
        talk = self.conversation
        if what in ("on", "off"):
            talk.tools_on = what == "on"
        elif what:
            raise ArgumentError("/tools takes on or off")
        if not talk.functions:
            show.note("there are no functions; begin with --tools FILE.py")
            return
        for name, function in talk.functions.items():
            click.echo(f"{name}: {(function.__doc__ or '').strip().splitlines()[0]}")
        show.note(f"the model may {'' if talk.tools_on else 'not '}call them")

    def _set(self, text: str) -> None:
        if text:
            name, _, value = text.replace("=", " ").partition(" ")
            self.conversation.set(name, value.strip())
            show.note(f"{name} is {value.strip()}")
            return
        shown = self.conversation.settings()
        own = "the model's own"
        click.echo(show.pairs({n: own if v is None else str(v) for n, v in shown.items()}))
