"""What checking experts when they are first read costs a decode, in time.

    python tests/reliability/checksums.py MODEL [--memory 2GB --tokens 512 --rounds 3]

MODEL is a packed directory. Two models are opened on it, one with ``verify="first"`` and one with
``verify="off"``, and decode the same tokens in turns, one token each, now this one first and now
that: whatever else the machine does, it does to both. Told are the sums over the first tokens and
over all, and the range in which the difference of the sums lies with 95 % confidence, by resampling
blocks of 8 tokens. The more of an answer there is, the fewer of its experts are new.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flashmoe import Model

WAYS = ("first", "off")
MARKS = 6
"""Lengths of the answer that are told: the whole, a half, a quarter …"""
BLOCK, RESAMPLED = 8, 4000
PAUSE = 0.004
"""Seconds before a token: what the other model still reads ahead of its use has ended."""


def drop_pages(path: Path) -> None:
    """Ask the system to forget what it holds of the model's files."""
    for file in path.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def decode(a: argparse.Namespace, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds of each token and bytes read up to it, ``[2, tokens]``, in the order of WAYS.

    The tokens are drawn, so both ways compute the same; nothing is sampled.
    """
    if a.cold:
        drop_pages(a.model)
    ids = np.random.default_rng(seed).integers(0, 200, a.tokens, dtype=np.int32)
    took, read = np.empty((2, a.tokens)), np.empty((2, a.tokens))
    with ExitStack() as opened:
        sessions = []
        for verify in WAYS:
            model = opened.enter_context(
                Model(a.model, memory=a.memory, read=a.read, verify=verify, guess=False)
            )
            session = model.new_session()
            opened.callback(session.close)
            sessions.append(session)
            logits = np.empty((1, model.vocab_size), np.float32)
        for at in range(a.tokens):
            for way in (0, 1) if (at + seed) % 2 else (1, 0):
                time.sleep(PAUSE)
                start = time.perf_counter()
                sessions[way].eval(ids[at : at + 1], logits)
                took[way, at] = time.perf_counter() - start
                read[way, at] = sessions[way].stats()["bytes_read"]
    return took, read


def share(took: NDArray[np.float64], rng: np.random.Generator) -> tuple[float, float, float]:
    """How much longer the first way takes, and the ends of the range that has 95 %.

    Args:
        took: Seconds of tokens, ``[rounds, 2, tokens]``.
        rng: Draws the blocks.
    """
    blocks = np.add.reduceat(took, np.arange(0, took.shape[2], BLOCK), axis=2)
    blocks = blocks.transpose(1, 0, 2).reshape(2, -1)
    drawn = rng.integers(0, blocks.shape[1], (RESAMPLED, blocks.shape[1]))
    on, off = blocks[:, drawn].sum(axis=2)
    low, high = np.quantile(on / off - 1, (0.025, 0.975))
    return float(blocks[0].sum() / blocks[1].sum() - 1), float(low), float(high)


def main(argv: Sequence[str] | None = None) -> int:
    """Print both, and the difference."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3, help="each with other tokens")
    parser.add_argument("--memory", default=None, help="of each, as flashmoe.Model takes it")
    parser.add_argument("--read", default="direct", help="way of reading")
    parser.add_argument("--warm", dest="cold", action="store_false", help="keep the page cache")
    a = parser.parse_args(argv)
    runs = [decode(a, seed) for seed in range(a.rounds)]
    took, read = (np.stack(each) for each in zip(*runs, strict=True))
    rng = np.random.default_rng(0)
    print(f"{a.rounds} rounds, memory {a.memory}, read {a.read}, {os.cpu_count()} cores")
    for mark in sorted({max(1, a.tokens >> i) for i in range(MARKS)}):
        on, off = took[:, :, :mark].sum(axis=2).mean(axis=0)
        more, low, high = share(took[:, :, :mark], rng)
        print(
            f"{mark:5} tokens: {read[:, 0, mark - 1].mean() / 1e6:7.0f} MB read, "
            f"{off:8.3f} s without, {on:8.3f} s with: {more:+.2%} ({low:+.2%} … {high:+.2%})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
