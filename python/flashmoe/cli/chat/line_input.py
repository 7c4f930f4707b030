"""Messages typed by a person: by prompt_toolkit if it is there, else readline; with a history."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flashmoe.cli.chat.sessions import state_directory

_MOST_LINES = 1000


class LineInput:
    """Reads messages with editing and a history that outlives the program.

    Enter ends a message. A backslash at the end of a line, or Alt-Enter, goes on with another.
    """

    def __init__(self, prompt: str, commands: Sequence[str] = ()) -> None:
        """Choose the way to read.

        Args:
            prompt: Shown before each message in a terminal.
            commands: Completed where they begin a message.
        """
        self._prompt = prompt
        self._commands = commands
        self._ask = self._choose() if sys.stdin.isatty() else _from_pipe

    def read(self) -> str | None:
        """The next message, or None at the end.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        try:
            text = self._ask()
            while text.endswith("\\"):
                text = text[:-1] + "\n" + self._ask()
            return text
        except EOFError:
            return None

    def _choose(self) -> Callable[[], str]:
        history = state_directory() / "chat_history"
        history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            import prompt_toolkit  # noqa: F401
        except ImportError:
            return self._with_readline(history)
        _make_private(history)
        session = _session(history, self._commands)
        # Its own way with SIGINT forgets one that comes when the line was just taken.
        return lambda: str(session.prompt(self._prompt, handle_sigint=False))

    def _with_readline(self, history: Path) -> Callable[[], str]:
        import atexit
        import readline

        # prompt_toolkit's file has another form, so this one has a name of its own.
        file = history.with_suffix(".readline")
        _make_private(file)
        readline.read_history_file(file)
        readline.set_history_length(_MOST_LINES)
        atexit.register(readline.write_history_file, file)
        return lambda: input(self._prompt)


def _session(history: Path, commands: Sequence[str]) -> Any:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: Any) -> None:
        buffer = event.current_buffer
        before = buffer.document.text_before_cursor
        if before.endswith("\\") and not buffer.document.text_after_cursor:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    def is_command() -> bool:
        return session.default_buffer.text.startswith("/")

    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)),
        key_bindings=keys,
        multiline=True,
        prompt_continuation="  ",
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=Condition(is_command),
        reserve_space_for_menu=4,
    )
    return session


def _make_private(file: Path) -> None:
    os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    file.chmod(0o600)


def _from_pipe() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")
