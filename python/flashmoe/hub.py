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
from pathlib import Path
from typing import Any

from flashmoe.errors import IntegrityError, ModelFormatError, ReadError
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
    repo_id = os.fspath(path_or_id)
    with _explained(repo_id, revision):
        _check_room(repo_id, revision)
        return Path(_download_all(repo_id, revision))


def _download_all(repo_id: str, revision: str | None) -> str:
    return str(
        _api().snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=list(WANTED),
            ignore_patterns=list(_UNWANTED),
        )
    )


def _check_room(repo_id: str, revision: str | None) -> None:
    """Refuse a download that cannot fit the cache's disk; what is cached needs no network."""
    from huggingface_hub import constants
    from huggingface_hub.errors import DryRunError

    try:
        files = _api().snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=list(WANTED),
            ignore_patterns=list(_UNWANTED),
            dry_run=True,
        )
    except DryRunError:
        return  # offline: the download itself says what is missing
    needed = sum(file.file_size for file in files if file.will_download)
    cache = Path(constants.HF_HUB_CACHE)
    there = next(p for p in (cache, *cache.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ReadError(
            f"{repo_id} takes {needed:,} bytes of disk and {cache} has {free:,} free: free some, "
            "set HF_HOME to another disk, or let `flashmoe convert` fetch it shard by shard"
        )


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="flashmoe")


@contextmanager
def _explained(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's errors into ours, with what to do next."""
    from huggingface_hub import errors

    # the base of every error of the HTTP client that the hub uses
    client_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]

    try:
        yield
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
    except (client_error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # this machine's own: no room, no right to write
        raise ReadError(
            f"{repo_id}: the hub failed ({type(error).__name__}: {_first_line(error)}); "
            "try again, it goes on from there"
        ) from error


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
            IntegrityError: What came twice is not what the hub announces.
            ReadError: The hub cannot be reached.
        """
        for attempt in range(_ATTEMPTS):
            with _explained(self.repo_id, self.commit):
                path = Path(
                    self._api.hf_hub_download(
                        self.repo_id,
                        name,
                        revision=self.commit,
                        local_dir=folder,
                        force_download=attempt > 0,
                        tqdm_class=self._bar,
                    )
                )
            if self._is_whole(name, path):
                return path
            path.unlink()
        raise IntegrityError(
            f"{self.repo_id}: {name} came {_ATTEMPTS} times with another SHA-256 or size than the "
            "hub announces; something on the way changes it"
        )

    def _is_whole(self, name: str, path: Path) -> bool:
        file = self._files[name]
        if file.size is not None and path.stat().st_size != file.size:
            return False
        if file.lfs is None:
            return True
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == str(file.lfs.sha256)

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
        if last is not None and response.status_code == 200:
            data = data[first:last]  # a server that does not know ranges sends everything
        wanted = self._files[name].size if last is None else last - first
        if wanted is not None and len(data) != wanted:
            raise ReadError(
                f"{self.repo_id}: {name} came with {len(data)} bytes from {first}, "
                f"{wanted} were wanted; try again"
            )
        return data
