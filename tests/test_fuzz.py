"""Parsers on damaged inputs: every kept finding again, and new damage for a few seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from fuzz.core import CORPUS, NAMES
from fuzz.files import TARGETS as FILES
from fuzz.harness import HANG_SECONDS, Target, run
from fuzz.texts import TARGETS as TEXTS
from fuzz.texts import close

TARGETS = (*FILES, *TEXTS)
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


def test_the_corpus_is_small() -> None:
    files = [p for p in CORPUS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 2 << 20
    assert all(any((CORPUS / name).iterdir()) for name in NAMES)
