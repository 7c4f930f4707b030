"""Where a conversion reads from: a directory, or a hub repository fetched one shard at a time."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from flashmoe.checkpoint import Checkpoint
from flashmoe.conversion.plan import Piece, Plan
from flashmoe.conversion.write import read_exactly
from flashmoe.errors import ReadError
from flashmoe.manifest import Manifest

if TYPE_CHECKING:
    import numpy as np

    from flashmoe.hub import RemoteCheckpoint

STEP_BYTES = 512 << 20
"""Most source bytes of one step of a local conversion."""

DOWNLOADS_NAME = ".download"

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
)
"""Files that a packed directory takes over unchanged, where the source has them."""


@dataclass(slots=True)
class Step:
    """Work after which the journal gets a line.

    Attributes:
        name: In the journal.
        pieces: Matrices, each with the index of the packed file that it goes to.
        finishes: Packed files that are complete after it.
        files: Source files that it reads.
    """

    name: str
    pieces: list[tuple[int, Piece]] = field(default_factory=list)
    finishes: list[int] = field(default_factory=list)
    files: set[int] = field(default_factory=set)

    def add(self, output: int, piece: Piece) -> None:
        """Take a matrix in."""
        self.pieces.append((output, piece))
        self.files |= piece.files

    @property
    def outputs(self) -> set[int]:
        """The packed files that it writes to."""
        return {output for output, _ in self.pieces}

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return sum(piece.nbytes for _, piece in self.pieces)


class Source(Protocol):
    """What a conversion reads."""

    @property
    def manifest(self) -> Manifest:
        """Where its weights lie."""

    def identity(self) -> dict[str, Any]:
        """What tells it from any other source, or another state of itself."""

    def steps(self, plan: Plan) -> Iterator[Step]:
        """All the work, in the same order every time."""

    def extra_bytes(self, plan: Plan) -> int:
        """Room it needs on the target's disk beside the result."""

    def prepare(self, step: Step) -> None:
        """Make the files of a step readable."""

    def read(self, file: int, buffer: NDArray[np.uint8], at: int) -> None:
        """Fill a buffer from a prepared file."""

    def release(self, step: Step) -> None:
        """A step is safe on the disk."""

    def copies(self) -> dict[str, bytes]:
        """The small files to take over."""

    def clean(self) -> None:
        """All is packed: remove what was fetched."""

    def close(self) -> None:
        """Close what is open."""


class _Files:
    """Open source files by index."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._fds: dict[int, int] = {}

    def __contains__(self, file: int) -> bool:
        return file in self._fds

    def open(self, file: int, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._fds[file] = fd
        size, wanted = os.fstat(fd).st_size, self._manifest.files[file].nbytes
        if size != wanted:
            raise ReadError(f"{path}: has {size} bytes now, it had {wanted}; do not change it")

    def read(self, file: int, buffer: NDArray[np.uint8], at: int) -> None:
        read_exactly(self._fds[file], buffer, at, self._manifest.files[file].path)

    def close(self, file: int) -> None:
        os.close(self._fds.pop(file))

    def close_all(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])


class LocalSource:
    """A checkpoint directory; read, never written.

    Args:
        checkpoint: It, opened.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._files = _Files(checkpoint.manifest)

    @property
    def manifest(self) -> Manifest:
        return self._checkpoint.manifest

    def identity(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.manifest.to_text().encode("ascii"))
        for file in self.manifest.files:
            state = (self._checkpoint.path / file.path).stat()
            digest.update(b"%d %d\n" % (state.st_size, state.st_mtime_ns))
        return {"source": str(self._checkpoint.path.resolve()), "contents": digest.hexdigest()}

    def steps(self, plan: Plan) -> Iterator[Step]:
        for index, output in enumerate(plan.outputs):
            number, nbytes = 0, 0
            step = Step(f"{output.name}:0")
            for piece in plan.pieces(index):
                if step.pieces and nbytes + piece.nbytes > STEP_BYTES:
                    yield step
                    number, nbytes = number + 1, 0
                    step = Step(f"{output.name}:{number}")
                step.add(index, piece)
                nbytes += piece.nbytes
            step.finishes.append(index)
            yield step

    def extra_bytes(self, plan: Plan) -> int:
        return 0

    def prepare(self, step: Step) -> None:
        for file in step.files:
            if file not in self._files:
                self._files.open(file, self._checkpoint.path / self.manifest.files[file].path)

    def read(self, file: int, buffer: NDArray[np.uint8], at: int) -> None:
        self._files.read(file, buffer, at)

    def release(self, step: Step) -> None:
        """Nothing to do: files stay open."""

    def copies(self) -> dict[str, bytes]:
        paths = {name: self._checkpoint.path / name for name in COPIED}
        return {name: path.read_bytes() for name, path in paths.items() if path.is_file()}

    def clean(self) -> None:
        """Nothing to do: nothing was fetched."""

    def close(self) -> None:
        self._files.close_all()


class HubSource:
    """A repository whose shards come one by one and go when all of theirs is packed.

    A matrix whose parts lie in several shards is packed with the last of them; the others stay
    until then.

    Args:
        remote: The repository.
        directory: The packed directory; shards are kept in a folder inside it.
    """

    def __init__(self, remote: RemoteCheckpoint, directory: Path) -> None:
        self._remote = remote
        self._folder = directory / DOWNLOADS_NAME
        self._files = _Files(remote.manifest)
        self._last_use: dict[int, int] = {}

    @property
    def manifest(self) -> Manifest:
        return self._remote.manifest

    def identity(self) -> dict[str, Any]:
        return {"source": self._remote.repo_id, "revision": self._remote.commit}

    def steps(self, plan: Plan) -> Iterator[Step]:
        self._find_last_uses(plan)
        for shard, file in enumerate(self.manifest.files):
            step = Step(file.path)
            for index, output in enumerate(plan.outputs):
                if shard not in output.files:
                    continue
                for piece in plan.pieces(index):
                    if max(piece.files) == shard:
                        step.add(index, piece)
                if max(output.files) == shard:
                    step.finishes.append(index)
            yield step

    def _find_last_uses(self, plan: Plan) -> None:
        for index in range(len(plan.outputs)):
            for piece in plan.pieces(index):
                files = piece.files
                for file in files:
                    self._last_use[file] = max(self._last_use.get(file, 0), *files)

    def extra_bytes(self, plan: Plan) -> int:
        self._find_last_uses(plan)
        sizes = [file.nbytes for file in self.manifest.files]
        return max(
            sum(size for f, size in enumerate(sizes[: s + 1]) if self._last_use.get(f, f) >= s)
            for s in range(len(sizes))
        )

    def prepare(self, step: Step) -> None:
        wanted = {self.manifest.files[file].path for file in step.files}
        for left in self._folder.rglob("*"):  # by a run that was cut off
            if left.is_file() and left.name not in wanted and not self._in_use(left):
                left.unlink()
        for file in sorted(step.files):
            if file not in self._files:
                name = self.manifest.files[file].path
                self._files.open(file, self._remote.download(name, self._folder))

    def _in_use(self, path: Path) -> bool:
        return any(
            path.name == entry.path and file in self._files
            for file, entry in enumerate(self.manifest.files)
        )

    def read(self, file: int, buffer: NDArray[np.uint8], at: int) -> None:
        self._files.read(file, buffer, at)

    def release(self, step: Step) -> None:
        shard = next(i for i, f in enumerate(self.manifest.files) if f.path == step.name)
        for file in range(shard + 1):
            if file in self._files and self._last_use[file] <= shard:
                self._files.close(file)
                (self._folder / self.manifest.files[file].path).unlink()

    def copies(self) -> dict[str, bytes]:
        return self._remote.read_small(COPIED)

    def clean(self) -> None:
        self._files.close_all()
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def close(self) -> None:
        self._files.close_all()
