"""Conversations in files: one JSON a conversation, which only its owner can read."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

from flashmoe.errors import ArgumentError, ModelFormatError

_ROLES = {"user", "assistant", "tool"}


def state_directory() -> Path:
    """Where histories and conversations are kept: the XDG state directory."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(base) / "flashmoe"


def fresh_name() -> str:
    """A name for a new conversation: the time."""
    return datetime.now().strftime("%Y-%m-%dT%H-%M-%S")


def place(name: str) -> Path:
    """The file of a conversation.

    Args:
        name: A name, or a path: with a slash in it, or ending in ``.json``.
    """
    if "/" in name or name.endswith(".json"):
        return Path(name).expanduser()
    if not name or name.startswith("."):
        raise ArgumentError(f"{name!r} is no name for a conversation")
    return state_directory() / "sessions" / f"{name}.json"


def latest() -> str:
    """The name of the conversation that was saved last.

    Raises:
        ArgumentError: There is none.
    """
    files = (state_directory() / "sessions").glob("*.json")
    newest = max(files, key=lambda file: file.stat().st_mtime_ns, default=None)
    if newest is None:
        raise ArgumentError("there is no conversation to go on with yet")
    return newest.stem


def save(path: Path, conversation: dict[str, Any]) -> None:
    """Write a conversation; never half of it.

    Args:
        path: Replaced if it is there.
        conversation: What :func:`load` gives.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Only the owner can read what mkstemp makes.
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(conversation, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)  # Ctrl-C may come when it has its name already
        raise


def load(path: Path) -> dict[str, Any]:
    """Read a conversation.

    Args:
        path: What :func:`save` wrote.

    Returns:
        ``model``, ``system`` (or None) and ``messages``.

    Raises:
        ArgumentError: There is no such file.
        ModelFormatError: It is no conversation.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArgumentError(f"there is no conversation {path}") from error
    except ValueError as error:
        raise ModelFormatError(f"{path} is no conversation: {error}") from error
    messages = data.get("messages") if isinstance(data, dict) else None
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise ModelFormatError(f"{path} is no conversation: it has no messages, or others")
    system = data.get("system")
    return {
        "model": str(data.get("model", "")),
        "system": system if isinstance(system, str) else None,
        "messages": messages,
    }


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and message.get("role") in _ROLES
        and isinstance(message.get("content"), str)
    )
