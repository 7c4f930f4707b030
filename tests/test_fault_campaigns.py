"""The campaigns of ``tests/reliability``, with the few cases that there is time for."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGNS = Path(__file__).parent / "reliability"
pytestmark = [
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the shim is for glibc"),
    pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler"),
]


def run(name: str, *options: str) -> dict[str, int]:
    """What a campaign counted; it must have found nothing bad."""
    done = subprocess.run(
        [sys.executable, CAMPAIGNS / name, *options], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {line[9:]: int(line[:9]) for line in done.stdout.splitlines()}


def test_saving_loading_and_memory() -> None:
    found = run("saves.py", "--step", "9")
    assert found["old files"] > found["new files"] > 0
    assert found["loads refused"] > 0
    assert found["MemoryError"] > 20


def test_changes_of_a_conversion() -> None:
    found = run("conversion.py", "--kills", "0", "--losses", "0", "--races", "3", "--step", "15")
    assert found["changes of a conversion"] > 100
    assert found["changes that failed: KILLED"] > 10
    assert found["changes that failed: QUOTA"] > 10
    assert found["limits on files"] == 21


def test_files_that_change() -> None:
    found = run("files.py", "--times", "3")
    assert found["cut: refused"] >= 2
    assert found["replace: identical"] == found["delete: identical"] == 6
    assert found["limits refused at once"] > 0
    assert found["limits that are enough"] > 0


def test_a_hub_that_lies() -> None:
    found = run("downloads.py", "--drops", "0", "--lies", "30")
    assert found["models"] > 0
    assert found["runs that gave up"] > 5
