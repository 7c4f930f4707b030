"""Conversion under fire: killed, out of disk, without power, run twice; never a wrong model."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import signal
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tiny
from flashmoe import errors
from flashmoe.checkpoint import open_checkpoint
from flashmoe.conversion import convert
from flashmoe.conversion.journal import (
    JOURNAL_NAME,
    LOCK_NAME,
    Journal,
    locked,
    read_journal,
)
from flashmoe.conversion.plan import Formats
from flashmoe.conversion.run import Conversion, Options
from flashmoe.conversion.sources import LocalSource
from flashmoe.conversion.write import Fs
from power import Recorder, power_losses

Files = dict[str, str]


@pytest.fixture(scope="module")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of four experts."""
    path = tmp_path_factory.mktemp("source") / "model"
    tiny.write(path, "qwen3_moe", seed=2, dtype="bf16", num_hidden_layers=2, num_experts=4,
               num_experts_per_tok=2, hidden_size=64, vocab_size=40, head_dim=16)  # fmt: skip
    return path


@pytest.fixture(scope="module")
def golden(src: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """What an undisturbed conversion makes."""
    return digest(convert(src, tmp_path_factory.mktemp("golden") / "out", bits=4, progress=False))


def digest(path: Path) -> Files:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.iterdir()}


def run(src: Path, dst: Path, fs: Fs | None = None, bits: int | None = 4, workers: int = 1) -> None:
    """Convert through an ``Fs`` of the test's."""
    source = LocalSource(open_checkpoint(src))
    try:
        options = Options(Formats(bits, 64), False, workers)
        Conversion(source, dst, options, fs or Fs()).run()
    finally:
        source.close()


class HastyFs(Fs):
    """Waits for no disk; the tests below are about order, not about this machine's disk."""

    def sync(self, fd: int) -> None:
        """Nothing."""


def resume(src: Path, dst: Path, fs: Fs | None = None) -> None:
    """Run to the end; if that was reached already, be told so."""
    if (dst / "manifest.fm").exists() and not (dst / JOURNAL_NAME).exists():
        with pytest.raises(errors.ConversionError, match="holds a finished model already"):
            run(src, dst, fs)
    else:
        run(src, dst, fs or HastyFs())


def no_false_model(dst: Path, golden: Files) -> None:
    """If there is a manifest, everything it speaks of is there and right."""
    if (dst / "manifest.fm").exists():
        there = digest(dst)
        assert {name: there.get(name) for name in golden} == golden


# --------------------------------------------------------------------------- a fault at every point


class Crash(BaseException):
    """The process is gone: nothing of it runs any more."""


class FaultyFs(HastyFs):
    """Does something else at the Nth change.

    Args:
        at: Which change, from 0; -1 for none.
        fault: Called with the change's name, before it or after half of it.
        kinds: The changes that count.
    """

    KINDS = ("make_dir", "create", "allocate", "write", "sync", "rename", "remove", "sync_dir")

    def __init__(
        self, at: int, fault: Callable[[str], None], kinds: tuple[str, ...] = KINDS
    ) -> None:
        self.at, self.fault, self.kinds, self.count = at, fault, kinds, 0

    def _due(self, kind: str) -> bool:
        if kind not in self.kinds:
            return False
        self.count += 1
        return self.count - 1 == self.at

    def make_dir(self, path: Path) -> None:
        if self._due("make_dir"):
            self.fault("make_dir")
        super().make_dir(path)

    def create(self, path: Path) -> int:
        if self._due("create"):
            self.fault("create")
        return super().create(path)

    def allocate(self, fd: int, nbytes: int) -> None:
        if self._due("allocate"):
            os.ftruncate(fd, max(nbytes // 2, os.fstat(fd).st_size))
            self.fault("allocate")
        super().allocate(fd, nbytes)

    def write(self, fd: int, data: Any, at: int) -> None:
        if self._due("write"):
            super().write(fd, bytes(memoryview(data).cast("B"))[: memoryview(data).nbytes // 2], at)
            self.fault("write")
        super().write(fd, data, at)

    def sync(self, fd: int) -> None:
        if self._due("sync"):
            self.fault("sync")
        super().sync(fd)

    def rename(self, old: Path, new: Path) -> None:
        if self._due("rename"):
            self.fault("rename")
        super().rename(old, new)
        if self._due("rename"):
            self.fault("rename")

    def remove(self, path: Path) -> None:
        if self._due("remove"):
            self.fault("remove")
        super().remove(path)

    def sync_dir(self, path: Path) -> None:
        if self._due("sync_dir"):
            self.fault("sync_dir")
        super().sync_dir(path)


def crash(_: str) -> None:
    raise Crash


def points(src: Path, dst: Path, kinds: tuple[str, ...] = FaultyFs.KINDS) -> int:
    """How many changes an undisturbed conversion makes."""
    fs = FaultyFs(-1, crash, kinds)
    run(src, dst, fs)
    return fs.count


def test_a_crash_at_every_point_is_made_good(src: Path, golden: Files, tmp_path: Path) -> None:
    total = points(src, tmp_path / "count")
    assert total > 150
    for at in range(total):
        dst = tmp_path / "out"
        with pytest.raises(Crash):
            run(src, dst, FaultyFs(at, crash))
        if dst.exists():
            no_false_model(dst, golden)
        resume(src, dst)
        assert digest(dst) == golden, f"crash at change {at}"
        shutil.rmtree(dst)


def test_crashes_on_the_way_to_making_good(src: Path, golden: Files, tmp_path: Path) -> None:
    luck = random.Random(1)
    for _ in range(25):
        dst = tmp_path / "out"
        crashes = 0
        while True:
            try:
                resume(src, dst, FaultyFs(luck.randrange(90), crash))
            except Crash:
                crashes += 1
                no_false_model(dst, golden) if dst.exists() else None
                continue
            break
        assert crashes
        assert digest(dst) == golden
        shutil.rmtree(dst)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_failing_disk_at_every_point(code: int, src: Path, golden: Files, tmp_path: Path) -> None:
    kinds = ("allocate", "write") if code != errno.EIO else ("sync", "sync_dir", "rename", "create")

    def fail(_: str) -> None:
        raise OSError(code, os.strerror(code))

    step = 9 if code == errno.EDQUOT else 1
    for at in range(0, points(src, tmp_path / "count", kinds), step):
        dst = tmp_path / "out"
        if code == errno.EIO:
            with pytest.raises(OSError, match="Input/output error"):
                run(src, dst, FaultyFs(at, fail, kinds))
        else:
            with pytest.raises(
                errors.ConversionError, match=r"disk is full; .* same command again"
            ):
                run(src, dst, FaultyFs(at, fail, kinds))
        no_false_model(dst, golden)
        resume(src, dst)
        assert digest(dst) == golden, f"{errno.errorcode[code]} at change {at}"
        shutil.rmtree(dst)


def test_a_disk_that_is_really_full(src: Path, golden: Files, tmp_path: Path) -> None:
    """A limit on the size of files stands in for it; the shell's ``ulimit -f`` does the same."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 4096, 20_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(OSError, match=r"File too large: '.*/out/\."):
                run(src, tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not (tmp_path / "out" / "manifest.fm").exists()
    run(src, tmp_path / "out")
    assert digest(tmp_path / "out") == golden


# ---------------------------------------------------------------------------------- killed for real


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process; its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of threads
        pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return pid


def test_killed_at_random_times(src: Path, golden: Files, tmp_path: Path) -> None:
    luck, dst = random.Random(7), tmp_path / "out"
    begin = time.monotonic()
    os.waitpid(in_child(lambda: run(src, tmp_path / "timed", workers=2)), 0)
    usual = time.monotonic() - begin
    kills = rounds = 0
    while kills < 60:
        rounds += 1
        pid = in_child(lambda: run(src, dst, workers=2))
        time.sleep(luck.uniform(0, usual))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        kills += os.WIFSIGNALED(status)
        if dst.exists():
            no_false_model(dst, golden)
        if rounds % 4 == 0 or not os.WIFSIGNALED(status):
            resume(src, dst)
            assert digest(dst) == golden
            shutil.rmtree(dst)


def test_little_work_is_lost(src: Path, tmp_path: Path) -> None:
    """After a crash, what the journal tells of is not done again."""
    with pytest.raises(Crash):
        run(src, tmp_path / "out", FaultyFs(3, crash, ("rename",)))  # the second file has its name
    again = points(src, tmp_path / "out", ("write",))
    whole = points(src, tmp_path / "whole", ("write",))
    assert again < whole / 2


# ----------------------------------------------------------------------------------------- no power


def failures(src: Path, golden: Files, tmp: Path, log: list[tuple[Any, ...]], each: int) -> int:
    """How many losses of power end in a wrong model, or in one that cannot be made good."""
    wrong = 0
    for state in power_losses(log, each):
        dst = tmp / "lost"
        dst.mkdir()
        for name, data in state.items():
            (dst / name).write_bytes(data)
        try:
            no_false_model(dst, golden)
            resume(src, dst)
            assert digest(dst) == golden
        except (AssertionError, errors.FlashMoEError):
            wrong += 1
        shutil.rmtree(dst)
    return wrong


def record(src: Path, tmp: Path, without: tuple[str, ...] = ()) -> list[tuple[Any, ...]]:
    recorder = Recorder(without)
    run(src, tmp / "recorded", recorder)
    return recorder.log


def test_losing_power_at_every_point(src: Path, golden: Files, tmp_path: Path) -> None:
    log = record(src, tmp_path)
    assert sum(change[0] == "sync" for change in log) > 5
    assert failures(src, golden, tmp_path, log, each=3) == 0


@pytest.mark.parametrize("without", [("sync",), ("sync_dir",), ("sync", "sync_dir")])
def test_the_simulator_finds_a_missing_sync(
    without: tuple[str, ...], src: Path, golden: Files, tmp_path: Path
) -> None:
    assert failures(src, golden, tmp_path, record(src, tmp_path, without), each=1) > 0


# ----------------------------------------------------------------------------- two at the same time


class WaitingFs(Fs):
    """Says that it is at work, and waits to be killed."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def rename(self, old: Path, new: Path) -> None:
        os.write(self.pipe, b"!")
        time.sleep(60)


def test_a_second_converter_is_turned_away(src: Path, golden: Files, tmp_path: Path) -> None:
    dst = tmp_path / "out"
    ready, tell = os.pipe()
    pid = in_child(lambda: run(src, dst, WaitingFs(tell)))
    try:
        assert os.read(ready, 1) == b"!"
        before = digest(dst)
        with pytest.raises(errors.LockedError, match=f"process {pid} is converting into .*out"):
            convert(src, dst, bits=4, progress=False)
        assert digest(dst) == before
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(tell)
    assert (dst / ".convert.lock").exists()  # a dead process's lock does not count
    run(src, dst)
    assert digest(dst) == golden


def test_a_lock_that_goes_while_we_reach_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner finished between our opening and our locking it: what we hold is nothing."""
    import fcntl

    flock, calls = fcntl.flock, []

    def late(fd: int, how: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            (tmp_path / LOCK_NAME).unlink()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path) as lock:
        assert lock.read_text() == f"{os.getpid()}\n"
        with pytest.raises(errors.LockedError), locked(tmp_path):
            pytest.fail("two owners")
    assert len(calls) == 3


def test_races_of_two_converters(src: Path, golden: Files, tmp_path: Path) -> None:
    dst = tmp_path / "out"
    for _ in range(15):
        pids = [in_child(lambda: run(src, dst)) for _ in range(3)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        assert codes.count(0) == 1  # the others are told: locked, or finished already
        assert digest(dst) == golden
        shutil.rmtree(dst)


# ---------------------------------------------------------------------------- a source that changes


def half_done(src: Path, dst: Path) -> None:
    with pytest.raises(Crash):
        run(src, dst, FaultyFs(60, crash))


def test_a_source_that_was_replaced_between_runs(src: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(src, tmp_path / "src")
    half_done(mine, tmp_path / "out")
    other = bytearray((mine / "model.safetensors").read_bytes())
    other[-2:] = struct.pack("<H", 0x3F80)
    (mine / "model.safetensors").write_bytes(other)
    with pytest.raises(errors.ConversionError, match="unfinished conversion of something else"):
        run(mine, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.fm").exists()


def test_other_options_for_an_unfinished_one(src: Path, golden: Files, tmp_path: Path) -> None:
    half_done(src, tmp_path / "out")
    with pytest.raises(errors.ConversionError, match="bits was 4, is 8"):
        run(src, tmp_path / "out", bits=8)
    run(src, tmp_path / "out")
    assert digest(tmp_path / "out") == golden


class TruncatingFs(Fs):
    """Cuts the source short in the middle of the work."""

    def __init__(self, file: Path) -> None:
        self.file, self.writes = file, 0

    def write(self, fd: int, data: Any, at: int) -> None:
        super().write(fd, data, at)
        self.writes += 1
        if self.writes == 5:
            os.truncate(self.file, 5000)


def test_a_source_cut_short_while_it_is_read(src: Path, golden: Files, tmp_path: Path) -> None:
    mine = shutil.copytree(src, tmp_path / "src")
    whole = (mine / "model.safetensors").read_bytes()
    with pytest.raises(errors.ReadError, match=r"model\.safetensors: ends at byte 5000, in the"):
        run(mine, tmp_path / "out", TruncatingFs(mine / "model.safetensors"))
    assert not (tmp_path / "out" / "manifest.fm").exists()
    (mine / "model.safetensors").write_bytes(whole)
    shutil.rmtree(tmp_path / "out")
    run(mine, tmp_path / "out")
    assert digest(tmp_path / "out") == golden


class OverwritingFs(Fs):
    """Changes a number of the source in the middle of the work."""

    def __init__(self, file: Path) -> None:
        self.file, self.writes = file, 0

    def write(self, fd: int, data: Any, at: int) -> None:
        super().write(fd, data, at)
        self.writes += 1
        if self.writes == 20:
            with self.file.open("r+b") as file:
                file.seek(-2, os.SEEK_END)
                file.write(b"\x80\x3f")


def test_a_source_changed_while_it_is_read(src: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(src, tmp_path / "src")
    with pytest.raises(errors.ConversionError, match=r"of something else \(contents was"):
        run(mine, tmp_path / "out", OverwritingFs(mine / "model.safetensors"))
    assert not (tmp_path / "out" / "manifest.fm").exists()


def test_a_begun_file_that_was_deleted(src: Path, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run(src, tmp_path / "out", FaultyFs(0, crash, ("rename",)))
    (tmp_path / "out" / ".resident.bin.part").unlink()
    with pytest.raises(errors.ConversionError, match=r"resident\.bin was begun and is gone"):
        run(src, tmp_path / "out")


def test_a_torn_journal_line_does_not_count(src: Path, golden: Files, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        run(src, tmp_path / "out", FaultyFs(3, crash, ("rename",)))
    journal = tmp_path / "out" / JOURNAL_NAME
    whole = journal.read_bytes()
    for keep in range(0, len(whole), 7):
        dst = shutil.copytree(tmp_path / "out", tmp_path / "copy")
        (dst / JOURNAL_NAME).write_bytes(whole[:keep] + b"\0" * 20)
        if whole[:keep].count(b"\n"):
            run(src, dst)
            assert digest(dst) == golden
        shutil.rmtree(dst)


def test_a_changed_journal_line_and_what_follows_do_not_count(tmp_path: Path) -> None:
    journal = Journal(Fs(), tmp_path)
    for n in range(3):
        journal.add({"layer": n, "sum": "0" * 8})
    whole = journal.path.read_bytes()
    for at in range(len(whole)):
        journal.path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        lines, end = read_journal(journal.path)
        before = whole[:at].count(b"\n")
        assert lines == journal.lines[:before]
        assert end == whole[:at].rfind(b"\n") + 1
