"""Expert reads go wrong in every way: the right tokens or one exception, then all is well again."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).parent / "reliability" / "reads.py"
pytestmark = [
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the shim is for glibc"),
    pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler"),
]


def run(*options: str) -> dict[str, int]:
    """What the campaign counted; it must have found nothing bad."""
    done = subprocess.run(
        [sys.executable, CAMPAIGN, *options], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {line[9:]: int(line[:9]) for line in done.stdout.splitlines()}


@pytest.mark.parametrize("read", ["buffered", "direct"])
def test_every_read_fails(read: str) -> None:
    step = os.environ.get("FLASHMOE_FAULT_STEP", "29")
    few = ("--tokens", "6", "--step", step, "--flips", "8", "--slow", "0")
    counts = run("--read", read, *few)
    assert counts["runs with a fault"] > 50
    assert counts["refused"] > 20
    assert counts["identical"] > 20
    assert counts["bits flipped"] > 10
    assert counts["bits noticed when an expert is read again"] > 5


def test_a_disk_that_hangs() -> None:
    counts = run("--step", "1000", "--flips", "0", "--slow", "1")
    assert counts["slow reads"] == 1
    assert counts["given up: time limit"] == counts["given up: Ctrl-C"] == 1
