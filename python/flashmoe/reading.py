"""How experts are read from disk: as asked for, or as a short measurement of this disk says."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmoe import kept
from flashmoe.errors import ArgumentError, FlashMoEError

if TYPE_CHECKING:
    from flashmoe.manifest import Manifest

WAYS = ("buffered", "direct", "populate", "mmap", "uring")
SPLITS = (1, 2, 4, 8)
MOST_THREADS = 256
THREADS, SPLIT = 8, 1
"""What is taken when nothing was asked for or measured."""

_CANDIDATES = (
    ("direct", 8, 1),
    ("uring", 8, 1),
    ("direct", 16, 2),
    ("uring", 16, 2),
    ("direct", 4, 1),
)
_ROUNDS, _ROUND_SECONDS = 2, 0.035
"""Candidates take turns, so that a busy moment hits them all; together less than half a second."""
_MARGIN = 1.25
"""A candidate must be so much faster than an earlier one to be taken instead."""
_CACHE_SHARE = 0.9
"""Of the memory that is available, what the page cache and the model may fill together."""
_KEPT_SECONDS = 30 * 24 * 3600.0
_KIND, _VERSION = "reads", 2


@dataclass(frozen=True, slots=True)
class Figure:
    """What one way of reading gave.

    Attributes:
        read: One of :data:`WAYS`.
        threads: Reads in flight.
        split: Pieces of a record.
        bytes_per_second: Expert bytes; 0 if it cannot be used here.
        direct: Whether the page cache was not used; otherwise the figure may be that of memory.
        error: Why it cannot be used.
    """

    read: str
    threads: int
    split: int
    bytes_per_second: float
    direct: bool
    error: str | None = None

    def describe(self) -> str:
        """``direct, 8 threads, split 1: 2.41 GB/s``."""
        speed = self.error or f"{self.bytes_per_second / 1e9:.2f} GB/s"
        return f"{self.read}, {self.threads} threads, split {self.split}: {speed}"


@dataclass(frozen=True, slots=True)
class Probe:
    """A measurement of a disk.

    Attributes:
        figures: The candidates, in the order they were tried.
        measured_at: Seconds since 1970.
        kept: Whether it was measured by an earlier run.
    """

    figures: tuple[Figure, ...]
    measured_at: float
    kept: bool = False

    @property
    def best(self) -> Figure | None:
        """The first that is about as fast as the fastest, of those that avoided the page cache."""
        usable = [f for f in self.figures if f.direct and not f.error]
        fastest = max((f.bytes_per_second for f in usable), default=0.0)
        return next((f for f in usable if f.bytes_per_second * _MARGIN >= fastest), None)


@dataclass(frozen=True, slots=True)
class Choice:
    """A way of reading, and why.

    Attributes:
        read: One of :data:`WAYS`.
        threads: Reads in flight.
        split: Pieces of a record.
        reason: One sentence.
        probe: What was measured for it.
    """

    read: str
    threads: int
    split: int
    reason: str
    probe: Probe | None = None


def check(read: str, threads: int | None, split: int | None) -> None:
    """Refuse what cannot be asked for.

    Raises:
        ArgumentError: Naming the argument and what it may be.
    """
    if read not in ("auto", *WAYS):
        raise ArgumentError(f"read must be one of auto, {', '.join(WAYS)}, not {read!r}")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise ArgumentError(f"read_threads must be in 1 .. {MOST_THREADS}, not {threads}")
    if split is not None and split not in SPLITS:
        raise ArgumentError(f"read_split must be one of {SPLITS}, not {split}")


def choose(
    read: str,
    threads: int | None,
    split: int | None,
    *,
    manifest: Manifest,
    directory: Path,
    budget: int,
    available: int,
) -> Choice:
    """The way experts will be read.

    The page cache is used if it can hold every expert beside what the model holds: then experts
    are read from disk once. Otherwise it would hold a second copy of the bytes in the slots and
    push out what is needed; reads go around it, in the way that the disk likes best.

    Args:
        read: One of :data:`WAYS`, or ``"auto"``.
        threads: Reads in flight, or None.
        split: Pieces of a record, or None.
        manifest: Of the model.
        directory: Where its files are.
        budget: Most bytes that the model may hold.
        available: Memory that this process could take now, page cache included.
    """
    asked = (threads or THREADS, split or SPLIT)
    if read != "auto":
        return Choice(read, *asked, "asked for")
    experts = manifest.total_expert_bytes
    held = min(budget, experts + manifest.resident_bytes)
    sizes = f"experts {experts / 1e9:.2f} GB, available {available / 1e9:.2f} GB, of which the "
    sizes += f"model holds {held / 1e9:.2f} GB"
    if experts + held <= _CACHE_SHARE * available:
        return Choice("buffered", *asked, f"the page cache can hold every expert ({sizes})")
    return _fastest(probe(manifest, directory, threads, split), asked, sizes)


def _fastest(probe: Probe, asked: tuple[int, int], sizes: str) -> Choice:
    why = f"the page cache cannot hold every expert ({sizes}); "
    best = probe.best
    if best is not None:
        speed = f"{best.bytes_per_second / 1e9:.2f} GB/s"
        when = "an earlier run measured" if probe.kept else "measured"
        why += f"{when} {speed}, and none of {len(probe.figures)} ways around it is clearly faster"
        return Choice(best.read, best.threads, best.split, why, probe)
    failed = [f.error for f in probe.figures if f.error and f.read == "direct"]
    if failed:
        return Choice("direct", *asked, f"{why}the disk could not be measured: {failed[0]}", probe)
    why += "but this file system refuses reads around it (O_DIRECT), so it is used all the same"
    return Choice("buffered", *asked, why, probe)


def refused(choice: Choice, read_direct: bool) -> Choice:
    """The choice as it came out: reads around the page cache may have been refused at opening.

    Args:
        choice: What the model was opened with.
        read_direct: Whether the opened model avoids the page cache.
    """
    if choice.read not in ("direct", "uring") or read_direct:
        return choice
    why = f"{choice.reason}; but this file system refuses reads around the page cache (O_DIRECT), "
    return replace(choice, reason=f"{why}so they go through it")


# ---- the disk -----------------------------------------------------------------------------------


def probe(
    manifest: Manifest, directory: Path, threads: int | None = None, split: int | None = None
) -> Probe:
    """How fast the disk gives this model's experts: kept from an earlier run, or measured now.

    Reads random experts for less than half a second.

    Args:
        manifest: Of the model.
        directory: Where its files are.
        threads: Measure with so many reads in flight only.
        split: Measure with so many pieces only.
    """
    candidates = dict.fromkeys(
        (way, threads or count, split or pieces) for way, count, pieces in _CANDIDATES
    )
    key = _key(manifest, directory, threads, split)
    known = _recall(key)
    if known is None:
        figures = _measure(manifest.to_text(), directory, list(candidates))
        known = Probe(figures, time.time())
        if known.best is not None:
            _keep(key, known)
    return known


def _measure(
    text: str, directory: Path, candidates: list[tuple[str, int, int]]
) -> tuple[Figure, ...]:
    from flashmoe import _core

    figures = [Figure(*candidate, 0.0, True) for candidate in candidates]
    for turn in range(_ROUNDS):
        for i, figure in enumerate(figures):
            if figure.error:
                continue
            try:
                got = _core.probe_reads(
                    text,
                    str(directory),
                    read=figure.read,
                    read_threads=figure.threads,
                    read_split=figure.split,
                    seconds=_ROUND_SECONDS,
                    cold=False,
                    seed=time.time_ns(),
                )
            except FlashMoEError as error:  # no io_uring here, say; opening refuses a broken file
                figures[i] = replace(figure, bytes_per_second=0.0, direct=False, error=str(error))
                continue
            rate = got["bytes"] / (got["ns"] / 1e9)
            mean = (turn * figure.bytes_per_second + rate) / (turn + 1)
            figures[i] = replace(figure, bytes_per_second=mean, direct=got["direct"])
    return tuple(figures)


# ---- kept between runs --------------------------------------------------------------------------


def _key(manifest: Manifest, directory: Path, threads: int | None, split: int | None) -> str:
    """What a measurement depends on: file system, kernel, size and number of an expert's parts."""
    import platform

    largest = max((manifest.expert_bytes(e.layer) for e in manifest.experts), default=0)
    parts = max((len(e.extents) for e in manifest.experts), default=0)
    system = os.statvfs(directory)
    device = f"{os.stat(directory).st_dev:x}.{system.f_fsid:x}"
    return f"{device} {platform.release()} {largest}/{parts} {threads or '-'} {split or '-'}"


def _recall(key: str) -> Probe | None:
    entry: Any = kept.load(_KIND, _VERSION).get(key)
    try:
        figures = tuple(Figure(**figure) for figure in entry["figures"])
        probe = Probe(figures, float(entry["measured_at"]), kept=True)
        sound = all(
            f.read in WAYS
            and 1 <= f.threads <= MOST_THREADS
            and f.split in SPLITS
            and f.bytes_per_second >= 0
            for f in figures
        )
    except (TypeError, KeyError, ValueError):
        return None
    fresh = 0 <= time.time() - probe.measured_at <= _KEPT_SECONDS
    return probe if sound and fresh and probe.best is not None else None


def _keep(key: str, probe: Probe) -> None:
    entry = {"measured_at": probe.measured_at, "figures": [asdict(f) for f in probe.figures]}
    kept.keep(_KIND, _VERSION, key, entry)
