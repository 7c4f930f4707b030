"""Models on the Hugging Face hub: downloaded whole, or one shard at a time.

Only this file talks to the network, and only when a model is named that is no directory here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

from flashmoe.errors import FlashMoEError, IntegrityError, ModelFormatError, ReadError
from flashmoe.manifest import Manifest, check_file_name
from flashmoe.safetensors import Header, header_bytes, parse_header

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HEAD_BYTES = 1 << 17
_ATTEMPTS = 3

WANTED = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "merges.txt",
    "manifest.fm",
    "resident.bin",
    "experts-*.bin",
    "SHA256SUMS",
    "LICENSE*",
)
"""What of a repository makes a model."""

_UNWANTED = ("*/*", "consolidated*")


def is_local(path_or_id: str | os.PathLike[str]) -> bool:
    """Whether a model is a path on this machine rather than a repository's id."""
    text = os.fspath(path_or_id)
    return os.path.exists(text) or not _REPO_ID.fullmatch(text) or "/" not in text


def resolve(path_or_id: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The directory of a model; a repository is downloaded into the hub's own cache first.

    Args:
        path_or_id: A directory, which always comes first, or an id such as ``Qwen/Qwen3-30B-A3B``.
        revision: Branch, tag or commit of a repository; the main branch if None.

    Raises:
        ModelFormatError: There is neither such a directory nor such a repository.
        ReadError: The repository cannot be downloaded.
    """
    if is_local(path_or_id):
        path = Path(path_or_id)
        if not path.is_dir():
            raise ModelFormatError(
                f"{path} is not a directory; give a model's directory, or a repository of the hub "
                "such as Qwen/Qwen3-30B-A3B"
            )
        return path
    return _pull(os.fspath(path_or_id), revision)


def _pull(repo_id: str, revision: str | None) -> Path:
    """Fetch what the hub's cache lacks of a repository, one file after the other, each checked.

    All of it happens on the caller's thread, so that Ctrl-C ends it at once.
    """
    from huggingface_hub import errors

    with _explained(repo_id, revision):
        try:
            info = _api().model_info(repo_id, revision=revision, files_metadata=True)
        except errors.RevisionNotFoundError:
            raise
        except (_client_error(), errors.OfflineModeIsEnabled) as error:
            return _pulled_before(repo_id, revision, error)
        files = [file for file in info.siblings or [] if _is_wanted(file.rfilename)]
    if not files:
        raise ModelFormatError(f"{repo_id} holds no file of a model")
    cache = _Cache(repo_id, str(info.sha))
    missing = [file for file in files if not cache.has(file.rfilename)]
    cache.check_room(missing)
    for file in missing:
        with cache.unchecked(file.rfilename):
            _fetch(repo_id, str(info.sha), file)
    cache.name(revision or "main")
    return cache.snapshot


def _pulled_before(repo_id: str, revision: str | None, error: Exception) -> Path:
    """What is here already, where the hub answered only with an error."""
    from huggingface_hub import errors

    try:
        return Path(
            _api().snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=list(WANTED),
                ignore_patterns=list(_UNWANTED),
                local_files_only=True,
            )
        )
    except errors.LocalEntryNotFoundError:
        if isinstance(error, errors.RepositoryNotFoundError):  # or a gated one
            raise error from None
        raise


def _is_wanted(name: str) -> bool:
    return any(fnmatchcase(name, wanted) for wanted in WANTED) and not any(
        fnmatchcase(name, unwanted) for unwanted in _UNWANTED
    )


class _Cache:
    """One commit of a repository in the hub's cache, whose layout is the hub's.

    A file is marked until it has been checked: what came just before the end of a process lies
    there like any other.
    """

    def __init__(self, repo_id: str, commit: str) -> None:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        self._repo_id = repo_id
        self._commit = commit
        self._top = Path(constants.HF_HUB_CACHE)
        self._folder = self._top / repo_folder_name(repo_id=repo_id, repo_type="model")
        self.snapshot = self._folder / "snapshots" / commit

    def _mark(self, name: str) -> Path:
        return self._folder / "unchecked" / f"{self._commit}-{name}"

    def has(self, name: str) -> bool:
        """Whether a file is there, and not only because nobody has looked at it yet."""
        return (self.snapshot / name).exists() and not self._mark(name).exists()

    @contextmanager
    def unchecked(self, name: str) -> Iterator[None]:
        """The time until a file is checked; a block that fails leaves it marked."""
        mark = self._mark(name)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        yield
        mark.unlink(missing_ok=True)

    def check_room(self, files: Sequence[Any]) -> None:
        """Refuse a download that cannot fit the cache's disk."""
        needed = sum(f.size or 0 for f in files if not (self.snapshot / f.rfilename).exists())
        there = next(p for p in (self._top, *self._top.absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free
        if needed > free:
            raise ReadError(
                f"{self._repo_id} takes {needed:,} bytes of disk and {self._top} has {free:,} "
                "free: free some, set HF_HOME to another disk, or let `flashmoe convert` fetch it "
                "shard by shard"
            )

    def name(self, revision: str) -> None:
        """Remember which commit a revision is, for when there is no network."""
        ref = self._folder / "refs" / revision
        if revision == self._commit or (ref.is_file() and ref.read_text() == self._commit):
            return
        ref.parent.mkdir(parents=True, exist_ok=True)
        part = ref.with_name(f".{ref.name}.{os.getpid()}")
        part.write_text(self._commit)
        os.replace(part, ref)


def _fetch(repo_id: str, commit: str, file: Any, **where: Any) -> Path:
    """Download a file unless it is there, and check it.

    Args:
        repo_id: The repository.
        commit: Of it.
        file: What the hub says of the file.
        **where: For ``hf_hub_download``.

    Raises:
        IntegrityError: What came several times is not what the hub announces.
        ReadError: The hub cannot be reached.
    """
    for attempt in range(_ATTEMPTS):
        with _explained(repo_id, commit):
            path = Path(
                _api().hf_hub_download(
                    repo_id, file.rfilename, revision=commit, force_download=attempt > 0, **where
                )
            )
        with path.open("rb") as opened:
            if _is_right(file, opened, os.fstat(opened.fileno()).st_size):
                return path
        path.resolve().unlink(missing_ok=True)  # the cache has links
        path.unlink(missing_ok=True)
    raise IntegrityError(
        f"{repo_id}: {file.rfilename} came {_ATTEMPTS} times with another SHA-256 or size than the "
        "hub announces; something on the way changes it"
    )


def _is_right(file: Any, opened: BufferedReader | BytesIO, nbytes: int) -> bool:
    """Whether contents are what the hub announces: large files by SHA-256, small ones as Git."""
    if file.size is not None and nbytes != file.size:
        return False
    if file.lfs is not None:
        return hashlib.file_digest(opened, "sha256").hexdigest() == str(file.lfs.sha256)
    if not re.fullmatch("[0-9a-f]{40}", file.blob_id or ""):
        return True
    start = b"blob %d\0" % nbytes
    digest = hashlib.file_digest(opened, lambda: hashlib.sha1(start, usedforsecurity=False))
    return digest.hexdigest() == str(file.blob_id)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="flashmoe")


@contextmanager
def _explained(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's errors into ours, with what to do next."""
    from huggingface_hub import errors

    try:
        yield
    except FlashMoEError:
        raise
    except errors.GatedRepoError as error:
        raise ReadError(
            f"{repo_id} is gated: accept its terms on its page at the hub, then log in with "
            "`hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelFormatError(
            f"there is neither a directory {repo_id} nor such a repository on the hub: check the "
            "name; if it is private, log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelFormatError(f"{repo_id} has no revision {revision!r} on the hub") from error
    except errors.HFValidationError as error:
        raise ModelFormatError(f"{repo_id} is no name of a repository: {error}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ReadError(
            f"{repo_id} is not on this machine whole and the hub cannot be reached: check the "
            "network and HF_HUB_OFFLINE, then try again"
        ) from error
    except (ValueError, TypeError, LookupError) as error:
        raise ReadError(
            f"{repo_id}: the hub's answer is none ({type(error).__name__}: {_first_line(error)}); "
            "something between here and the hub may answer in its place"
        ) from error
    except (_client_error(), OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # this machine's own: no room, no right to write
        raise ReadError(
            f"{repo_id}: the hub failed ({type(error).__name__}: {_first_line(error)}); "
            "try again, it goes on from there"
        ) from error


def _client_error() -> type[Exception]:
    """The base of every error of the HTTP client that the hub uses."""
    from huggingface_hub import errors

    base: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    return base


def _silent_bar() -> type[Any]:
    """A progress bar that shows nothing."""
    from tqdm import tqdm

    def start(self: Any, *args: Any, **options: Any) -> None:
        tqdm.__init__(self, *args, **(options | {"disable": True}))

    return type("Silent", (tqdm,), {"__init__": start})


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:200]


class RemoteCheckpoint:
    """A repository opened by the headers of its shards alone.

    Args:
        repo_id: Such as ``Qwen/Qwen3-30B-A3B``.
        revision: Branch, tag or commit; the main branch if None.
        progress: Whether downloads show a bar on stderr.

    Attributes:
        repo_id: As given.
        commit: The commit that the revision was when it was opened.
        config: Its ``config.json``.
        manifest: Where everything lies in its files.

    Raises:
        ModelFormatError: There is no such repository, or it holds no model.
        UnsupportedModelError: A model that flashmoe does not run exactly.
        ReadError: The hub cannot be reached.
    """

    def __init__(self, repo_id: str, revision: str | None = None, *, progress: bool = True) -> None:
        from flashmoe.checkpoint import build_manifest

        self._bar = None if progress else _silent_bar()
        self.repo_id = repo_id
        self._api = _api()
        with _explained(repo_id, revision):
            info = self._api.model_info(repo_id, revision=revision, files_metadata=True)
        self.commit: str = info.sha
        self._files = {f.rfilename: f for f in info.siblings or [] if "/" not in f.rfilename}
        self._starts: dict[str, tuple[int, bytes]] = {}
        self.config = self._json("config.json")
        self.manifest: Manifest = build_manifest(self.config, self._headers())

    def read_small(self, names: Sequence[str]) -> dict[str, bytes]:
        """The contents of those of some small files that the repository has."""
        return {name: self._get(name) for name in names if name in self._files}

    def download(self, name: str, folder: Path) -> Path:
        """Fetch one file and check it.

        Args:
            name: Of the file.
            folder: Where to put it; made if needed.

        Raises:
            IntegrityError: What came several times is not what the hub announces.
            ReadError: The hub cannot be reached.
        """
        path = _fetch(
            self.repo_id, self.commit, self._files[name], local_dir=folder, tqdm_class=self._bar
        )
        start, digest = self._starts[name]
        with path.open("rb") as opened:
            if hashlib.sha256(opened.read(start)).digest() != digest:
                raise IntegrityError(
                    f"{self.repo_id}: the header of {name} came alone with other bytes than in the "
                    "file; something on the way changes them: try again"
                )
        return path

    def _headers(self) -> dict[str, Header]:
        return {name: self._header(name) for name in self._shards()}

    def _shards(self) -> list[str]:
        index = "model.safetensors.index.json"
        if index in self._files:
            weight_map = self._json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise ModelFormatError(f"{self.repo_id}: {index} has no weight_map")
            names = sorted({str(name) for name in weight_map.values()})
        else:
            names = sorted(
                n for n in self._files if n.startswith("model") and n.endswith(".safetensors")
            )
        if not names:
            raise ModelFormatError(
                f"{self.repo_id} has no model.safetensors; flashmoe reads safetensors only"
            )
        for name in names:
            check_file_name(name)
            if name not in self._files:
                raise ModelFormatError(f"{self.repo_id}: {index} names {name}, which is not there")
        return names

    def _header(self, name: str) -> Header:
        size = int(self._files[name].size or 0)
        what = f"{self.repo_id}/{name}"
        start = self._get(name, 0, min(size, _HEAD_BYTES))
        whole = 8 + header_bytes(start, size, what)
        if whole > len(start):
            start += self._get(name, len(start), whole)
        self._starts[name] = len(start), hashlib.sha256(start).digest()
        return parse_header(start, size, what)

    def _json(self, name: str) -> dict[str, Any]:
        if name not in self._files:
            raise ModelFormatError(f"{self.repo_id} has no {name}; it is no model's repository")
        try:
            value = json.loads(self._get(name))
        except ValueError as error:
            raise ModelFormatError(f"{self.repo_id}: {name} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise ModelFormatError(f"{self.repo_id}: {name} is not a JSON object")
        return value

    def _get(self, name: str, first: int = 0, last: int | None = None) -> bytes:
        """A file, or its bytes ``first`` to ``last - 1``, straight from the hub."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

        url = hf_hub_url(
            self.repo_id, name, revision=self.commit, endpoint=os.environ.get("HF_ENDPOINT") or None
        )
        headers = build_hf_headers(library_name="flashmoe")
        if last is not None:
            if last <= first:
                return b""
            headers["Range"] = f"bytes={first}-{last - 1}"
        with _explained(self.repo_id, self.commit):
            response = http_backoff("GET", url, headers=headers, follow_redirects=True, timeout=30)
            hf_raise_for_status(response)
        data = bytes(response.content)
        file = self._files[name]
        if last is None:
            if _is_right(file, BytesIO(data), len(data)):
                return data
            raise ReadError(
                f"{self.repo_id}: {name} came with {len(data)} bytes and is not what the hub "
                "announces; try again"
            )
        if response.status_code == 200 and len(data) == file.size:
            data = data[first:last]  # a server that does not know ranges sends everything
        if len(data) != last - first:
            raise ReadError(
                f"{self.repo_id}: {name} came with {len(data)} bytes from {first}, "
                f"{last - first} were wanted; try again"
            )
        return data
