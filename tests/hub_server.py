"""A model hub on this machine's loopback, with what huggingface_hub asks of one, and its faults."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" * 6 + "abcd"
LIES = ("short", "long", "416", "page")
"""Content-Length below or above the truth, no part for who asks for one, an error as a success."""
PAGE = b"<html><body>This network wants you to log in first.</body></html>" * 40


def git_name(data: bytes) -> str:
    """How Git calls these contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Hub:
    """One repository, ``acme/tiny``, served from a directory.

    Attributes:
        url: Of the server.
        folder: The repository's files.
        drops: How many answers still break off in the middle; every second one does.
        spoilt: Files that come with one bit turned over, this many times.
        ignores_ranges: Whether requests for a part get the whole.
        gone: Whether every request fails.
        lie: What is wrong with an answer, by the request's path and whether it is for a part: one
            of :data:`LIES`, or nothing.
        pause: Seconds before an answer and in the middle of each.
        commit: What the main branch is.
        large: Answers of more than 2000 bytes so far.
        requests: Method, path and range of every request.
    """

    url: str
    folder: Path
    drops: int = 0
    spoilt: dict[str, int] = field(default_factory=dict)
    ignores_ranges: bool = False
    gone: bool = False
    lie: Callable[[str, bool], str] = lambda _path, _part: ""
    pause: float = 0.0
    commit: str = COMMIT
    large: int = 0
    requests: list[tuple[str, str, str]] = field(default_factory=list)

    def fetched(self, name: str) -> int:
        """How often a file was asked for whole."""
        return sum(
            method == "GET" and path.endswith(f"/{name}") and not part
            for method, path, part in self.requests
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the test's terminal."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        form = parse_qs(self.rfile.read(length).decode())
        self.hub.requests.append(("POST", self.path, ""))
        names = form.get("paths", [])
        self._json([e for e in self._tree() if e["path"] in names])

    def _answer(self, body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        part = self.headers.get("Range") or ""
        hub.requests.append((self.command, path, part))
        if hub.gone:
            self._fail(503, "gone")
        elif path.startswith("/api/models/acme/tiny"):
            rest = path.removeprefix("/api/models/acme/tiny")
            revision = rest.split("/")[2] if rest.count("/") >= 2 else "main"
            if revision not in ("main", COMMIT):
                self._fail(404, "RevisionNotFound")
            elif "/tree/" in rest:
                self._json(self._tree())
            else:
                self._json(self._info())
        elif path.startswith("/acme/tiny/resolve/"):
            self._file(path.split("/", 5)[5], body, part)
        elif path.startswith("/api/models/acme/gated"):
            self._fail(403, "GatedRepo")
        else:
            self._fail(404, "RepoNotFound")

    def _commit(self) -> str:
        """The commit that a request is about: its own, or that of the main branch."""
        return COMMIT if COMMIT in self.path else self.hub.commit

    def _info(self) -> dict[str, Any]:
        siblings = []
        for entry in self._tree():
            siblings.append({"rfilename": entry["path"], "size": entry["size"],
                             "blobId": entry["oid"], "lfs": _sha256_named(entry)})  # fmt: skip
        return {"_id": "1", "id": "acme/tiny", "modelId": "acme/tiny", "sha": self._commit(),
                "private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0,
                "tags": [], "siblings": siblings}  # fmt: skip

    def _tree(self) -> list[dict[str, Any]]:
        entries = []
        for file in sorted(self.hub.folder.iterdir()):
            data = file.read_bytes()
            entry: dict[str, Any] = {"type": "file", "path": file.name, "size": len(data),
                                     "oid": git_name(data)}  # fmt: skip
            if file.suffix == ".safetensors":
                sha256 = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
            entries.append(entry)
        return entries

    def _file(self, name: str, body: bool, part: str) -> None:
        file = self.hub.folder / name
        if not file.is_file():
            self._fail(404, "EntryNotFound")
            return
        data = file.read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        total = len(data)
        headers = {"X-Repo-Commit": self._commit(), "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if file.suffix == ".safetensors":
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(total)}
        ranged = bool(part) and not self.hub.ignores_ranges
        if ranged:
            first, _, last = part.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last), total - 1) if last else total - 1
            data = data[begin : end + 1]
            headers["Content-Range"] = f"bytes {begin}-{end}/{total}"
        if body and not part and self.hub.spoilt.get(name, 0) > 0:
            self.hub.spoilt[name] -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        self._send(data, headers, body, ranged)

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self._send(data, {"Content-Type": "application/json"}, self.command != "HEAD", False)

    def _send(self, data: bytes, headers: dict[str, str], body: bool, ranged: bool) -> None:
        """An answer, true or not, whole or not, now or later."""
        time.sleep(self.hub.pause)
        lie = self.hub.lie(self.path, bool(self.headers.get("Range")))
        if lie == "416":
            self._fail(416, "no such range")
            return
        if lie == "page":
            data, headers, ranged = PAGE, {"Content-Type": "text/html"}, False
        self.send_response(206 if ranged else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        length = len(data) + {"short": -7, "long": 7}.get(lie, 0)
        self.send_header("Content-Length", str(max(length, 0)))
        self.end_headers()
        self.close_connection |= lie == "long"
        if not body:
            return
        self.hub.large += len(data) > 2000
        if self.hub.drops > 0 and len(data) > 2000 and self.hub.large % 2:
            self.hub.drops -= 1
            data = data[: len(data) // 2]
            self.close_connection = True
        half = len(data) // 2 if self.hub.pause else 0
        self.wfile.write(data[:half])
        time.sleep(self.hub.pause)
        self.wfile.write(data[half:])

    def _fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may leave when they like; all else is told."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _sha256_named(entry: dict[str, Any]) -> dict[str, Any] | None:
    lfs = entry.get("lfs")
    return lfs and {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """Serve a directory as ``acme/tiny`` for the time of a ``with`` block."""
    server = _Server(("127.0.0.1", 0), _Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_address[1]}", folder)
    server.RequestHandlerClass = type("Handler", (_Handler,), {"hub": hub})
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
