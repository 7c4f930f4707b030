"""Python functions that a model may call in a chat, once a person said yes."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashmoe.cli.chat.screen import call_line
from flashmoe.errors import ArgumentError

if TYPE_CHECKING:
    from flashmoe.reply import ToolCall


def load_functions(path: Path) -> dict[str, Callable[..., Any]]:
    """The public functions of a Python file, which is run.

    Args:
        path: The file.

    Raises:
        ArgumentError: It has none, or one without the types or words that a schema needs.
    """
    from flashmoe.chat import tool_schemas

    spec = importlib.util.spec_from_file_location(f"flashmoe_tools_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ArgumentError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, Callable[..., Any]] = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
    if not found:
        raise ArgumentError(f"{path} has no public function")
    tool_schemas(list(found.values()))
    return found


class Approval:
    """Asks before a function is called; remembers what may always be called."""

    def __init__(self, *, always: bool, ask: Callable[[str], str] | None) -> None:
        """Prepare.

        Args:
            always: Never ask.
            ask: Shows a question and gives what was typed; None where nobody can answer, so that
                nothing may be called.
        """
        self._always = always
        self._ask = ask
        self.trusted: set[str] = set()

    def __call__(self, call: ToolCall) -> bool:
        """Whether it may be called."""
        if self._always or call.name in self.trusted:
            return True
        if self._ask is None:
            return False
        click.echo(f"The model wants to call {call_line(call)}", err=True)
        while True:
            try:
                said = self._ask("Call it? [y]es, [n]o, [a]lways this function: ").strip().lower()
            except (EOFError, KeyboardInterrupt):
                return False
            if said in ("y", "yes"):
                return True
            if said in ("", "n", "no"):
                return False
            if said in ("a", "always"):
                self.trusted.add(call.name)
                return True
