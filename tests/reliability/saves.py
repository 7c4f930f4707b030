"""Saving, loading and the core's memory fail at every point: old file or new, one exception.

    python tests/reliability/saves.py                     every point
    python tests/reliability/saves.py --step 9            what the tests do

Linux with glibc. Ends with 1 if a file was torn, an answer wrong, or anything left behind.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from flashmoe import FlashMoEError, Generator, Model, Sampler
from flashmoe.prefix_cache import model_key
from flashmoe.prefix_files import read, write
from reliability.shim import ALWAYS, Calls, How, Shim, held, run_under
from test_convert_faults import in_child

PROMPT = [(7 * i + i // 3) % 97 for i in range(100)]
GREEDY = Sampler(temperature=0)
NUMBERS = {How.NO_SPACE: errno.ENOSPC, How.IO_ERROR: errno.EIO}
TOLD = (How.IO_ERROR, How.END_OF_FILE, How.BIT_FLIP)


class Talk:
    """A conversation that was saved, and how it goes on.

    Args:
        path: The model.
        file: Where it is saved.
    """

    def __init__(self, path: Path, file: Path) -> None:
        self.path, self.file = path, file
        with Model(path, threads=1) as model, Generator(model, GREEDY) as generator:
            self.first = answer(generator, PROMPT)
            generator.save(file)
            self.follow = [*PROMPT, *self.first[:-1], 3, 5, 8]
            self.then = answer(generator, self.follow)
            self.key = model_key(model)


def answer(generator: Generator, prompt: list[int]) -> list[int]:
    return list(generator.generate(prompt, max_tokens=6).token_ids)


def saving(talk: Talk, step: int, found: Counter[str]) -> None:
    """Each change of the disk that a save makes fails, or is the last one."""
    shim, file = Shim(), talk.file
    old = file.read_bytes()
    ids, snapshot = read(file, talk.key)
    ids, other = ids[:-1], snapshot[::-1].copy()
    shim.heal(Calls.CHANGES)
    write(file, talk.key, ids, other)
    total = shim.heal(Calls.CHANGES)
    new = file.read_bytes()
    found["changes of a save"] = total

    def save(how: How, at: int) -> None:
        shim.fail(Calls.CHANGES, how, at)
        write(file, talk.key, ids, other)

    for how in (How.NO_SPACE, How.IO_ERROR, How.KILLED):
        for at in range(0, total, step):
            file.write_bytes(old)
            found[f"saves: {how.name}"] += 1
            if how is How.KILLED:
                os.waitpid(in_child(lambda: save(how, at)), 0)  # noqa: B023
            else:
                try:
                    save(how, at)
                except OSError as error:
                    found["other errors"] += error.errno != NUMBERS[how]
                shim.heal(Calls.CHANGES)
                # what cannot be removed goes the next time a cache looks through its directory
                found["unfinished files left"] += len(list(file.parent.iterdir())) > 1
            now = file.read_bytes()
            found["torn files"] += now not in (old, new)
            found["old files"] += now == old
            found["new files"] += now == new
            for rest in file.parent.glob(".*.tmp"):
                rest.unlink()
    file.write_bytes(old)


def loading(talk: Talk, step: int, found: Counter[str]) -> None:
    """Each read of a load fails; what comes then is as if nothing had been loaded, or all of it."""
    shim = Shim()
    with Model(talk.path, threads=1) as model, Generator(model, GREEDY) as generator:
        generator.load(talk.file)
        shim.heal(Calls.PLAIN_READS)
        generator.load(talk.file)
        total = shim.heal(Calls.PLAIN_READS)
        found["reads of a load"] = total
        for how in (*TOLD, How.INTERRUPTED, How.SHORT):
            for at in range(0, total, step):
                answer(generator, PROMPT[::-1])
                shim.fail(Calls.PLAIN_READS, how, at)
                found["failing loads"] += 1
                try:
                    generator.load(talk.file)
                    loaded = True
                except (FlashMoEError, OSError):
                    loaded = False
                shim.heal(Calls.PLAIN_READS)
                found["loads refused"] += not loaded
                found["faults that were ignored"] += loaded and how in TOLD
                found["refused without need"] += not loaded and how not in TOLD
                found["wrong tokens"] += answer(generator, talk.follow) != talk.then
                found["wrong tokens"] += answer(generator, PROMPT) != talk.first


def memory(talk: Talk, step: int, found: Counter[str]) -> None:
    """Each allocation of the core fails: from opening to closing."""
    shim = Shim()
    shim.allocations_of_the_core()
    live(talk, shim, found)
    shim.heal(Calls.ALLOCATIONS)
    live(talk, shim, found)
    total = shim.heal(Calls.ALLOCATIONS)
    found["allocations of a life"] = total
    before = held()
    for times in (1, ALWAYS):
        for at in range(0, total, step):
            shim.fail(Calls.ALLOCATIONS, How.NO_MEMORY, at, times)
            found["failing allocations"] += 1
            try:
                live(talk, shim, found)
            except MemoryError:
                found["MemoryError"] += 1
            shim.heal(Calls.ALLOCATIONS)
            found["descriptors or threads left behind"] += held() != before
            live(talk, shim, found)


def live(talk: Talk, shim: Shim, found: Counter[str]) -> None:
    """Open, load, go on, save, close. After a failure the same objects give the right answer."""
    with Model(talk.path, threads=2, guess=False) as model, Generator(model, GREEDY) as generator:
        try:
            generator.load(talk.file)
            found["wrong tokens"] += answer(generator, talk.follow) != talk.then
            generator.save(talk.file.with_name("other"))
        except MemoryError:
            shim.heal(Calls.ALLOCATIONS)
            found["wrong tokens"] += answer(generator, PROMPT) != talk.first
            raise


BAD = (
    "torn files",
    "wrong tokens",
    "other errors",
    "faults that were ignored",
    "refused without need",
    "descriptors or threads left behind",
)


def main() -> int:
    """Print what was found; 1 if there is something bad."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--step", type=int, default=1, help="try every so many-th call")
    parser.add_argument("--under-shim", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if not a.under_shim:
        return run_under(__file__)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path, talks = Path(folder) / "model", Path(folder) / "talks"
        tiny.write(path, "qwen3_5_moe", seed=1)
        talks.mkdir()
        talk = Talk(path, talks / "talk")
        saving(talk, 1, found)
        loading(talk, 1, found)
        memory(talk, a.step, found)
    for what in sorted({*found, *BAD}):
        print(f"{found[what]:8} {what}")
    return any(found[what] for what in BAD)


if __name__ == "__main__":
    sys.exit(main())
