"""Small facts about this machine that are kept between runs, in the user's cache directory."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


def directory() -> Path:
    """Where they are kept.

    Raises:
        RuntimeError: There is no home directory.
    """
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/flashmoe"
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return home / "flashmoe"


def load(name: str, version: int) -> dict[str, Any]:
    """All facts of a kind; none where the file is missing, broken or of another version.

    Args:
        name: The kind; its file is ``NAME.json``.
        version: Of the file's form.
    """
    try:
        found = json.loads((directory() / f"{name}.json").read_text())
    except (OSError, ValueError, RuntimeError):
        return {}
    if not isinstance(found, dict) or found.get("version") != version:
        return {}
    return found[name] if isinstance(found.get(name), dict) else {}


def keep(name: str, version: int, key: str, fact: Any) -> None:
    """Keep one where that is possible; elsewhere the next run finds it out again.

    Args:
        name: The kind.
        version: Of the file's form.
        key: What the fact is about.
        fact: Anything JSON can hold.
    """
    import tempfile

    with suppress(OSError, RuntimeError):
        path = directory() / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"version": version, name: load(name, version) | {key: fact}}, indent=1)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
