"""Sequences that were evaluated before, for prompts that begin with one of them."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmoe.errors import ArgumentError, BudgetError, IntegrityError, ModelFormatError
from flashmoe.model import STEP_END, Model
from flashmoe.prefix_files import Directory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flashmoe import _core

_log = logging.getLogger("flashmoe")
Key = tuple[int, int]


class PrefixCache:
    """Snapshots of sessions by the tokens they had; the longest that begins a prompt is used.

    A snapshot is the whole KV cache and recurrent state of a session. What is kept here is beside
    the model's ``memory``: this cache has a budget of its own. For any number of generators and
    threads; a directory may be shared by processes.

    Going on at a position that is no multiple of 64, or after tokens that came one by one, gives
    the answer of a cold run but for rounding. With ``exact=True`` snapshots are only taken where
    that cannot happen, at multiples of 64 inside prompts, and answers have the same bits.
    """

    def __init__(
        self,
        model: Model,
        *,
        memory: int,
        directory: Path | str | None = None,
        disk: int = 0,
        exact: bool = False,
    ) -> None:
        """Prepare; what a directory holds from before is found.

        Args:
            model: Whose sessions these are.
            memory: Most bytes of snapshots in memory.
            directory: Where they are kept beyond the process, or ``None``. The files hold
                conversations; only their owner can read them.
            disk: Most bytes of all files in the directory.
            exact: Only what gives the bits of a cold run.
        """
        if memory < 0 or disk < 0:
            raise ArgumentError(f"memory {memory} and disk {disk} must not be negative")
        if (directory is None) != (disk == 0):
            raise ArgumentError("directory and disk, its budget in bytes, go together")
        self.model = model
        self.exact = exact
        self._memory = memory
        self._entries: OrderedDict[Key, tuple[NDArray[np.int32], NDArray[np.uint8]]] = OrderedDict()
        self._held = 0
        self._guard = threading.Lock()
        self._hits = self._misses = self._refused = self._tokens = 0
        self._directory: Directory | None = None
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None
        if directory is not None:
            self._directory = Directory(Path(directory), disk, model_key(model, exact=exact))
            self._writer = ThreadPoolExecutor(1, "flashmoe-prefix")

    def cut(self, stable: int) -> int:
        """Where in a prompt's evaluation a snapshot is taken; 0: nowhere.

        Args:
            stable: Tokens with which later prompts will begin.
        """
        return stable // STEP_END * STEP_END if self.exact else stable

    def restore(self, session: _core.Session, ids: NDArray[np.int32]) -> int:
        """Let a new session begin with the longest kept sequence that is shorter than a prompt.

        Args:
            session: Any session of the model; untouched where nothing is found.
            ids: The prompt.

        Returns:
            Tokens the session has now that need not be evaluated; 0: none.
        """
        hashes = _prefix_hashes(ids)
        for key in self._candidates(hashes, ids.size - 1):
            try:
                snapshot = self._get(key, ids[: key[0]])
                if snapshot is None:
                    continue
                session.load(snapshot)
            except (IntegrityError, ModelFormatError) as error:
                self._refuse(key, error)
                continue
            except BudgetError:
                break  # then the prompt does not fit either, and its first step says so
            except OSError as error:
                _log.warning("a saved prefix cannot be read, going on without: %s", error)
                continue
            with self._guard:
                self._hits += 1
                self._tokens += key[0]
                self._keep(key, ids[: key[0]], snapshot)
            return key[0]
        with self._guard:
            self._misses += 1
        return 0

    def store(
        self,
        session: _core.Session,
        ids: Sequence[int] | NDArray[np.int32],
        *,
        decoded: bool = False,
    ) -> None:
        """Keep a sequence; those not used for longest go.

        Args:
            session: Just after these tokens.
            ids: Exactly the tokens that it has.
            decoded: Some of them were evaluated one by one.
        """
        import numpy as np

        ids = np.array(ids, np.int32)  # a copy: the caller's may change
        if ids.size != session.position:
            raise ArgumentError(f"{ids.size} token ids for a session with {session.position}")
        if ids.size == 0 or (self.exact and (decoded or ids.size % STEP_END)):
            return
        key = (int(ids.size), int(_prefix_hashes(ids)[-1]))
        with self._guard:
            known = key in self._entries
            if known:
                self._entries.move_to_end(key)
        if self._directory is not None and self._directory.touch(key):
            known = True
        if known:
            return
        try:
            snapshot = session.save()
        except MemoryError as error:
            _log.warning("no memory to keep a prefix of %d tokens: %s", ids.size, error)
            return
        with self._guard:
            self._keep(key, ids, snapshot)
        if self._directory is not None and self._writer is not None:
            self.flush()  # one file at a time: what waits would be memory beside the budget
            self._writing = self._writer.submit(_write, self._directory, key, ids, snapshot)

    def flush(self) -> None:
        """Wait until what was stored is on disk."""
        if self._writing is not None:
            self._writing.result()

    def clear(self) -> None:
        """Forget what is in memory; files stay."""
        with self._guard:
            self._entries.clear()
            self._held = 0

    def close(self) -> None:
        """Finish writing and forget everything in memory. Files stay. May be called twice."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.shutdown()
        self.clear()

    def stats(self) -> dict[str, Any]:
        """What it holds and what it was good for; sizes in bytes."""
        disk = self._directory.held() if self._directory is not None else 0
        with self._guard:
            return {
                "entries": len(self._entries),
                "memory_bytes": self._held,
                "disk_bytes": disk,
                "hits": self._hits,
                "misses": self._misses,
                "refused": self._refused,
                "tokens_restored": self._tokens,
            }

    def _candidates(self, hashes: NDArray[np.uint64], longest: int) -> list[Key]:
        """Kept sequences with which a prompt seems to begin, the longest first."""
        with self._guard:
            keys = set(self._entries)
        if self._directory is not None:
            try:
                keys.update(self._directory.keys())
            except OSError as error:
                _log.warning("the prefix directory cannot be read: %s", error)
        return sorted(
            (k for k in keys if 0 < k[0] <= longest and int(hashes[k[0] - 1]) == k[1]),
            reverse=True,
        )

    def _get(self, key: Key, ids: NDArray[np.int32]) -> NDArray[np.uint8] | None:
        import numpy as np

        with self._guard:
            entry = self._entries.get(key)
        if entry is not None and np.array_equal(entry[0], ids):
            return entry[1]
        return None if self._directory is None else self._directory.get(key, ids)

    def _keep(self, key: Key, ids: NDArray[np.int32], snapshot: NDArray[np.uint8]) -> None:
        self._drop(key)
        size = ids.nbytes + snapshot.nbytes
        if size > self._memory:
            return
        self._entries[key] = (ids.copy(), snapshot)
        self._held += size
        while self._held > self._memory:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._held -= entry[0].nbytes + entry[1].nbytes

    def _refuse(self, key: Key, error: Exception) -> None:
        _log.warning("a saved prefix of %d tokens is refused and removed: %s", key[0], error)
        with self._guard:
            self._refused += 1
            self._drop(key)
        if self._directory is not None:
            self._directory.remove(key)


def _write(
    directory: Directory, key: Key, ids: NDArray[np.int32], snapshot: NDArray[np.uint8]
) -> None:
    try:
        directory.put(key, ids, snapshot)
    except (OSError, MemoryError) as error:
        _log.warning("a prefix of %d tokens could not be saved: %s", ids.size, error)


def model_key(model: Model, *, exact: bool = False) -> int:
    """A number that models have in common whose snapshots are good for each other.

    Args:
        model: The model.
        exact: Good to the bit: the kernels must also be the same.
    """
    from flashmoe import _core

    info = model.info()
    words = [model.fingerprint(), info["device"], info["kv_dtype"]]
    if exact:
        words += ["exact", info["kernels"]]
    return _core.xxh3_64(repr(words).encode())


def _prefix_hashes(ids: NDArray[np.int32]) -> NDArray[np.uint64]:
    """A hash of the first n tokens for every n: sums of numbers made from token and position."""
    import numpy as np

    x = ids.astype(np.uint64) + np.arange(1, ids.size + 1, dtype=np.uint64) * np.uint64(1 << 32)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return np.cumsum(x ^ (x >> np.uint64(31)), dtype=np.uint64)
