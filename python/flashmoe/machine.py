"""What this machine has: memory that the process may use, and how fast its disk gives experts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flashmoe.errors import ArgumentError, ReadError

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:([KMGT]?)(I?)B?|(%))\s*", re.IGNORECASE)
_PAGE = 4096
_UNLIMITED = 1 << 60
"""cgroup v1 writes a number near 2^63 for "no limit"."""


def parse_size(size: int | float | str) -> int:
    """A number of bytes.

    Args:
        size: Bytes; a text such as ``"6GB"`` (10^9), ``"512MiB"`` (2^20) or ``"50%"``; or a
            fraction of :func:`memory_limit` between 0 and 1 as a float.

    Raises:
        ArgumentError: Anything else.
    """
    if isinstance(size, bool) or not isinstance(size, (int, float, str)):
        raise ArgumentError(f"a size is bytes, a text such as '6GB', or a fraction, not {size!r}")
    if isinstance(size, str):
        number = _parse_text(size)
    elif isinstance(size, float) and 0 < size <= 1:
        number = size * memory_limit()
    else:
        number = size
    if not 1 <= number < _UNLIMITED or number != number:
        raise ArgumentError(f"{size!r} is no size that memory can have; write it as 6GB or 512MiB")
    return int(number)


def _parse_text(text: str) -> float:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ArgumentError(f"{text!r} is not a size; write it as 6GB, 512MiB or 50%")
    number = float(match[1])
    if match[4]:
        if number > 100:
            raise ArgumentError(f"{text!r} is more than this machine's memory")
        return number / 100 * memory_limit()
    if match[3] and not match[2]:
        raise ArgumentError(f"{text!r} is not a size; write it as 6GB, 512MiB or 50%")
    return number * float((1024 if match[3] else 1000) ** _UNITS[(match[2] or "").upper()])


@dataclass(frozen=True, slots=True)
class Limit:
    """One bound on this process's memory.

    Attributes:
        name: Where it comes from.
        nbytes: The bound.
        used: What counts against it now and cannot be taken back; None if that is unknown.
    """

    name: str
    nbytes: int
    used: int | None = None


def physical_memory() -> int:
    """Bytes of memory in the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limits(root: Path = Path("/")) -> list[Limit]:
    """Everything that bounds this process's memory: the machine, its cgroups, its rlimits.

    Args:
        root: Where ``proc`` and ``sys`` are mounted.
    """
    limits = [Limit("physical", physical_memory())]
    if sys.platform == "linux":
        limits.extend(_cgroup_limits(root))
    limits.extend(_rlimits(root))
    return limits


def memory_limit(root: Path = Path("/")) -> int:
    """Most bytes this process may ever hold: the smallest of :func:`memory_limits`.

    Args:
        root: Where ``proc`` and ``sys`` are mounted.
    """
    return min(limit.nbytes for limit in memory_limits(root))


def available_memory(root: Path = Path("/")) -> int:
    """Bytes this process could take now without pushing others out; page cache counts as free.

    Args:
        root: Where ``proc`` and ``sys`` are mounted.

    Raises:
        ReadError: The system does not tell.
    """
    free = _free_memory(root)
    for limit in memory_limits(root):
        free = min(free, limit.nbytes - (limit.used or 0))
    return max(free, 0)


def _free_memory(root: Path) -> int:
    if sys.platform == "darwin":
        pages = subprocess.run(["/usr/bin/vm_stat"], capture_output=True, text=True, check=True)
        return parse_vm_stat(pages.stdout)
    meminfo = root / "proc/meminfo"
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ReadError(f"{meminfo} does not say how much memory is available; give memory= yourself")


def parse_vm_stat(text: str) -> int:
    """Free bytes by macOS's ``vm_stat``: pages that are free, or that it takes back unasked.

    Args:
        text: What the program printed.

    Raises:
        ReadError: It is not what the program prints.
    """
    size = re.search(r"page size of (\d+) bytes", text)
    kinds = "free|inactive|speculative|purgeable"
    counts = dict(re.findall(rf"^Pages ({kinds}):\s+(\d+)\.", text, re.MULTILINE))
    if size is None or "free" not in counts:
        raise ReadError(f"vm_stat printed {text[:80]!r}; give memory= yourself")
    return int(size[1]) * sum(map(int, counts.values()))


def _cgroup_limits(root: Path) -> Iterator[Limit]:
    table = root / "proc/self/cgroup"
    if not table.exists():
        return
    for line in table.read_text().splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0" and not controllers:
            for mount in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
                yield from _chain(root / mount, path, "memory.max", "memory.current", "v2")
        elif "memory" in controllers.split(","):
            yield from _chain(
                root / "sys/fs/cgroup/memory",
                path,
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "v1",
            )


def _chain(mount: Path, path: str, limit: str, usage: str, version: str) -> Iterator[Limit]:
    """The limits of a cgroup and of those around it.

    Inside a container the path may be one that only the host sees; then the mount is our cgroup.
    """
    parts = [p for p in path.split("/") if p not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        folder = mount.joinpath(*parts[:depth])
        file = folder / limit
        if not file.is_file():
            continue
        text = file.read_text().strip()
        if text == "max" or int(text) >= _UNLIMITED:
            continue
        used = int((folder / usage).read_text()) - _page_cache(folder)
        yield Limit(f"cgroup {version} {file}", int(text), max(used, 0))


def _page_cache(folder: Path) -> int:
    """Bytes of clean file pages that a cgroup gives back when it needs memory."""
    stat = folder / "memory.stat"
    if not stat.is_file():
        return 0
    counts = dict(line.split() for line in stat.read_text().splitlines())
    files = ("total_inactive_file", "total_active_file")
    if "total_inactive_file" not in counts:
        files = ("inactive_file", "active_file")
    return sum(int(counts.get(name, 0)) for name in files)


def _rlimits(root: Path) -> Iterator[Limit]:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        used = None
        statm = root / "proc/self/statm"
        if statm.is_file():
            used = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        yield Limit("ulimit -v", soft, used)


@dataclass(frozen=True, slots=True)
class DiskProbe:
    """How fast random reads of expert size come from a disk.

    Attributes:
        directory: Where was read.
        bytes_per_second: The best of the thread counts.
        by_threads: Bytes per second by number of threads.
        block_bytes: Bytes of one read.
        read_bytes: Bytes read in all.
        direct: Whether the page cache was avoided; without it the figure may be that of memory.
    """

    directory: Path
    bytes_per_second: float
    by_threads: dict[int, float]
    block_bytes: int
    read_bytes: int
    direct: bool


def probe_disk(
    directory: Path,
    *,
    block_bytes: int = 2 << 20,
    threads: Sequence[int] = (4, 8),
    seconds: float = 1.0,
    most_bytes: int = 256 << 20,
) -> DiskProbe:
    """Measure random reads around the page cache.

    Reads the largest file of the directory if it has at least ``most_bytes``; otherwise a
    temporary file of that size, which is removed again.

    Args:
        directory: Where the experts are, or would be.
        block_bytes: Bytes of one read, rounded up to 4096.
        threads: Numbers of threads to try.
        seconds: Time for each of them.
        most_bytes: Size of the temporary file.

    Raises:
        ReadError: The directory can neither be read nor written.
    """
    block = -(-block_bytes // _PAGE) * _PAGE
    try:
        with _probe_file(directory, max(most_bytes, block)) as path:
            return _probe(directory, path, block, threads, seconds)
    except OSError as error:
        raise ReadError(f"cannot measure the disk of {directory}: {error}") from error


@contextmanager
def _probe_file(directory: Path, nbytes: int) -> Iterator[Path]:
    files = [p for p in directory.iterdir() if p.is_file() and os.access(p, os.R_OK)]
    largest = max(files, key=lambda p: p.stat().st_size, default=None)
    if largest is not None and largest.stat().st_size >= nbytes:
        yield largest
        return
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".flashmoe-probe-") as file:
        block = os.urandom(1 << 20)
        for _ in range(-(-nbytes // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        yield Path(file.name)


def _open_uncached(path: Path) -> tuple[int, bool]:
    """A descriptor whose reads avoid the page cache, where the system can do that."""
    if sys.platform == "darwin":
        import fcntl

        fd = os.open(path, os.O_RDONLY)
        fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)
        return fd, True
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT), True
    except OSError:  # tmpfs and some network file systems refuse O_DIRECT
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return fd, False


def _probe(
    directory: Path, path: Path, block: int, threads: Sequence[int], seconds: float
) -> DiskProbe:
    import random

    blocks = list(range(path.stat().st_size // block))
    random.Random(0).shuffle(blocks)
    fd, direct = _open_uncached(path)
    try:
        rates, total, first = {}, 0, 0
        for count in threads:
            done, elapsed = _timed_reads(fd, blocks[first:] + blocks[:first], block, count, seconds)
            rates[count] = done * block / elapsed
            total += done * block
            first = (first + done) % len(blocks)
    finally:
        os.close(fd)
    return DiskProbe(directory, max(rates.values()), rates, block, total, direct)


def _timed_reads(
    fd: int, blocks: Sequence[int], block: int, count: int, seconds: float
) -> tuple[int, float]:
    """Blocks that ``count`` threads read until the time is up, and the time that took."""
    import mmap

    start = time.perf_counter()
    done = [0] * count
    failures: list[OSError] = []

    def work(index: int) -> None:
        with mmap.mmap(-1, block) as buffer:
            for turn in range(index, 1 << 30, count):
                if failures or time.perf_counter() - start > seconds:
                    return
                try:
                    os.preadv(fd, [buffer], blocks[turn % len(blocks)] * block)
                except OSError as error:
                    failures.append(error)
                    return
                done[index] += 1

    workers = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    return sum(done), time.perf_counter() - start
