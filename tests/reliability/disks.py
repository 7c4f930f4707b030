"""Small disks to fill, to take away and to break, in memory or in a file; only for root."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

EXT4_BYTES = 16 << 20


def call(*words: str | Path) -> None:
    """Run a program that must succeed."""
    subprocess.run(words, check=True, capture_output=True)


def mounted(there: Path) -> bool:
    """Whether something is mounted there."""
    return str(there.resolve()) in Path("/proc/mounts").read_text().split()


@contextmanager
def tmpfs(there: Path, free: int) -> Iterator[Callable[[], None]]:
    """A disk in memory with so many bytes free; yields what makes it larger."""
    there.mkdir(exist_ok=True)
    call("mount", "-t", "tmpfs", "-o", f"size={free}", "tmpfs", there)
    try:
        yield lambda: call("mount", "-o", f"remount,size={4 * free + (64 << 20)}", there)
    finally:
        call("umount", there)


@contextmanager
def ext4(there: Path, free: int) -> Iterator[Callable[[], None]]:
    """The same in a file, through a loop device; another file takes the rest of it."""
    with ext4_in_a_file(there):
        filler = there / "filler"
        fill(filler, free)
        yield filler.unlink


@contextmanager
def ext4_in_a_file(there: Path, nbytes: int = EXT4_BYTES) -> Iterator[Path]:
    """An ext4 disk; yields the file beside it that it lies in."""
    there.mkdir(exist_ok=True)
    image = there.with_name(there.name + ".img")
    with image.open("wb") as file:
        file.truncate(nbytes)
    call("mkfs.ext4", "-q", "-F", "-b", "1024", "-m", "0", image)
    call("mount", "-o", "loop", image, there)
    try:
        yield image
    finally:
        if mounted(there):
            call("umount", there)
        image.unlink()


def fill(filler: Path, free: int) -> None:
    """Make a file so large that just so much stays free, or a block less."""
    with filler.open("wb") as file:
        while (more := shutil.disk_usage(filler.parent).free - free) > 0:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size + more)
