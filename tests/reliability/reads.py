"""Reads of experts go wrong in every way: the right tokens or one exception, then all is well.

    python tests/reliability/reads.py                     every read of 16 tokens; 600 bits on disk
    python tests/reliability/reads.py --step 29 --flips 8 --slow 0    what the tests do

Linux with glibc. Ends with 1 if a token was wrong, a fault unnoticed, or anything left behind.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import flashmoe
from flashmoe import BudgetError, ExpertReadError, Generator, IntegrityError, Model, Sampler
from flashmoe.manifest import Manifest
from reliability.shim import ALWAYS, Calls, How, Shim, held, run_under

HARMLESS = (How.INTERRUPTED, How.SHORT)
REPORTED = (How.IO_ERROR, How.END_OF_FILE, How.NO_MEMORY)


ROOMY = 64_000_000
"""Memory in which every expert is read once and stays."""


class Runner:
    """A model that answers one question.

    Args:
        path: The model.
        read: Way of reading.
        tokens: Length of the answer.
        memory: 0 for the least it runs in, so that experts are read all the time.
        **options: More of the model's.
    """

    def __init__(self, path: Path, read: str, tokens: int, memory: int = 0, **options: Any) -> None:
        options |= {"read": read, "threads": 1, "guess": False}
        self.model = Model(path, memory=memory, **options) if memory else smallest(path, options)
        self.tokens = tokens
        self.generator = Generator(self.model, Sampler(temperature=0))
        self.prompt = self.model.tokenizer.encode("The experts are read when")

    def answer(self) -> list[int]:
        return list(self.generator.generate(self.prompt, max_tokens=self.tokens).token_ids)

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.generator.close()
        self.model.close()


def smallest(path: Path, options: dict[str, Any]) -> Model:
    for budget in range(3_000_000, 40_000_000, 200_000):
        try:
            return Model(path, memory=budget, **options)
        except BudgetError:
            continue
    raise SystemExit("the model fits no budget that was tried")


def sweep(path: Path, read: str, tokens: int, step: int, found: Counter[str]) -> None:
    """Every ``step``-th read fails, once and from then on, in every way that a system tells of."""
    shim = Shim()
    with Runner(path, read, tokens) as runner:
        want = runner.answer()
        shim.heal(Calls.READS)
        if runner.answer() != want:
            raise SystemExit("two undisturbed runs differ")
        reads = shim.heal(Calls.READS)
        found[f"{read}: reads of a run"] = reads
        before = held()
        for how in (*REPORTED, *HARMLESS):
            for times in (1, ALWAYS):
                # no read ends if all are interrupted for ever, or by 7 bytes at a time
                most = 50 if how in HARMLESS and times > 1 else times
                for at in range(how % step, reads, step):
                    shim.fail(Calls.READS, how, at, most)
                    judge(runner, shim, how, want, found)
                    shim.heal(Calls.READS)
                    found["wrong afterwards"] += runner.answer() != want
        found["descriptors or threads left behind"] += held() != before


def judge(runner: Runner, shim: Shim, how: How, want: list[int], found: Counter[str]) -> None:
    """Count what a fault did. One that nobody needed, a read ahead of its use, may do nothing."""
    shim.fired(Calls.READS)
    try:
        got = runner.answer()
    except ExpertReadError as error:
        told = all(word in str(error) for word in ("layer", "expert", ".bin", "at offset", "got"))
        outcome = "refused"
        found["refused without need"] += how in HARMLESS
        found["unclear messages"] += not told
    else:
        outcome = "identical" if got == want else "wrong tokens"
    fired = shim.fired(Calls.READS)  # once more or less: reads ahead vary with time
    if fired:
        found[outcome] += 1
        found["runs with a fault"] += 1
        found["read ahead in vain or again"] += how in REPORTED and outcome == "identical"
    else:
        found["fewer reads than expected"] += 1
        found["wrong afterwards"] += outcome != "identical"
    found["faults"] += fired


def slow(path: Path, read: str, tokens: int, times: int, found: Counter[str]) -> None:
    """A read takes two seconds: the same tokens, and other threads go on meanwhile."""
    shim, gaps, over = Shim(), [0.0], threading.Event()

    def tick() -> None:
        before = time.monotonic()
        while not over.wait(0.005):
            now = time.monotonic()
            gaps.append(now - before)
            before = now

    with Runner(path, read, tokens) as runner:
        want = runner.answer()
        shim.heal(Calls.READS)
        runner.answer()
        reads = shim.heal(Calls.READS)
        ticking = threading.Thread(target=tick)
        ticking.start()
        for number in range(times):
            shim.fail(Calls.READS, How.SLOW, reads * (number + 1) // (times + 1))
            found["slow reads"] += 1
            found["wrong tokens"] += runner.answer() != want
        shim.heal(Calls.READS)
        over.set()
        ticking.join()
    found["longest that another thread stood still, ms"] = int(max(gaps) * 1e3)


def given_up(path: Path, read: str, tokens: int, times: int, found: Counter[str]) -> None:
    """A read takes two seconds, and half a second or Ctrl-C ends the waiting: then all is well."""
    shim, latest = Shim(), Counter[str]()
    with Runner(path, read, tokens, read_timeout=0.5) as runner:
        want = runner.answer()
        shim.heal(Calls.READS)
        runner.answer()
        reads = shim.heal(Calls.READS)
        for number in range(2 * times):
            at = reads * (number // 2 + 1) // (times + 1)
            by_hand = number % 2 == 1
            what = "Ctrl-C" if by_hand else "time limit"
            shim.fail(Calls.READS, How.SLOW, at)
            timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
            started = time.monotonic()
            if by_hand:
                timer.start()
            try:
                found["wrong tokens"] += runner.answer() != want  # a read that nobody waits for
            except ExpertReadError as error:
                found["unclear messages"] += "no answer in 0.5 s" not in str(error) or by_hand
                found[f"given up: {what}"] += 1
            except KeyboardInterrupt:
                found[f"given up: {what}"] += 1
            late = time.monotonic() - started - (0.3 if by_hand else 0.5)
            timer.cancel()
            latest[what] = max(latest[what], int(1e3 * late))
            time.sleep(2)  # the disk answers now
            shim.heal(Calls.READS)
            found["wrong afterwards"] += runner.answer() != want
    for what, ms in latest.items():
        found[f"latest after the {what}, ms"] = ms


def flips_on_the_way(path: Path, read: str, tokens: int, step: int, found: Counter[str]) -> None:
    """A bit changes between disk and memory, at each first read of an expert."""
    shim = Shim()
    with Runner(path, read, tokens, memory=ROOMY) as runner:
        shim.heal(Calls.READS)
        want = runner.answer()
        touched = shim.heal(Calls.READS)
    for at in range(0, touched, step):
        with Runner(path, read, tokens, memory=ROOMY) as runner:
            shim.fail(Calls.READS, How.BIT_FLIP, at)
            look_for_flip(runner, "", found)
            shim.heal(Calls.READS)
            found["wrong afterwards"] += runner.answer() != want


def flips_at_any_read(path: Path, read: str, tokens: int, step: int, found: Counter[str]) -> None:
    """Each read is checked: a bit that changes at a later one is noticed, or nobody needed it."""
    shim = Shim()
    with Runner(path, read, tokens, verify="always") as runner:
        want = runner.answer()
        shim.heal(Calls.READS)
        runner.answer()
        reads = shim.heal(Calls.READS)
        for at in range(0, reads, step):
            shim.fail(Calls.READS, How.BIT_FLIP, at)
            shim.fired(Calls.READS)
            try:
                got = runner.answer()
            except IntegrityError as error:
                found["bits noticed when an expert is read again"] += "checksum" in str(error)
            else:
                found["wrong tokens"] += got != want
                found["bits in what nobody needed"] += shim.fired(Calls.READS) > 0
            shim.heal(Calls.READS)
            found["wrong afterwards"] += runner.answer() != want


def flips_on_disk(path: Path, read: str, tokens: int, flips: int, found: Counter[str]) -> None:
    """Bits of records that the answer needs are wrong on the disk."""
    draw = random.Random(5)
    manifest = Manifest.parse((path / "manifest.fm").read_text())
    with Runner(path, read, tokens, memory=ROOMY) as runner:
        want = runner.answer()
        used = [
            (int(a), int(b)) for a, b in zip(*runner.model.expert_uses().nonzero(), strict=True)
        ]
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copytree(path, Path(folder) / "model")
        for _ in range(flips):
            layer, expert = draw.choice(used)
            record = manifest.experts_of(layer).extents[0]
            file = copy / manifest.files[record.file].path
            at = record.base + expert * record.stride
            at, bit = at + draw.randrange(manifest.expert_bytes(layer)), 1 << draw.randrange(8)
            flip(file, at, bit)
            with Runner(copy, read, tokens, memory=ROOMY) as runner:
                look_for_flip(runner, f"layer {layer} expert {expert} ", found)
                flip(file, at, bit)
                found["wrong afterwards"] += runner.answer() != want


def flip(file: Path, at: int, bit: int) -> None:
    """Change one bit of a file, in place."""
    with file.open("r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ bit]))


def look_for_flip(runner: Runner, where: str, found: Counter[str]) -> None:
    """Count whether the answer was refused, and for that reason."""
    found["bits flipped"] += 1
    try:
        runner.answer()
    except IntegrityError as error:
        found["bits unnoticed"] += where not in str(error) or "checksum" not in str(error)
    else:
        found["bits unnoticed"] += 1


def campaign(reads: list[str], tokens: int, step: int, flips: int, slows: int) -> Counter[str]:
    """All of it; under the library already.

    Args:
        reads: Ways of reading.
        tokens: Length of the answer.
        step: 1 for every read.
        flips: Bits on the disk.
        slows: Reads that take two seconds.
    """
    path, found = flashmoe.demo_model_path(), Counter[str]()
    for read in reads:
        sweep(path, read, tokens, step, found)
        flips_on_the_way(path, read, tokens, step, found)
        flips_at_any_read(path, read, tokens, step, found)
    flips_on_disk(path, reads[0], tokens, flips, found)
    if slows:
        slow(path, reads[0], tokens, slows, found)
        given_up(path, reads[0], tokens, slows, found)
    return found


BAD = (
    "wrong tokens",
    "wrong afterwards",
    "refused without need",
    "unclear messages",
    "bits unnoticed",
    "descriptors or threads left behind",
)


def main() -> int:
    """Print what was found; 1 if there is something bad."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--read", nargs="+", default=["buffered"], help="ways of reading")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--step", type=int, default=1, help="try every so many-th read")
    parser.add_argument("--flips", type=int, default=600, help="bits on disk")
    parser.add_argument("--slow", type=int, default=10, help="reads that take two seconds")
    parser.add_argument("--under-shim", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if not a.under_shim:
        return run_under(__file__)
    found = campaign(a.read, a.tokens, a.step, a.flips, a.slow)
    for what in sorted({*found, *BAD}):
        print(f"{found[what]:8} {what}")
    return any(found[what] for what in BAD)


if __name__ == "__main__":
    sys.exit(main())
