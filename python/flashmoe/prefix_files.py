"""Saved sequences as files: token ids and what a session remembered after them."""

from __future__ import annotations

import os
import re
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flashmoe.errors import IntegrityError, ModelFormatError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAGIC = b"fmprefix"
_VERSION = 1
_HEADER = struct.Struct("<8sIIQQQ")
"""Magic, version, tokens, key of the model, bytes of the snapshot, XXH3 of these and of the ids."""

_NAME = re.compile(r"([0-9a-f]{16})-([0-9]{1,10})-([0-9a-f]{16})\.prefix")
_UNFINISHED = re.compile(r"\..*\.prefix\..*\.tmp")
_ABANDONED = 3600.0
"""Seconds after which an unfinished file has no writer any more."""


def write(path: Path, model: int, ids: NDArray[np.int32], snapshot: NDArray[np.uint8]) -> None:
    """Write a file that is there whole or not at all, whatever happens meanwhile.

    Args:
        path: Replaced if it is there.
        model: Key of the model that saved it.
        ids: The tokens, int32.
        snapshot: What the session gave; has its own checksum.
    """
    from flashmoe import _core

    tokens = ids.astype("<i4").tobytes()
    head = _HEADER.pack(_MAGIC, _VERSION, ids.size, model, snapshot.size, 0)[:-8]
    # readable for its owner alone
    file = tempfile.NamedTemporaryFile(  # noqa: SIM115
        "wb", dir=path.parent, prefix=f".{path.name[:64]}.", suffix=".tmp", delete=False
    )
    try:
        with file:
            file.write(head + struct.pack("<Q", _core.xxh3_64(head + tokens)) + tokens)
            file.write(snapshot.data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(file.name)
        raise
    _sync(path.parent)


def _sync(directory: Path) -> None:
    with suppress(OSError):  # some file systems cannot; the rename then waits for theirs
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def read(path: Path, model: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """The ids and the snapshot of a file.

    Args:
        path: The file.
        model: Key of the model that must have saved it.

    Raises:
        ModelFormatError: No such file, or of another model.
        IntegrityError: It was cut or changed. What is wrong inside the snapshot is found when a
            session loads it.
    """
    import numpy as np

    from flashmoe import _core

    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            raise IntegrityError(f"{path} has {len(head)} bytes, fewer than its header")
        magic, version, n, saved_by, snapshot_bytes, checksum = _HEADER.unpack(head)
        if magic != _MAGIC or version != _VERSION:
            raise ModelFormatError(f"{path} is not a saved sequence of this version")
        size = os.fstat(file.fileno()).st_size
        if size != _HEADER.size + 4 * n + snapshot_bytes:
            raise IntegrityError(
                f"{path} has {size} bytes, but must have {_HEADER.size + 4 * n + snapshot_bytes}"
            )
        tokens = file.read(4 * n)
        if _core.xxh3_64(head[:-8] + tokens) != checksum:
            raise IntegrityError(f"{path}: header and token ids do not match their checksum")
        if saved_by != model:
            raise ModelFormatError(
                f"{path} was saved by another model, or with other experts_per_token or kv_dtype"
            )
        ids = np.frombuffer(tokens, "<i4").astype(np.int32)
        snapshot = np.empty(snapshot_bytes, np.uint8)
        got = file.readinto(snapshot.data)
    if got != snapshot_bytes:
        raise IntegrityError(f"{path}: {got} of {snapshot_bytes} bytes could be read")
    return ids, snapshot


@dataclass(frozen=True, slots=True)
class _Found:
    path: Path
    nbytes: int
    used: int


class Directory:
    """A directory of saved sequences that any number of processes share.

    It is looked through anew each time: others write and delete as well.
    """

    def __init__(self, path: Path, budget: int, model: int) -> None:
        """Make the directory if it is not there.

        Args:
            path: The directory.
            budget: Most bytes of all sequences in it, those of other models included.
            model: Key of the model whose sequences are looked for.
        """
        self.path, self._budget, self._model = path, budget, model
        path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _place(self, key: tuple[int, int]) -> Path:
        return self.path / f"{self._model:016x}-{key[0]}-{key[1]:016x}.prefix"

    def _files(self) -> Iterator[_Found]:
        with os.scandir(self.path) as entries:
            for entry in entries:
                ours = _NAME.fullmatch(entry.name) is not None
                if not ours and not _UNFINISHED.fullmatch(entry.name):
                    continue
                with suppress(FileNotFoundError):
                    stat = entry.stat(follow_symlinks=False)
                    if ours:
                        yield _Found(Path(entry.path), stat.st_size, stat.st_mtime_ns)
                    elif time.time() - stat.st_mtime > _ABANDONED:
                        os.unlink(entry.path)

    def keys(self) -> list[tuple[int, int]]:
        """Lengths and hashes of this model's sequences."""
        found = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                name = _NAME.fullmatch(entry.name)
                if name and int(name[1], 16) == self._model:
                    found.append((int(name[2]), int(name[3], 16)))
        return found

    def get(self, key: tuple[int, int], ids: NDArray[np.int32]) -> NDArray[np.uint8] | None:
        """The snapshot for these ids; ``None`` where there is none, or it has just gone.

        Raises:
            IntegrityError: The file was cut or changed.
            ModelFormatError: It is not what its name says.
            OSError: It cannot be read.
        """
        import numpy as np

        path = self._place(key)
        try:
            kept, snapshot = read(path, self._model)
            if not np.array_equal(kept, ids):  # the same hash by chance
                return None
            os.utime(path)
        except FileNotFoundError:
            return None
        return snapshot

    def touch(self, key: tuple[int, int]) -> bool:
        """Used now, if it is there."""
        try:
            os.utime(self._place(key))
        except OSError:
            return False
        return True

    def put(
        self, key: tuple[int, int], ids: NDArray[np.int32], snapshot: NDArray[np.uint8]
    ) -> None:
        """Write one and let those go that were not used for longest. Too large a one is not kept.

        Raises:
            OSError: It cannot be written.
        """
        nbytes = _HEADER.size + ids.nbytes + snapshot.nbytes
        if nbytes > self._budget:
            return
        self.evict(nbytes)
        write(self._place(key), self._model, ids, snapshot)
        self.evict(0)

    def evict(self, room: int) -> None:
        """Make room within the budget for so many bytes."""
        files = sorted(self._files(), key=lambda f: f.used)
        held = sum(f.nbytes for f in files)
        for old in files:
            if held + room <= self._budget:
                return
            with suppress(FileNotFoundError):
                old.path.unlink()
            held -= old.nbytes

    def remove(self, key: tuple[int, int]) -> None:
        """Delete what cannot be used."""
        with suppress(OSError):
            self._place(key).unlink()

    def held(self) -> int:
        """Bytes of all sequences in it."""
        try:
            return sum(f.nbytes for f in self._files())
        except FileNotFoundError:
            return 0
