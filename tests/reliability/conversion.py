"""Conversions that are killed, fail, or lose their power: always the same bytes in the end.

    python tests/reliability/conversion.py        100 kills, every change of a file fails in four
                                                  ways, limits on the size of files, 50 races,
                                                  1,000,000 losses of power
    python tests/reliability/conversion.py --kills 0 --losses 0 --races 3 --step 9
                                                  what the tests do

Linux with glibc. Works in memory (``/dev/shm``) unless ``--folder`` says otherwise. Ends with 1 if
a manifest was there too early, a result had other bytes, a missing sync was not noticed, or an
error did not say what failed and where.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import test_convert_faults as faults
import tiny
from flashmoe import convert
from flashmoe.errors import ConversionError, FlashMoEError
from power import power_losses
from reliability import disks
from reliability.shim import Calls, How, Shim, run_under

BITS = 4
MUTANTS = (("sync",), ("sync_dir",), ("sync", "sync_dir"))
PERCENTS = (*range(10, 95, 5), 97, 98, 99)
REASONS = {
    How.NO_SPACE: "the disk is full",
    How.IO_ERROR: "Input/output error",
    How.QUOTA: "quota of this disk is full",
    How.READ_ONLY: "Read-only file system",
}
"""What an error must say, for each way in which a change fails."""
TOLD, UNCLEAR = 3, 4


class Campaign:
    """A small source, and what its conversion must give."""

    def __init__(self, folder: Path) -> None:
        self.source, self.out = folder / "source", folder / "out"
        tiny.write(self.source, "qwen3_moe", seed=2, dtype="bf16", num_hidden_layers=2,
                   num_experts=4, num_experts_per_tok=2, hidden_size=64, vocab_size=40,
                   head_dim=16)  # fmt: skip
        golden = convert(self.source, folder / "golden", bits=BITS, progress=False)
        self.golden = {p.name: p.read_bytes() for p in golden.iterdir()}
        self.sums = faults.digest(golden)
        self.folder = folder
        self.found: Counter[str] = Counter()

    def convert(self, workers: int = 1) -> None:
        faults.run(self.source, self.out, bits=BITS, workers=workers)

    def is_false(self, state: dict[str, bytes]) -> bool:
        """Whether there is a manifest, and something that it speaks of is not as it must be."""
        if "manifest.fm" not in state:
            return False
        return any(state.get(name) != data for name, data in self.golden.items())

    def look(self) -> None:
        """Count a manifest that is there too early."""
        if self.out.exists():
            there = {p.name: p.read_bytes() for p in self.out.iterdir()}
            self.found["false manifests"] += self.is_false(there)

    def make_good(self) -> None:
        """Run the same command again; then all is as if nothing had happened."""
        try:
            self.convert()
        except ConversionError as error:
            if "holds a finished model already" not in str(error):
                raise
        self.found["other bytes"] += faults.digest(self.out) != self.sums
        shutil.rmtree(self.out)


def kills(campaign: Campaign, times: int) -> None:
    """Killed at random moments, and begun again, until it has ended."""
    draw = random.Random(7)
    begin = time.monotonic()
    os.waitpid(faults.in_child(lambda: campaign.convert(2)), 0)
    usual = time.monotonic() - begin
    shutil.rmtree(campaign.out)
    while campaign.found["kills"] < times:
        child = faults.in_child(lambda: campaign.convert(2))
        time.sleep(draw.uniform(0, usual))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        campaign.found["kills"] += os.WIFSIGNALED(status)
        campaign.look()
        if not os.WIFSIGNALED(status):
            campaign.found["conversions ended between kills"] += 1
            campaign.make_good()
    if campaign.out.exists():
        campaign.make_good()


def changes(campaign: Campaign, how: How, step: int) -> None:
    """Every ``step``-th call that changes a file fails, or is the last one."""
    shim = Shim()
    shim.heal(Calls.CHANGES)
    campaign.convert()
    total = shim.heal(Calls.CHANGES)
    shutil.rmtree(campaign.out)
    campaign.found["changes of a conversion"] = total

    def fail_at(at: int) -> None:
        shim.fail(Calls.CHANGES, how, at)
        campaign.convert()

    for at in range(how % step, total, step):
        campaign.found[f"changes that failed: {how.name}"] += 1
        if how is How.KILLED:
            os.waitpid(faults.in_child(lambda: fail_at(at)), 0)  # noqa: B023
        elif not ended(campaign, lambda: fail_at(at), REASONS[how]):  # noqa: B023
            campaign.found["failures that did no harm"] += 1
        campaign.look()
        campaign.make_good()


def losses(campaign: Campaign, states: int, resumed: int) -> None:
    """Power is lost after every change, each time with other things on their way to the disk."""
    log = faults.record(campaign.source, campaign.folder)
    shutil.rmtree(campaign.folder / "recorded")
    each = -(-states // len(log))
    every = max(1, states // max(resumed, 1))
    begin = time.monotonic()
    for number, state in enumerate(power_losses(log, each)):
        campaign.found["losses of power"] += 1
        campaign.found["false manifests"] += campaign.is_false(state)
        if number % every == 0:
            campaign.found["losses of power made good"] += 1
            campaign.found["other bytes"] += not recovers(campaign, state)
    campaign.found["losses of power a second"] = int(
        campaign.found["losses of power"] / (time.monotonic() - begin)
    )


def recovers(campaign: Campaign, state: dict[str, bytes]) -> bool:
    """Whether running the command again gives the right bytes from there."""
    campaign.out.mkdir()
    for name, data in state.items():
        (campaign.out / name).write_bytes(data)
    try:
        faults.resume(campaign.source, campaign.out)
        return faults.digest(campaign.out) == campaign.sums
    except (AssertionError, FlashMoEError):
        return False
    finally:
        shutil.rmtree(campaign.out)


def mutants(campaign: Campaign) -> None:
    """A converter that leaves out a sync must be found out."""
    for without in MUTANTS:
        log = faults.record(campaign.source, campaign.folder, without)
        shutil.rmtree(campaign.folder / "recorded")
        wrong = sum(not recovers(campaign, state) for state in power_losses(log, 1))
        campaign.found[f"failures without {' and '.join(without)}"] = wrong
        campaign.found["missing syncs unnoticed"] += wrong == 0


def races(campaign: Campaign, times: int) -> None:
    """Two conversions into one place at once: one does it, the other is told so."""
    for _ in range(times):
        children = [faults.in_child(campaign.convert) for _ in range(2)]
        ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        campaign.found["races"] += 1
        campaign.found["races that not one won"] += ended.count(0) != 1
        campaign.look()
        campaign.make_good()


def full_disks(campaign: Campaign) -> None:
    """Disks of 20 sizes that are too small, told before and found out on the way; then a larger."""
    need = sum(len(data) for data in campaign.golden.values())
    there = campaign.folder / "disk"
    campaign.out, usual = there / "out", campaign.out
    for percent in PERCENTS:
        for disk, known in product((disks.tmpfs, disks.ext4), (True, False)):
            with disk(there, need * percent // 100) as enlarge:
                campaign.found[f"full disks: {disk.__name__}"] += 1
                campaign.found["full disks unnoticed"] += not refused(campaign, known)
                campaign.look()
                enlarge()
                campaign.make_good()
    campaign.out = usual


def refused(campaign: Campaign, known: bool) -> bool:
    """Whether a conversion says that there is no room; ``known``: before it has begun."""
    room = SimpleNamespace(free=1 << 40)
    try:
        with nullcontext() if known else patch("shutil.disk_usage", lambda _: room):
            campaign.convert()
    except (ConversionError, OSError) as error:
        return ("needs" if known else "disk is full") in str(error)
    return False


def limited_files(campaign: Campaign) -> None:
    """Files may only become so large, which the system also tells by a signal that kills."""
    largest = max(len(data) for data in campaign.golden.values())

    def limited(limit: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        campaign.convert()

    for percent in (0, *PERCENTS):
        limit = largest * percent // 100
        campaign.found["limits on files"] += 1
        told = ended(campaign, lambda: limited(limit), "File too large")  # noqa: B023
        campaign.found["limits unnoticed"] += not told
        campaign.look()
        campaign.make_good()


def ended(campaign: Campaign, work: Callable[[], None], reason: str) -> bool:
    """Whether a process failed at its work; then by an error that names reason and place."""

    def told() -> None:
        try:
            work()
        except (ConversionError, OSError) as error:
            if reason in str(error) and str(campaign.out.parent) in str(error):
                os._exit(TOLD)
            print(f"not {reason!r} with a place: {error}", file=sys.stderr, flush=True)
            os._exit(UNCLEAR)

    status = os.waitpid(faults.in_child(told), 0)[1]
    campaign.found["ends by a signal"] += os.WIFSIGNALED(status)
    code = os.waitstatus_to_exitcode(status)
    campaign.found["unclear errors"] += code not in (0, TOLD)
    return code != 0


BAD = (
    "false manifests",
    "other bytes",
    "ends by a signal",
    "missing syncs unnoticed",
    "full disks unnoticed",
    "limits unnoticed",
    "unclear errors",
    "races that not one won",
)


def main() -> int:
    """Print what was found; 1 if there is something bad."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="0 to leave out")
    parser.add_argument("--step", type=int, default=1, help="try every so many-th change")
    parser.add_argument("--losses", type=float, default=1e6, help="of power; 0 to leave out")
    parser.add_argument("--resumed", type=int, default=5000, help="of these, run to the end")
    parser.add_argument("--races", type=int, default=50, help="of two conversions")
    parser.add_argument(
        "--full-disk", action="store_true", help="mount small disks of two kinds; needs root"
    )
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument("--under-shim", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if not a.under_shim:
        return run_under(__file__)
    memory = Path("/dev/shm")
    where = a.folder or (memory if memory.is_dir() else None)
    with tempfile.TemporaryDirectory(dir=where) as folder:
        campaign = Campaign(Path(folder))
        if a.kills:
            kills(campaign, a.kills)
        for how in (How.KILLED, *REASONS):
            changes(campaign, how, a.step)
        limited_files(campaign)
        races(campaign, a.races)
        if a.full_disk:
            full_disks(campaign)
        if a.losses:
            losses(campaign, int(a.losses), a.resumed)
            mutants(campaign)
    for what in sorted({*campaign.found, *BAD}):
        print(f"{campaign.found[what]:8} {what}")
    return any(campaign.found[what] for what in BAD)


if __name__ == "__main__":
    sys.exit(main())
