"""Runs a Python parser on damaged inputs: every one is taken or refused in words, soon, and in little memory."""

from __future__ import annotations

import random
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from flashmoe.errors import FlashMoEError
from fuzz.mutate import Mutator

CORPUS = Path(__file__).parent / "corpus"
HANG_SECONDS = 5.0
SLOW_SECONDS = 1.0
MOST_MEMORY = 512 << 20
"""That the process may grow by, over all cases."""

_POOL = 400


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        name: Of its folder in ``corpus/``, too.
        seeds: Sound inputs to begin with.
        check: Runs it; returns if the input is taken, raises a :class:`FlashMoEError` if it is
            refused. Anything else is a finding.
        mutate: Makes a new input of an old one.
        odd: Inputs that were made by hand because damage does not come by them.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    check: Callable[[bytes], object]
    mutate: Mutator
    odd: Callable[[], list[bytes]] = list

    def kept(self) -> list[bytes]:
        """The inputs that were once findings, or that reach what others do not."""
        return [p.read_bytes() for p in sorted((CORPUS / self.name).glob("*"))] + self.odd()


@dataclass
class Finding:
    """An input that is neither taken nor refused."""

    data: bytes
    what: str


@dataclass
class Report:
    """What a run saw."""

    name: str
    cases: int = 0
    taken: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    grown: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    news: list[bytes] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.cases:,} cases, {self.taken:,} taken, "
            f"{sum(self.refused.values()):,} refused in {len(self.refused)} ways, "
            f"{len(self.findings)} findings; slowest {self.slowest * 1000:.0f} ms, "
            f"memory +{self.grown >> 20} MB, {self.cases / max(self.seconds, 1e-9):,.0f}/s"
        )


class _Hang(BaseException):
    pass


def _too_long(number: int, frame: FrameType | None) -> None:
    raise _Hang


@contextmanager
def _watched() -> Iterator[None]:
    """SIGALRM interrupts what takes too long."""
    before = signal.signal(signal.SIGALRM, _too_long)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _shape(error: BaseException) -> str:
    """An error's text without what differs from input to input."""
    text = re.sub(r"'[^']*'|\"[^\"]*\"|[^A-Za-z ]+", "_", str(error)[:300])
    return f"{type(error).__name__}: {text[:48]}"


def run_one(target: Target, data: bytes, report: Report) -> str:
    """Run one input; returns the shape of its verdict."""
    started = time.process_time()  # of this process: others may keep it waiting for seconds
    try:
        target.check(data)
        report.taken += 1
        verdict = "taken"
    except FlashMoEError as error:
        verdict = _shape(error)
        report.refused[verdict] += 1
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust derives from BaseException only
        verdict = _shape(error)
        report.findings.append(Finding(data, f"{type(error).__name__}: {str(error)[:300]}"))
    took = time.process_time() - started
    report.slowest = max(report.slowest, took)
    if took > SLOW_SECONDS and verdict != "_Hang: ":
        report.findings.append(Finding(data, f"took {took:.2f} s"))
    report.cases += 1
    return verdict


def run(
    target: Target,
    *,
    cases: int,
    seconds: float = 1e9,
    seed: int = 1,
    news: Callable[[], Collection[object]] = tuple,
) -> Report:
    """Run the kept inputs, the seeds, and damaged ones.

    An input whose verdict was not seen before, or that is news, joins those that others are made
    of.

    Args:
        target: The parser.
        cases: How many damaged inputs.
        seconds: Stop after about so long of damage.
        seed: Of the damage.
        news: What the last input did that none had done before; the report has those that did.
    """
    rng = random.Random(f"{target.name} {seed}")
    report = Report(target.name)
    seen: set[str] = set()
    pool: list[bytes] = []
    with _watched():
        for data in [*target.kept(), *target.seeds()]:
            signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
            seen.add(run_one(target, data, report))
            pool.append(data)
        news()
        started = time.perf_counter()
        first, before = len(pool), _peak()
        for case in range(cases):
            if case % 64 == 0 and (time.perf_counter() - started > seconds or report.findings[20:]):
                break
            data = target.mutate(rng, rng.choice(pool), pool)
            signal.setitimer(signal.ITIMER_REAL, HANG_SECONDS)
            verdict = run_one(target, data, report)
            fresh = news()
            if fresh and (verdict == "taken" or verdict in report.refused):
                report.news.append(data)
            if fresh or verdict not in seen:
                seen.add(verdict)
                if len(pool) < _POOL:
                    pool.append(data)
                else:
                    pool[rng.randrange(first, _POOL)] = data
    report.grown = _peak() - before
    if report.grown > MOST_MEMORY:
        report.findings.append(Finding(b"", f"memory grew by {report.grown >> 20} MB"))
    report.seconds = time.perf_counter() - started
    return report


def replay(targets: Sequence[Target]) -> list[Report]:
    """The kept inputs and the seeds of some parsers."""
    return [run(target, cases=0) for target in targets]
