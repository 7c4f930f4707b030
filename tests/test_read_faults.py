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


@pytest.mark.parametrize("read", ["buffered", "direct"])
def test_every_read_fails(read: str) -> None:
    step = os.environ.get("FLASHMOE_FAULT_STEP", "29")
    few = ("--tokens", "6", "--step", step, "--flips", "8", "--slow", "0")
    done = subprocess.run(
        [sys.executable, CAMPAIGN, "--read", read, *few],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {line[9:]: int(line[:9]) for line in done.stdout.splitlines()}
    assert counts["runs with a fault"] > 50
    assert counts["refused"] > 20
    assert counts["identical"] > 20
    assert counts["bits flipped"] > 10
    assert counts["bits noticed when an expert is read again"] > 5
