"""What a server allows and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass

from flashmoe.errors import ArgumentError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "[::1]"})


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits of a server. Times in seconds.

    Attributes:
        name: What ``/v1/models`` calls the model; ``None``: its directory's name.
        aliases: Other names that requests may use; ``"*"`` allows every name.
        api_keys: Who may ask; empty: everyone who reaches it.
        hosts: Names in the Host header that are answered; ``None``: any. The defence against
            pages that point a name of theirs at this machine.
        origins: Web pages of other origins that may ask, such as ``"http://localhost:3000"``.
        queue: Requests that may wait.
        batch_size: Requests that run together; ``None``: by memory.
        max_tokens: Longest answer where a request does not say.
        max_body: Largest body of a request, in bytes.
        head_timeout: For a request's head to arrive.
        body_timeout: For a request's body to arrive.
        request_timeout: From a request to the end of its answer.
        write_timeout: For a client to take some of what it was sent.
        ping: Between signs of life while nothing else is sent.
        grace: For answers to end when the server is stopped.
        prefix_memory: For conversations that may be gone on with, in bytes, beside the model's
            memory; 0: none are kept.
        prefix_directory: Where they outlive the server; ``None``: nowhere.
        prefix_disk: Most bytes of them there.
    """

    name: str | None = None
    aliases: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = tuple(sorted(LOOPBACK))
    origins: tuple[str, ...] = ()
    queue: int = 32
    batch_size: int | None = None
    max_tokens: int = 4096
    max_body: int = 8 << 20
    head_timeout: float = 10.0
    body_timeout: float = 30.0
    request_timeout: float = 3600.0
    write_timeout: float = 10.0
    ping: float = 5.0
    grace: float = 30.0
    prefix_memory: int = 512_000_000
    prefix_directory: str | None = None
    prefix_disk: int = 0

    def __post_init__(self) -> None:
        for name in ("queue", "max_tokens", "max_body"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be at least 1, not {getattr(self, name)}")
        heads = ("head_timeout", "body_timeout")
        for name in (*heads, "request_timeout", "write_timeout", "ping", "grace"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{name} must be above 0 seconds, not {getattr(self, name)}")
        if any(not key or not key.isascii() or key.split() != [key] for key in self.api_keys):
            raise ArgumentError("an API key must be ASCII text without spaces")
