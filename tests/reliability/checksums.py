"""What checking experts when they are first read costs, in time and in work of the processor.

    python tests/reliability/checksums.py MODEL [--tokens 128 --rounds 10 --read direct]

MODEL is a packed directory. It is compared with itself without the checksums in its manifest, in
turns, each time from a model that was just opened: every expert is read and checked for the first
time in these tokens, later ones cost nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from flashmoe import Generator, Model, Sampler


def without_checksums(path: Path, folder: Path) -> Path:
    """The same model by links, but for the checksums' lines."""
    for file in path.iterdir():
        if file.name != "manifest.fm":
            (folder / file.name).symlink_to(file.resolve())
    lines = (path / "manifest.fm").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("checksum ")]
    if len(kept) == len(lines):
        raise SystemExit(f"{path} has no checksums")
    (folder / "manifest.fm").write_text("".join(kept))
    return folder


def decode(path: Path, tokens: int, read: str) -> tuple[float, float, int]:
    """Seconds, seconds of the processor, and bytes read, from the first token on."""
    with Model(path, read=read) as model, Generator(model, Sampler(temperature=0)) as generator:
        start, work = time.perf_counter(), time.process_time()
        answer = generator.generate([1, 2, 3, 4], max_tokens=tokens)
        took = time.perf_counter() - start, time.process_time() - work
    return *took, answer.stats.expert_bytes_read


def main() -> int:
    """Print the best of both, and the difference."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--read", default="direct", help="way of reading")
    a = parser.parse_args()
    taken: dict[bool, list[tuple[float, float, int]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        paths = {True: a.model, False: without_checksums(a.model, Path(folder))}
        for number in range(2 * (a.rounds + 1)):
            checked = number % 2 == 0
            measured = decode(paths[checked], a.tokens, a.read)
            if number > 1:  # the first pair finds the machine cold
                taken[checked].append(measured)
    read = taken[True][0][2] / 1e6
    print(f"{a.tokens} tokens, {read:.0f} MB of experts read, {os.cpu_count()} cores")
    for i, what in enumerate(("time", "processor")):
        checked, plain = (min(t[i] for t in taken[on]) for on in (True, False))
        print(
            f"{what:10} {plain * 1e3:8.1f} ms without, {checked * 1e3:8.1f} ms with: "
            f"{checked / plain - 1:+.2%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
