"""What a conversion has finished, in a file that survives a crash at any moment; and its lock."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flashmoe.conversion.write import Descriptor, Fs, naming
from flashmoe.errors import ConversionError, LockedError

JOURNAL_NAME = ".convert.journal"
LOCK_NAME = ".convert.lock"


class Journal:
    """Lines of JSON, each with its own checksum; a torn last line does not count.

    A line is on the disk when :meth:`add` returns. What it tells of must be there before.

    Args:
        fs: Through which it is written.
        directory: The packed directory.

    Attributes:
        lines: What it says so far, in order.
    """

    def __init__(self, fs: Fs, directory: Path) -> None:
        self._fs = fs
        self.path = directory / JOURNAL_NAME
        self.lines, self._at = read_journal(self.path)

    def add(self, line: dict[str, Any]) -> None:
        """Append a line."""
        text = json.dumps(line, separators=(",", ":"), sort_keys=True).encode("ascii")
        data = b"%08x " % zlib.crc32(text) + text + b"\n"
        new = not self.path.exists()
        with self._fs.opened(self.path) as fd:
            self._fs.write(fd, data, self._at)
            self._fs.sync(fd)
        if new:
            self._fs.sync_dir(self.path.parent)
        self._at += len(data)
        self.lines.append(line)

    def begin(self, identity: dict[str, Any]) -> None:
        """Start with what is converted and how, or check that it is the same as before.

        Raises:
            ConversionError: Something else was begun here.
        """
        if not self.lines:
            self.add(identity)
            return
        if self.lines[0] != identity:
            before = self.lines[0]
            names = sorted(set(before) | set(identity))
            changed = [k for k in names if before.get(k) != identity.get(k)]
            shown = ", ".join(f"{k} was {before.get(k)!r}, is {identity.get(k)!r}" for k in changed)
            raise ConversionError(
                f"{self.path.parent} holds an unfinished conversion of something else ({shown}); "
                "go on with that one, or delete the directory to start again"
            )

    def of(self, keyword: str) -> dict[str, dict[str, Any]]:
        """The lines that have ``keyword``, by its value."""
        return {line[keyword]: line for line in self.lines[1:] if keyword in line}


def read_journal(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a journal, and how many bytes they take."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    lines: list[dict[str, Any]] = []
    at = 0
    while (end := data.find(b"\n", at)) >= 0:
        checksum, _, text = data[at:end].partition(b" ")
        if checksum != b"%08x" % zlib.crc32(text):
            break
        lines.append(json.loads(text))
        at = end + 1
    return lines, at


@contextmanager
def locked(directory: Path) -> Iterator[Path]:
    """Keep every other converter out of a directory; a dead one's lock does not count.

    Yields:
        The lock's file, to be removed at the very end.

    Raises:
        LockedError: Another process is at work, by its id.
    """
    import fcntl

    path = directory / LOCK_NAME
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise LockedError(
                f"process {pid} is converting into {directory}; wait for it, or stop it first"
            ) from None
        except OSError:
            os.close(fd)
            raise
        if _is_current(path, fd):
            break
        os.close(fd)  # its owner finished and removed it between our two steps
    try:
        with naming(Descriptor.of(fd, path)):
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        yield path
    finally:
        os.close(fd)


def _is_current(path: Path, fd: int) -> bool:
    """Whether an open file still has its name."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)
