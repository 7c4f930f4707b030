"""What checking experts when they are first read costs a decode, in time and work.

    python tests/reliability/checksums.py MODEL [--memory 6GB --tokens 512 --rounds 10]

MODEL is a packed directory. A run opens it, drops its files from the page cache and decodes; runs
with ``verify="first"`` and ``verify="off"`` take turns, each pair in the other order. Told are the
median of both and the median of the pairs' differences with its quartiles, at several lengths of
the answer: the more of an answer there is, the fewer of its experts are new.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from flashmoe import Model

Told = tuple[float, float, float]
MARKS = 6
"""Lengths of the answer that are told: the whole, a half, a quarter …"""


def drop_pages(path: Path) -> None:
    """Ask the system to forget what it holds of the model's files."""
    for file in path.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def decode(
    a: argparse.Namespace, verify: str, marks: list[int]
) -> list[tuple[float, float, float]]:
    """Seconds, seconds of the processor and experts' bytes read, up to each mark.

    The tokens are drawn, so both ways compute the same; nothing is sampled.
    """
    if a.cold:
        drop_pages(a.model)
    ids = np.random.default_rng(a.seed).integers(0, 200, a.tokens, dtype=np.int32)
    told = []
    with Model(a.model, memory=a.memory, read=a.read, verify=verify) as model:
        logits = np.empty((1, model.vocab_size), np.float32)
        session = model.new_session()
        start, work = time.perf_counter(), time.process_time()
        for number, at in enumerate(range(a.tokens), start=1):
            session.eval(ids[at : at + 1], logits)
            if number in marks:
                took = time.perf_counter() - start, time.process_time() - work
                told.append((*took, float(session.stats()["bytes_read"])))
        session.close()
    return told


def main() -> int:
    """Print both, and the difference."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--memory", default=None, help="as flashmoe.Model takes it")
    parser.add_argument("--read", default="direct", help="way of reading")
    parser.add_argument("--warm", dest="cold", action="store_false", help="keep the page cache")
    parser.add_argument("--seed", type=int, default=1, help="of the tokens")
    a = parser.parse_args()
    marks = sorted({max(1, a.tokens >> i) for i in range(MARKS)})
    pairs: list[dict[str, list[Told]]] = []
    for number in range(a.rounds + 1):
        order = ("first", "off") if number % 2 else ("off", "first")
        pairs.append({verify: decode(a, verify, marks) for verify in order})
    del pairs[0]  # finds the machine cold
    print(f"{a.rounds} pairs, memory {a.memory}, read {a.read}, {os.cpu_count()} cores")
    for i, mark in enumerate(marks):
        read = pairs[0]["first"][i][2] / 1e6
        print(f"{mark} tokens, {read:.0f} MB read")
        for j, what in enumerate(("time", "processor")):
            on = [pair["first"][i][j] for pair in pairs]
            off = [pair["off"][i][j] for pair in pairs]
            low, middle, high = statistics.quantiles(
                [x / y - 1 for x, y in zip(on, off, strict=True)], n=4
            )
            print(
                f"  {what:10}{statistics.median(off):8.3f} s without, "
                f"{statistics.median(on):8.3f} s with: {middle:+.2%} ({low:+.2%} … {high:+.2%})"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
