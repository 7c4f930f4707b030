"""Parsers on damaged inputs: every kept finding again, and new damage for a few seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.core import CORPUS, NAMES
from fuzz.directories import TARGETS as DIRECTORIES
from fuzz.files import TARGETS as FILES
from fuzz.harness import HANG_SECONDS, Target, run
from fuzz.texts import TARGETS as TEXTS
from fuzz.texts import close

TARGETS = (*FILES, *TEXTS, *DIRECTORIES)
SECONDS = 1.2


@pytest.fixture(scope="module", autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    close()


@pytest.mark.filterwarnings("ignore")  # a Python literal that a model wrote may warn
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_taken_or_refused(target: Target) -> None:
    report = run(target, cases=20_000, seconds=SECONDS, seed=11)
    assert not report.findings, [(f.what, f.data[:300]) for f in report.findings[:5]]
    assert report.cases > len(target.kept()) + len(target.seeds())  # time for damage was left
    assert report.slowest < HANG_SECONDS


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_seeds_are_sound(target: Target) -> None:
    for seed in target.seeds():
        target.check(seed)


def test_a_broken_parser_is_found() -> None:
    """The harness itself: another exception, a hang and a panic are findings."""

    def check(data: bytes) -> None:
        if b"\xff" in data:
            raise KeyError("not one of ours")
        json.loads(data)

    target = Target("none", lambda: [b"[1]"], check, lambda rng, data, pool: rng.randbytes(3))
    report = run(target, cases=200)
    assert {f.what.split(":")[0] for f in report.findings} >= {"UnicodeDecodeError"} or (
        any("KeyError" in f.what for f in report.findings)
    )
    assert len(report.findings) > 20  # and the run ends early
    assert report.cases < 200


def coverage(*more: str) -> subprocess.CompletedProcess[str]:
    """Counts in a process of its own: this one has run inputs already."""
    command = [sys.executable, Path(__file__).parent / "fuzz" / "run.py", "--coverage", "python"]
    return subprocess.run([*command, *more], capture_output=True, text=True)


def test_kept_inputs_reach_the_lines_of_the_parsers() -> None:
    done = coverage()
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "all of Python" in done.stdout


def test_lines_that_no_input_reaches_are_counted() -> None:
    done = coverage("--only", "index", "prefix")
    assert done.returncode == 1, done.stderr[-2000:]
    assert "flashmoe.prefix_files" in done.stdout and "not reached: [" in done.stdout


def test_the_corpus_is_small() -> None:
    files = [p for p in CORPUS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 2 << 20
    assert all(any((CORPUS / name).iterdir()) for name in NAMES)
