"""Whether a model directory still holds what was written to it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flashmoe.conversion.bar import byte_bar
from flashmoe.errors import ModelFormatError
from flashmoe.places import check_file_name

if TYPE_CHECKING:
    from flashmoe.manifest import Manifest

_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The first thing that is not as it was.

    Attributes:
        file: Name of the file.
        offset: Byte from which it differs, as far as that is known.
        layer: Of the expert's record that differs; None for anything else.
        expert: Likewise.
        message: One sentence with all of it.
    """

    file: str
    offset: int
    layer: int | None
    expert: int | None
    message: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What :func:`verify` found.

    Attributes:
        path: The directory.
        kind: ``packed``, or what the checkpoint opened in place is.
        has_checksums: Whether checksums were there to compare with; without them only the files'
            sizes, headers and shapes were checked.
        files: Files checked whole.
        records: Experts' records checked.
        nbytes: Bytes read.
        mismatch: The first difference; None if there is none.
    """

    path: Path
    kind: str
    has_checksums: bool
    files: int
    records: int
    nbytes: int
    mismatch: Mismatch | None

    @property
    def ok(self) -> bool:
        """Whether everything is as it was."""
        return self.mismatch is None

    @property
    def message(self) -> str:
        """One sentence."""
        if self.mismatch is not None:
            return self.mismatch.message
        if not self.has_checksums:
            return (
                f"{self.path}: no checksums are recorded in a checkpoint that is opened in place; "
                f"the sizes and headers of {self.files} files are consistent"
            )
        return (
            f"{self.path}: {self.files} files and {self.records} experts match their checksums "
            f"({self.nbytes:,} bytes)"
        )


def verify(path: str | os.PathLike[str], *, progress: bool = True) -> VerifyReport:
    """Check every checksum of a packed directory; of a checkpoint opened in place, its headers.

    Args:
        path: A model directory.
        progress: Whether to show a bar on stderr.

    Raises:
        ModelFormatError: It is no model directory, or its files contradict each other.
        ReadError: A file cannot be read.
    """
    from flashmoe.checkpoint import MANIFEST_NAME, open_checkpoint

    directory = Path(path)
    if not directory.is_dir():
        raise ModelFormatError(f"{directory} is not a directory; name a model's directory")
    if (directory / MANIFEST_NAME).exists():
        return _Verifier(directory, progress).run()
    checkpoint = open_checkpoint(directory)
    files = len(checkpoint.manifest.files)
    return VerifyReport(directory, checkpoint.kind, False, files, 0, 0, None)


class _Found(Exception):
    """Carries the first mismatch out of the loops."""

    def __init__(self, file: str, offset: int, what: str, record: tuple[int, int] | None) -> None:
        super().__init__(what)
        self.file, self.offset, self.what, self.record = file, offset, what, record


class _Verifier:
    """Goes through the files of a packed directory."""

    def __init__(self, directory: Path, progress: bool) -> None:
        from flashmoe.checkpoint import MANIFEST_NAME
        from flashmoe.manifest import Manifest

        self._directory = directory
        data = (directory / MANIFEST_NAME).read_bytes()
        try:
            self._manifest: Manifest = Manifest.parse(data.decode("ascii"))
        except (UnicodeDecodeError, ModelFormatError) as error:
            raise ModelFormatError(
                f"{directory / MANIFEST_NAME}: {error}; convert the model again"
            ) from error
        self._layers = {x.extents[0].file: x for x in self._manifest.experts if x.packed}
        self._files = self._records = self._nbytes = 0
        self._progress = progress

    def run(self) -> VerifyReport:
        mismatch = None
        total = sum(file.nbytes for file in self._manifest.files)
        with byte_bar(total, "verifying", self._progress) as count:
            try:
                self._sizes()
                for index in range(len(self._manifest.files)):
                    self._file(index, count)
                self._small_files()
            except _Found as found:
                layer, expert = found.record or (None, None)
                message = f"{self._directory / found.file}: {found.what}; convert the model again"
                mismatch = Mismatch(found.file, found.offset, layer, expert, message)
        recorded = all(file.sha256 is not None for file in self._manifest.files)
        return VerifyReport(
            self._directory, "packed", recorded, self._files, self._records, self._nbytes, mismatch
        )

    def _sizes(self) -> None:
        """Sizes first: they cost nothing."""
        for file in self._manifest.files:
            path = self._directory / file.path
            if not path.is_file():
                raise _Found(file.path, 0, "is missing", None)
            size = path.stat().st_size
            if size != file.nbytes:
                what = f"has {size} bytes, the manifest says {file.nbytes}"
                raise _Found(file.path, min(size, file.nbytes), what, None)

    def _file(self, index: int, count: Callable[[int], object]) -> None:
        entry = self._manifest.files[index]
        experts = self._layers.get(index)
        step, image = _CHUNK_BYTES, 0
        sums: list[int] = []
        if experts is not None and experts.checksums is not None:
            image, sums = self._manifest.record_layout(experts.layer).nbytes, experts.checksums
            step = entry.nbytes // len(sums)
            if (experts.extents[0].base, experts.extents[0].stride) != (0, step):
                raise ModelFormatError(
                    f"{self._directory / entry.path}: records do not fill the file evenly; "
                    "flashmoe convert did not write it"
                )
        sha256 = hashlib.sha256()
        with (self._directory / entry.path).open("rb") as file:
            for number, at in enumerate(range(0, entry.nbytes, step)):
                data = file.read(min(step, entry.nbytes - at))
                sha256.update(data)
                if experts is not None and number < len(sums):
                    self._record(entry.path, at, data[:image], sums[number], experts.layer, number)
                self._nbytes += len(data)
                count(len(data))
        if entry.sha256 is not None and sha256.hexdigest() != entry.sha256:
            raise _Found(entry.path, 0, "its SHA-256 is not the one in the manifest", None)
        self._files += 1

    def _record(
        self, file: str, at: int, image: bytes, checksum: int, layer: int, expert: int
    ) -> None:
        from flashmoe._core import xxh3_64

        if xxh3_64(image) != checksum:
            what = f"expert {expert} of layer {layer}, at byte {at}, does not match its checksum"
            raise _Found(file, at, what, (layer, expert))
        self._records += 1

    def _small_files(self) -> None:
        """The files that were copied, by the list that ``sha256sum -c`` reads too."""
        from flashmoe.conversion.run import SUMS_NAME

        sums = self._directory / SUMS_NAME
        if not sums.is_file():
            return
        weights = {file.path for file in self._manifest.files}
        for line in sums.read_text("ascii", "replace").splitlines():
            digest, _, name = line.partition("  ")
            if name in weights:
                continue
            check_file_name(name)
            path = self._directory / name
            if not path.is_file():
                raise _Found(name, 0, f"is in {SUMS_NAME} and missing", None)
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                what = f"was changed: its SHA-256 is not the one in {SUMS_NAME}"
                raise _Found(name, 0, what, None)
            self._files += 1
            self._nbytes += len(data)
