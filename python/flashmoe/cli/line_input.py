"""Lines typed by a person: by prompt_toolkit if it is there, else readline; with a history."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

_MOST_LINES = 1000


class LineInput:
    """Reads lines with editing and a history that outlives the program."""

    def __init__(self, prompt: str) -> None:
        """Choose the way to read.

        Args:
            prompt: Shown before each line in a terminal.
        """
        self._prompt = prompt
        self._ask = self._choose() if sys.stdin.isatty() else _from_pipe

    def read(self) -> str | None:
        """The next line, or None at the end.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        try:
            return self._ask()
        except EOFError:
            return None

    def _choose(self) -> Callable[[], str]:
        history = history_path()
        history.parent.mkdir(parents=True, exist_ok=True)
        try:
            from prompt_toolkit import PromptSession
            from prompt_toolkit.history import FileHistory
        except ImportError:
            return self._with_readline(history)
        session: PromptSession[str] = PromptSession(history=FileHistory(str(history)))
        return lambda: session.prompt(self._prompt)

    def _with_readline(self, history: Path) -> Callable[[], str]:
        import atexit
        import readline

        # prompt_toolkit's file has another form, so this one has a name of its own.
        file = history.with_suffix(".readline")
        if file.exists():
            readline.read_history_file(file)
        readline.set_history_length(_MOST_LINES)
        atexit.register(readline.write_history_file, file)
        return lambda: input(self._prompt)


def history_path() -> Path:
    """Where the history is kept: the XDG state directory."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(base) / "flashmoe" / "chat_history"


def _from_pipe() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")
