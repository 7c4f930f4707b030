"""Counters and times for Prometheus. Labels take values from fixed lists only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from flashmoe.answer import Stats
from flashmoe.engine import Engine

if TYPE_CHECKING:
    from flashmoe.server.service import Usage

OUTCOMES = ("stop", "length", "tool_calls", "cancelled", "failed")
REFUSALS = ("400", "401", "403", "404", "413", "503", "other")
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """What a server has done so far."""

    def __init__(self, engine: Engine) -> None:
        """Begin at zero.

        Args:
            engine: Whose queue is told.
        """
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"flashmoe_{name}", text, labels, registry=registry)

        self._requests = counter("requests", "Requests that were run", ("outcome",))
        self._refused = counter("refused", "Requests that were refused", ("status",))
        self._prompt = counter("prompt_tokens", "Tokens of prompts")
        self._cached = counter("cached_tokens", "Of them, not evaluated again")
        self._generated = counter("generated_tokens", "Tokens of answers")
        self._bytes = counter("expert_read_bytes", "Expert bytes that came from files")
        self._wait = counter("expert_wait_seconds", "Time without work for want of expert bytes")
        self._first = Histogram(
            "flashmoe_time_to_first_token_seconds",
            "From a request to its first token",
            buckets=_SECONDS,
            registry=registry,
        )
        self._each = Histogram(
            "flashmoe_time_per_output_token_seconds",
            "Between tokens of an answer",
            buckets=_SECONDS,
            registry=registry,
        )
        info = engine.model.info
        for name, text, value in (
            ("requests_running", "Requests that take part in steps", lambda: engine.running),
            ("requests_waiting", "Requests that do not", lambda: engine.waiting),
            ("held_bytes", "Memory that the model holds", lambda: info()["held_bytes"]),
            ("expert_slots", "Experts that memory has room for", lambda: info()["expert_slots"]),
        ):
            Gauge(f"flashmoe_{name}", text, registry=registry).set_function(value)
        for outcome in OUTCOMES:
            self._requests.labels(outcome)
        for status in REFUSALS:
            self._refused.labels(status)

    def ended(self, outcome: str, usage: Usage, stats: Stats) -> None:
        """A request has ended.

        Args:
            outcome: One of :data:`OUTCOMES`.
            usage: Its tokens.
            stats: What it cost.
        """
        self._requests.labels(outcome).inc()
        self._prompt.inc(usage.prompt)
        self._cached.inc(usage.cached)
        self._generated.inc(usage.completion)
        self._bytes.inc(stats.expert_bytes_read)
        self._wait.inc(stats.read_wait)
        if usage.completion:
            self._first.observe(stats.time_to_first_token)
        if stats.decode_tokens_per_second:
            self._each.observe(1 / stats.decode_tokens_per_second)

    def refused(self, status: int) -> None:
        """A request was refused.

        Args:
            status: Of HTTP.
        """
        self._refused.labels(str(status) if str(status) in REFUSALS else "other").inc()

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
