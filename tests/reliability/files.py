"""Files that are cut, deleted, replaced or overwritten while a model reads them; few descriptors.

    python tests/reliability/files.py             100 times each
    python tests/reliability/files.py --times 3   what the tests do
    python tests/reliability/files.py --disks     and disks that are unmounted or break; needs root

Ends with 1 if a token was wrong, or an error was none of ours.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import flashmoe
from flashmoe import FlashMoEError, Model
from flashmoe.errors import ExpertReadError, IntegrityError
from reliability import disks
from reliability.reads import ROOMY, Runner, flip

TOKENS = 16


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 7)


def delete(file: Path) -> None:
    file.unlink()


def replace(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(bytes(file.stat().st_size))
    os.replace(other, file)


def overwrite(file: Path) -> None:
    for at in range(100, file.stat().st_size, 16384):  # in every record
        flip(file, at, 4)


CHANGES: dict[Callable[[Path], None], tuple[type[Exception], ...]] = {
    cut: (ExpertReadError,),
    delete: (),
    replace: (),
    overwrite: (IntegrityError,),
}
"""What may be raised after each; who has a deleted or replaced file open still has the old one."""


def changing(times: int, found: Counter[str]) -> None:
    """All of a model's experts change while it generates, at random moments."""
    draw = random.Random(11)
    path = flashmoe.demo_model_path()
    with Runner(path, "buffered", TOKENS, memory=ROOMY) as runner:
        start = time.monotonic()
        want = runner.answer()
        usual = time.monotonic() - start
    for change, allowed in CHANGES.items():
        for number in range(times):
            with tempfile.TemporaryDirectory() as folder:
                copy = shutil.copytree(path, Path(folder) / "model")
                # read again, an expert that was overwritten would not be checked
                memory = ROOMY if change is overwrite or number % 2 else 0
                with Runner(copy, "buffered", TOKENS, memory) as runner:
                    changer = threading.Timer(
                        draw.uniform(0, usual / 2),
                        lambda: [change(f) for f in sorted(copy.glob("experts-*"))],  # noqa: B023
                    )
                    changer.start()
                    judge(runner, want, allowed, change.__name__, found)
                    changer.join()
                    judge(runner, want, allowed, change.__name__, found)


def judge(
    runner: Runner,
    want: list[int],
    allowed: tuple[type[Exception], ...],
    name: str,
    found: Counter[str],
) -> None:
    try:
        got = runner.answer()
    except allowed:
        found[f"{name}: refused"] += 1
    except (FlashMoEError, OSError) as error:
        found["other errors"] += 1
        print(f"{name}: {error!r}")
    else:
        found[f"{name}: identical"] += got == want
        found["wrong tokens"] += got != want


def few_descriptors(found: Counter[str]) -> None:
    """With any limit on descriptors a model opens and answers, or says at once that it cannot."""
    path = flashmoe.demo_model_path()
    with Runner(path, "buffered", TOKENS) as runner:
        want = runner.answer()
    now = len(os.listdir("/proc/self/fd"))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in range(now, now + 40):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
        try:
            model = Model(path, memory=ROOMY, threads=1)
        except (FlashMoEError, OSError) as error:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            found["limits refused at once"] += 1
            found["other errors"] += "Too many open files" not in str(error)
            continue
        model.close()
        try:
            with Runner(path, "buffered", TOKENS, ROOMY) as runner:
                found["wrong tokens"] += runner.answer() != want
                found["limits that are enough"] += 1
        except (FlashMoEError, OSError) as error:
            found["other errors"] += 1
            print(f"{limit} descriptors: {error!r}")
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    found["descriptors left behind"] += len(os.listdir("/proc/self/fd")) != now


def disks_that_go(times: int, found: Counter[str]) -> None:
    """The disk of a model is unmounted, or gives errors from some moment of an answer on."""
    draw = random.Random(12)
    path = flashmoe.demo_model_path()
    with Runner(path, "buffered", TOKENS, memory=ROOMY) as runner:
        start = time.monotonic()
        want = runner.answer()
        usual = time.monotonic() - start

    def busy(there: Path, image: Path) -> None:
        told = subprocess.run(["umount", there], capture_output=True, text=True)
        found["unmounted while in use"] += "busy" not in told.stderr

    def lazily(there: Path, image: Path) -> None:
        disks.call("umount", "-l", there)

    def cut_below(there: Path, image: Path) -> None:
        os.truncate(image, image.stat().st_size // 8)
        for file in there.glob("model/experts-*"):  # the page cache needs no disk
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    changes = {busy: (), lazily: (), cut_below: (ExpertReadError, IntegrityError)}
    for (change, allowed), read in product(changes.items(), ("buffered", "direct")):
        for number in range(times):
            with tempfile.TemporaryDirectory() as folder:
                there = Path(folder) / "disk"
                with disks.ext4_in_a_file(there) as image:
                    copy = shutil.copytree(path, there / "model")
                    os.sync()
                    with Runner(copy, read, TOKENS, 0 if number % 2 else ROOMY) as runner:
                        changer = threading.Timer(
                            draw.uniform(0, usual / 2),
                            lambda: change(there, image),  # noqa: B023
                        )
                        changer.start()
                        judge(runner, want, allowed, f"{change.__name__}, {read}", found)
                        changer.join()
                        judge(runner, want, allowed, f"{change.__name__}, {read}", found)


BAD = (
    "unmounted while in use",
    "wrong tokens",
    "other errors",
    "descriptors left behind",
)


def main() -> int:
    """Print what was found; 1 if there is something bad."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=100, help="for each kind of change")
    parser.add_argument("--disks", action="store_true", help="and disks that go; needs root")
    a = parser.parse_args()
    found: Counter[str] = Counter()
    if a.disks:
        disks_that_go(a.times, found)
    changing(a.times, found)
    few_descriptors(found)
    for what in sorted({*found, *BAD}):
        print(f"{found[what]:8} {what}")
    return any(found[what] for what in BAD)


if __name__ == "__main__":
    sys.exit(main())
