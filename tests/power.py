"""A disk that loses its power: what was not synced may be there, or not, or by half."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flashmoe.conversion.write import Fs


class Recorder(Fs):
    """Keeps a list of all changes, to play them again up to any point.

    Args:
        without: Kinds of changes to leave out, as a converter with a bug would.
    """

    def __init__(self, without: tuple[str, ...] = ()) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.without = without
        self.names: dict[int, str] = {}

    def _note(self, kind: str, *what: Any) -> None:
        if kind not in self.without:
            self.log.append((kind, *what))

    def create(self, path: Path) -> int:
        if not path.exists():
            self._note("create", path.name)
        fd = super().create(path)
        self.names[fd] = path.name
        return fd

    def allocate(self, fd: int, nbytes: int) -> None:
        self._note("allocate", self.names[fd], nbytes)
        super().allocate(fd, nbytes)

    def write(self, fd: int, data: Any, at: int) -> None:
        self._note("write", self.names[fd], bytes(memoryview(data).cast("B")), at)
        super().write(fd, data, at)

    def sync(self, fd: int) -> None:
        self._note("sync", self.names[fd])

    def rename(self, old: Path, new: Path) -> None:
        self._note("rename", old.name, new.name)
        super().rename(old, new)

    def remove(self, path: Path) -> None:
        if path.exists() and path.name != ".convert.lock":
            self._note("remove", path.name)
        super().remove(path)

    def sync_dir(self, path: Path) -> None:
        self._note("sync_dir")


class Disk:
    """What is on the disk's surface, and what is still on its way there."""

    def __init__(self) -> None:
        self.names: dict[str, list[Any]] = {}  # as the running system sees them
        self.safe_names: dict[str, list[Any]] = {}
        self.pending: list[tuple[Any, ...]] = []

    def play(self, change: tuple[Any, ...]) -> None:
        """A file is [bytes on the surface, changes on their way]."""
        kind, *what = change
        if kind == "create":
            self.names[what[0]] = [bytearray(), []]
            self.pending.append(("name", what[0], self.names[what[0]]))
        elif kind in ("allocate", "write"):
            self.names[what[0]][1].append((kind, *what[1:]))
        elif kind == "sync":
            file = self.names[what[0]]
            for late in file[1]:
                apply(file[0], late)
            file[1] = []
        elif kind == "rename":
            self.names[what[1]] = self.names.pop(what[0])
            self.pending.append(("rename", what[0], what[1], self.names[what[1]]))
        elif kind == "remove":
            del self.names[what[0]]
            self.pending.append(("remove", what[0]))
        elif kind == "sync_dir":
            self.safe_names = dict(self.names)
            self.pending = []

    def after_power_loss(self, luck: random.Random) -> dict[str, bytes]:
        """Some of what was on its way got there, in no order."""
        names = dict(self.safe_names)
        for kind, *what in self.pending:
            if luck.random() < 0.5:
                continue
            if kind == "name":
                names[what[0]] = what[1]
            elif kind == "rename":
                names.pop(what[0], None)
                names[what[1]] = what[2]
            else:
                names.pop(what[0], None)
        out = {}
        for name, (surface, late) in names.items():
            data = bytearray(surface)
            for change in late:
                fate = luck.random()
                if fate < 0.4:
                    apply(data, change)
                elif fate < 0.6 and change[0] == "write":
                    _, new, at = change
                    torn = new[: len(new) // 2] + bytes(len(new) - len(new) // 2)
                    apply(data, ("write", torn, at))
            out[name] = bytes(data)
        return out


def apply(data: bytearray, change: tuple[Any, ...]) -> None:
    if change[0] == "allocate":
        data.extend(bytes(max(change[1] - len(data), 0)))
    else:
        _, new, at = change
        data.extend(bytes(max(at + len(new) - len(data), 0)))
        data[at : at + len(new)] = new


def power_losses(log: list[tuple[Any, ...]], each: int) -> Iterator[dict[str, bytes]]:
    """States of the directory after a loss of power, ``each`` after every change."""
    luck, disk = random.Random(3), Disk()
    for change in log:
        disk.play(change)
        for _ in range(each):
            yield disk.after_power_loss(luck)
