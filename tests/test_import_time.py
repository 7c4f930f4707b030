"""`import flashmoe` is quick and changes nothing in the process."""

from __future__ import annotations

import statistics
import subprocess
import sys

TIMED = """
import time
start = time.perf_counter()
import flashmoe
print(time.perf_counter() - start)
"""
QUIET = """
import os, signal, sys, threading
before = [signal.getsignal(s) for s in signal.valid_signals()]
env = dict(os.environ)
import flashmoe
assert threading.active_count() == 1
assert len(os.listdir("/proc/self/task")) == 1 if os.path.isdir("/proc/self/task") else True
assert [signal.getsignal(s) for s in signal.valid_signals()] == before
assert dict(os.environ) == env
heavy = {"numpy", "jinja2", "tokenizers", "huggingface_hub", "tqdm", "click"} & set(sys.modules)
assert not heavy, heavy
flashmoe.Model, flashmoe.Generator, flashmoe.Sampler, flashmoe.convert, flashmoe.verify
assert set(flashmoe.__all__) <= set(dir(flashmoe))
"""


def test_import_takes_no_time() -> None:
    times = [
        float(
            subprocess.run(
                [sys.executable, "-c", TIMED], capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(7)
    ]
    assert statistics.median(times) <= 0.150, times


def test_import_starts_nothing() -> None:
    subprocess.run([sys.executable, "-c", QUIET], check=True)
