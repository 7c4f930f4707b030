"""The rules of the core's house that a machine can check."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"base"},
    {"quant"},
    {"kernels", "store", "sample"},
    {"backend"},
    {"model", "selftest"},
    {"session"},
    {"bindings"},
]
LONGEST = 600
CORE = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".c", ".h", ".m", ".cpp", ".def"}]
OURS = [
    p
    for folder in ("csrc", "python", "tests", "benchmarks", "tools", "training")
    for p in (ROOT / folder).rglob("*")
    if p.suffix in {".c", ".h", ".m", ".cpp", ".def", ".py"}
]

pytestmark = pytest.mark.skipif(not CORE, reason="the sources are not beside the tests")


def floor_of(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def test_includes_only_point_down() -> None:
    wrong = []
    for path in CORE:
        room = path.relative_to(ROOT / "csrc").parts[0]
        if room == "include":
            continue
        for used in re.findall(r'#include "(\w+)/', path.read_text()):
            sideways = floor_of(used) == floor_of(room) and used != room
            if floor_of(used) > floor_of(room) or sideways:
                wrong.append(f"{path.relative_to(ROOT)} uses {used}/")
    assert not wrong, wrong


def test_no_file_is_long() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for p in OURS
        if (n := len(p.read_text().splitlines())) > LONGEST
    }
    assert not long, long


def test_nothing_in_the_core_ends_the_process_or_prints() -> None:
    words = re.compile(
        r"\b(abort|exit|_exit|assert|printf|puts|perror|system|popen|strcpy|sprintf|atoi)\s*\("
    )
    wrong = [
        f"{p.relative_to(ROOT)}:{i}: {line.strip()}"
        for p in CORE
        for i, line in enumerate(p.read_text().splitlines(), 1)
        if words.search(re.sub(r'"[^"]*"', '""', line)) and "static_assert" not in line
    ]
    assert not wrong, wrong


def test_every_file_says_what_it_is_for() -> None:
    wrong = [
        str(p.relative_to(ROOT))
        for p in CORE
        if not re.match(
            r"(#ifndef \w+\n#define \w+\n|#pragma once\n)?\s*(#\w+ [^\n]*\n|\s)*(/\*|//)",
            p.read_text(),
        )
    ]
    assert not wrong, wrong
