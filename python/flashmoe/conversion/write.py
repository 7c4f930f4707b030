"""The few ways in which a conversion changes the disk, in one object that tests can replace."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Descriptor(int):
    """Of an open file whose name is known.

    Attributes:
        path: The file's.
    """

    path: Path

    @classmethod
    def of(cls, fd: int, path: Path) -> Descriptor:
        """Give a descriptor its file's name."""
        made = cls(fd)
        made.path = path
        return made


@contextmanager
def naming(fd: int) -> Iterator[None]:
    """Errors say which file it was, if the descriptor knows."""
    try:
        yield
    except OSError as error:
        if error.filename is None and isinstance(fd, Descriptor):
            error.filename = str(fd.path)
        raise


class Fs:
    """Changes to files and directories.

    Nothing is safe from a loss of power before :meth:`sync` of the file, and no name before
    :meth:`sync_dir` of its directory. Every method raises ``OSError`` as the system does.
    """

    def make_dir(self, path: Path) -> None:
        """Create a directory whose parent exists."""
        path.mkdir()

    def create(self, path: Path) -> int:
        """Open a file for reading and writing, created if it is not there; a descriptor."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        return Descriptor.of(fd, path)

    def allocate(self, fd: int, nbytes: int) -> None:
        """Make a file ``nbytes`` long with blocks for all of them, so that none is short later."""
        with naming(fd):
            if hasattr(os, "posix_fallocate") and nbytes:
                os.posix_fallocate(fd, 0, nbytes)
            os.ftruncate(fd, nbytes)

    def write(self, fd: int, data: Any, at: int) -> None:
        """Write all of ``data``, any contiguous buffer, from byte ``at``."""
        view = memoryview(data).cast("B")
        with naming(fd):
            while view:
                done = os.pwrite(fd, view, at)
                view, at = view[done:], at + done

    def sync(self, fd: int) -> None:
        """Return once the file's contents are on the disk itself."""
        import fcntl

        full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync leaves them in the drive's cache
        if full is not None:
            try:
                fcntl.fcntl(fd, full)
                return
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOTTY):
                    raise
        with naming(fd):
            os.fsync(fd)  # also for file systems that know nothing better

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name in the same directory; replaces what had that name."""
        os.rename(old, new)

    def remove(self, path: Path) -> None:
        """Remove a file if it is there."""
        path.unlink(missing_ok=True)

    def sync_dir(self, path: Path) -> None:
        """Return once the names in a directory are on the disk itself."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sync(Descriptor.of(fd, path))
        finally:
            os.close(fd)

    @contextmanager
    def opened(self, path: Path) -> Iterator[int]:
        """:meth:`create` for the time of a ``with`` block."""
        fd = self.create(path)
        try:
            yield fd
        finally:
            os.close(fd)


def part_of(path: Path) -> Path:
    """Where a file is written before it gets its name; in the same directory."""
    return path.with_name(f".{path.name}.part")


def write_whole(fs: Fs, path: Path, data: bytes) -> None:
    """Write a small file: all of it under its name, or nothing.

    The name is safe only after ``fs.sync_dir``.
    """
    part = part_of(path)
    with fs.opened(part) as fd:
        fs.allocate(fd, len(data))
        fs.write(fd, data, 0)
        fs.sync(fd)
    fs.rename(part, path)


def read_exactly(fd: int, buffer: Any, at: int, name: str) -> None:
    """Fill a buffer from byte ``at`` of a file.

    Raises:
        ReadError: The file ends before, or cannot be read.
    """
    from flashmoe.errors import ReadError

    view = memoryview(buffer).cast("B")
    want, start = len(view), at
    while view:
        try:
            done = os.preadv(fd, [view[: 1 << 30]], at)
        except OSError as error:
            raise ReadError(f"{name}: offset {at}: {error.strerror}") from error
        if done == 0:
            raise ReadError(
                f"{name}: ends at byte {at}, in the middle of {want} bytes at {start}: "
                "it was truncated or replaced; get it again"
            )
        view, at = view[done:], at + done
