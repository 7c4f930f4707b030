"""A limit on the memory of a whole process, page cache included: a control group of Linux."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flashmoe.errors import FlashMoEError

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")


class CapError(FlashMoEError):
    """This process may not limit the memory of another."""


@contextmanager
def capped(limit: int | None) -> Iterator[list[str]]:
    """What to put before a command so that it runs under a limit.

    Args:
        limit: Bytes, or None for no limit.

    Yields:
        The beginning of a command line; empty without a limit.

    Raises:
        CapError: There are no control groups, or they are not ours to make.
    """
    if limit is None:
        yield []
        return
    group, file = _new_group()
    try:
        try:
            (group / file).write_text(str(limit))
        except OSError as error:
            raise _refused(error) from error
        yield ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")]
    finally:
        group.rmdir()


def _new_group() -> tuple[Path, str]:
    v1 = (V1 / "memory.limit_in_bytes").exists()
    group = (V1 if v1 else V2) / f"flashmoe_bench_{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise _refused(error) from error
    return group, "memory.limit_in_bytes" if v1 else "memory.max"


def _refused(error: OSError) -> CapError:
    return CapError(
        f"no control group could be made to limit memory ({error}); run as root on Linux, "
        "or leave --cap out"
    )


def command_line(prefix: Sequence[str], command: Sequence[str]) -> list[str]:
    """A command under what :func:`capped` gave.

    Args:
        prefix: What it gave.
        command: Program and arguments.
    """
    return [*prefix, *command]
