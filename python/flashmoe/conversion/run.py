"""A conversion from start to end: room, lock, steps, checksums, and the manifest last."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flashmoe.checkpoint import MANIFEST_NAME
from flashmoe.conversion.bar import byte_bar
from flashmoe.conversion.journal import JOURNAL_NAME, LOCK_NAME, Journal, locked
from flashmoe.conversion.method import Quantiser, nearest
from flashmoe.conversion.plan import Formats, Plan
from flashmoe.conversion.slabs import Slab, convert_slab, slabs
from flashmoe.conversion.sources import Source, Step
from flashmoe.conversion.write import Fs, part_of, read_exactly, write_whole
from flashmoe.errors import ConversionError
from flashmoe.manifest import Manifest

SUMS_NAME = "SHA256SUMS"

_HASH_BYTES = 8 << 20
_SMALL_BYTES = 1 << 20
"""Room for manifest and journal, besides the checksums."""

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota of this disk is full",
}


@dataclass(frozen=True, slots=True)
class Options:
    """How to convert.

    Attributes:
        formats: Which format each matrix gets.
        progress: Whether to show a bar on stderr.
        workers: Threads that convert.
        quantiser: Makes affine rows.
        method: What the result depends on besides the formats, for the journal.
    """

    formats: Formats
    progress: bool
    workers: int
    quantiser: Quantiser = nearest
    method: Mapping[str, Any] = field(default_factory=lambda: {"method": "rtn"})


class Conversion:
    """One conversion into one directory.

    Args:
        source: What to read.
        directory: Where to write; it need not exist.
        options: How.
        fs: Through which the disk is changed.

    Raises:
        ConversionError: The source cannot be converted like this.
    """

    def __init__(self, source: Source, directory: Path, options: Options, fs: Fs) -> None:
        self._source = source
        self._directory = directory
        self._options = options
        self._fs = fs
        self._plan = Plan(source.manifest, options.formats)

    def run(self) -> None:
        """Convert, or go on where an earlier run was cut off.

        Raises:
            ConversionError: No room, a directory in other use, or already finished.
            LockedError: Another process is converting into the directory.
            NumericalError: NaN or infinity in the source.
            ReadError: The source cannot be read whole.
        """
        self._check_room()
        with self._explained():
            self._make_directory()
            with locked(self._directory) as lock:
                self._run_locked(lock)

    def _run_locked(self, lock: Path) -> None:
        journal = Journal(self._fs, self._directory)
        try:
            self._check_unused(journal)
        except ConversionError:
            self._fs.remove(lock)
            raise
        self._begin(journal)
        if not (self._directory / MANIFEST_NAME).exists():
            self._convert(journal)
        self._source.clean()
        self._fs.remove(journal.path)
        self._fs.remove(lock)
        self._fs.sync_dir(self._directory)

    def _begin(self, journal: Journal) -> None:
        """Write down what is converted, or check that it is still the same."""
        formats = self._options.formats
        how = {"bits": formats.bits, "group_size": formats.group, **self._options.method}
        if formats.bits_for:
            how["bits_for"] = dict(sorted(formats.bits_for.items()))
        journal.begin({"flashmoe": 1, **how, **self._source.identity()})

    def _convert(self, journal: Journal) -> None:
        with ExitStack() as stack:
            workers = None
            if self._options.workers > 1:
                workers = stack.enter_context(ThreadPoolExecutor(self._options.workers))
            total = sum(output.source_bytes for output in self._plan.outputs)
            description = f"converting to {self._directory.name}"
            count = stack.enter_context(byte_bar(total, description, self._options.progress))
            for step in self._source.steps(self._plan):
                if step.name in journal.of("step"):
                    self._check_kept(step)
                    count(step.nbytes)
                else:
                    self._source.prepare(step)
                    self._do(step, workers, count)
                    journal.add({"step": step.name})
                    self._source.release(step)
                for output in step.finishes:
                    if self._plan.outputs[output].name not in journal.of("file"):
                        self._finish(output, journal)
        self._begin(journal)  # nobody has touched the source meanwhile
        self._seal(journal)

    # Before the work

    def _check_room(self) -> None:
        wanted = sum(output.nbytes for output in self._plan.outputs)
        wanted += self._source.extra_bytes(self._plan) + _SMALL_BYTES
        for output in self._plan.outputs:
            path = self._directory / output.name
            for there in (path, part_of(path)):
                if there.exists():
                    wanted -= min(there.stat().st_blocks * 512, output.nbytes)
        free = shutil.disk_usage(_existing(self._directory)).free
        if wanted > free:
            raise ConversionError(
                f"{self._directory} needs {wanted:,} bytes of disk and only {free:,} are free; "
                f"free {wanted - free:,} bytes more, or choose another disk"
            )

    def _make_directory(self) -> None:
        if self._directory.is_dir():
            return
        self._directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._fs.make_dir(self._directory)
        except FileExistsError:
            if not self._directory.is_dir():
                raise ConversionError(f"{self._directory} is a file; name a directory") from None
        self._fs.sync_dir(self._directory.parent)

    def _check_unused(self, journal: Journal) -> None:
        """Only an empty directory, or one that we have begun to fill, is ours."""
        if journal.lines:
            return
        if (self._directory / MANIFEST_NAME).exists():
            raise ConversionError(
                f"{self._directory} holds a finished model already; "
                "choose another directory, or delete it to convert again"
            )
        others = {p.name for p in self._directory.iterdir()} - {JOURNAL_NAME, LOCK_NAME}
        if others:
            raise ConversionError(
                f"{self._directory} is not empty: it holds {min(others)}; name a new directory"
            )

    def _check_kept(self, step: Step) -> None:
        """What the journal tells of must still be there."""
        for output in step.outputs:
            path = self._directory / self._plan.outputs[output].name
            if not path.exists() and not part_of(path).exists():
                raise ConversionError(
                    f"{path} was begun and is gone; delete {self._directory} and convert again"
                )

    # The work

    def _do(
        self, step: Step, workers: ThreadPoolExecutor | None, count: Callable[[int], object]
    ) -> None:
        """Write all pieces of a step and make them safe."""
        with ExitStack() as stack:
            fds: dict[int, int] = {}
            new = False
            for output in sorted(step.outputs):
                entry = self._plan.outputs[output]
                part = part_of(self._directory / entry.name)
                new |= not part.exists()
                fds[output] = stack.enter_context(self._fs.opened(part))
                self._fs.allocate(fds[output], entry.nbytes)
            work = ((slab, fds[output]) for output, piece in step.pieces for slab in slabs(piece))
            for nbytes in self._each(work, workers):
                count(nbytes)
            for fd in fds.values():
                self._fs.sync(fd)
        if new:
            self._fs.sync_dir(self._directory)

    def _each(
        self, work: Iterator[tuple[Slab, int]], workers: ThreadPoolExecutor | None
    ) -> Iterator[int]:
        """Convert slabs, a few at a time; yields the bytes of each when it is written."""
        if workers is None:
            for slab, fd in work:
                yield self._write_slab(slab, fd)
            return
        running: deque[Future[int]] = deque()
        try:
            for slab, fd in work:
                running.append(workers.submit(self._write_slab, slab, fd))
                if len(running) > 2 * self._options.workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:  # the files are closed next: nobody may still write to them
            for future in running:
                future.cancel()
            for future in running:
                if not future.cancelled():
                    future.exception()

    def _write_slab(self, slab: Slab, fd: int) -> int:
        names = [file.path for file in self._source.manifest.files]
        for at, data in convert_slab(slab, self._source.read, names, self._options.quantiser):
            self._fs.write(fd, data, at)
        return slab.nbytes

    def _finish(self, output: int, journal: Journal) -> None:
        """Give a complete file its checksums and its name."""
        path = self._directory / self._plan.outputs[output].name
        part = part_of(path)
        there = part if part.exists() else path
        sha256, records = self._checksums(output, there)
        if there is part:
            self._fs.rename(part, path)
            self._fs.sync_dir(self._directory)
        journal.add({"file": path.name, "sha256": sha256, "xxh3": records})

    def _checksums(self, output: int, path: Path) -> tuple[str, list[str]]:
        """SHA-256 of a file as it is on the disk, and XXH3-64 of each of its records."""
        from flashmoe._core import xxh3_64

        entry = self._plan.outputs[output]
        step, image = _HASH_BYTES, 0
        if entry.layer is not None:
            layout = self._plan.manifest.record_layout(entry.layer)
            step, image = layout.record_stride, layout.nbytes
        sha256, records = hashlib.sha256(), []
        buffer = memoryview(bytearray(min(step, entry.nbytes)))
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for at in range(0, entry.nbytes, step):
                data = buffer[: min(step, entry.nbytes - at)]
                read_exactly(fd, data, at, path.name)
                sha256.update(data)
                if image:
                    records.append(f"{xxh3_64(data[:image]):016x}")
        finally:
            os.close(fd)
        return sha256.hexdigest(), records

    # After the work

    def _seal(self, journal: Journal) -> None:
        """Write the small files, and last of all the manifest that makes it a model."""
        text = (self._origin() + self._manifest(journal).to_text()).encode("ascii")
        sums = {name: line["sha256"] for name, line in journal.of("file").items()}
        for name, data in self._source.copies().items():
            write_whole(self._fs, self._directory / name, data)
            sums[name] = hashlib.sha256(data).hexdigest()
        sums[MANIFEST_NAME] = hashlib.sha256(text).hexdigest()
        lines = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
        write_whole(self._fs, self._directory / SUMS_NAME, lines.encode("ascii"))
        self._fs.sync_dir(self._directory)
        write_whole(self._fs, self._directory / MANIFEST_NAME, text)
        self._fs.sync_dir(self._directory)

    def _origin(self) -> str:
        """A comment on where the weights are from, if that is a place that others can go to."""
        identity = self._source.identity()
        if "revision" not in identity:
            return ""
        return f"# from {identity['source']}, revision {identity['revision']}\n"

    def _manifest(self, journal: Journal) -> Manifest:
        plan, done = self._plan.manifest, journal.of("file")
        manifest = Manifest(
            plan.spec,
            [replace(file, sha256=done[file.path]["sha256"]) for file in plan.files],
            plan.tensors,
            [
                replace(experts, checksums=[int(word, 16) for word in done[output.name]["xxh3"]])
                for experts, output in zip(plan.experts, self._plan.outputs[1:], strict=True)
            ],
        )
        manifest.check()
        return manifest

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what to do when the disk is full, and of any other failure where it was."""
        try:
            yield
        except OSError as error:
            full = _FULL.get(error.errno or 0)
            if full is None:
                if error.errno and error.filename is None:
                    error.filename = str(self._directory)
                raise
            raise ConversionError(
                f"{self._directory}: {full}; what is written stays: "
                "free some room and give the same command again"
            ) from error


def _existing(path: Path) -> Path:
    """The nearest parent that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
