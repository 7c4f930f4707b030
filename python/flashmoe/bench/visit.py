"""One visit: open a model in a process of its own, measure one setting, print what was seen.

``python -m flashmoe.bench.visit`` reads a request from standard input, as JSON, and prints the
answer as JSON on its last line.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmoe.bench.setting import Setting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flashmoe import _core
    from flashmoe.model import Model

WARM_TOKENS = 4
"""Tokens decoded before the clock starts."""


def drop_page_cache(directory: Path) -> bool:
    """Ask the system to forget the pages of a directory's files.

    Under a cap, too: pages that others have read do not count against it, and would be a gift.

    Args:
        directory: Of a model.

    Returns:
        Whether this system can be asked.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in directory.iterdir():
        if file.is_file():
            with open(file, "rb") as f:
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def anonymous_bytes() -> int | None:
    """Anonymous memory of this process now, where the system tells."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next(
        (int(x.split()[1]) * 1024 for x in status.splitlines() if x.startswith("RssAnon:")), None
    )


class Visit:
    """A model under one setting, with random tokens: the worst case for an expert cache.

    Args:
        path: Directory of the model.
        setting: What to measure.
        tokens: Tokens to take instead of random ones, again and again.
        seed: Of the random tokens.
    """

    def __init__(
        self, path: str, setting: Setting, tokens: list[int] | None = None, seed: int = 0
    ) -> None:
        import numpy as np

        import flashmoe

        self.setting = setting
        self.dropped = drop_page_cache(Path(path)) if setting.cold or setting.cap else False
        start = time.perf_counter()
        self.model: Model = flashmoe.Model(
            path,
            memory=setting.memory,
            threads=setting.threads,
            experts_per_token=setting.experts_per_token,
            read=setting.read,
            **dict(setting.options),
        )
        self.open_seconds = time.perf_counter() - start
        self.peak_anon = anonymous_bytes()
        self._rng = np.random.RandomState(seed)
        self._given = np.asarray(tokens, np.int32) if tokens else None
        self._logits = np.empty((max(1, setting.batch), 1, self.model.vocab_size), np.float32)

    def close(self) -> None:
        """Give the model back."""
        self.model.close()

    def run(self, samples: int) -> dict[str, Any]:
        """Measure.

        Args:
            samples: How often.

        Returns:
            Tokens a second of every sample, and what was read meanwhile.
        """
        measure = self._prefill if self.setting.kind == "prefill" else self._decode
        out = measure(samples)
        info = self.model.info()
        return out | {
            "open_seconds": self.open_seconds,
            "page_cache_dropped": self.dropped,
            "peak_anon": self.peak_anon,
            "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            * (1 if sys.platform == "darwin" else 1024),
            "info": {k: v for k, v in info.items() if k not in ("read_probe", "path")},
        }

    def _tokens(self, n: int) -> NDArray[np.int32]:
        import numpy as np

        if self._given is None:
            return self._rng.randint(0, self.model.vocab_size, n).astype(np.int32)
        return np.resize(self._given, n)

    def _feed(self, session: _core.Session, ids: NDArray[np.int32]) -> None:
        done = len(ids)
        for first, last in self.model.prefill_steps(0, done):
            session.eval(ids[first:last], self._logits[0][: int(last == done)])
            self._look()

    def _look(self) -> None:
        now = anonymous_bytes()
        if now is not None and self.peak_anon is not None:
            self.peak_anon = max(self.peak_anon, now)

    def _prefill(self, samples: int) -> dict[str, Any]:
        n = self.setting.prompt
        if not self.setting.cold:
            self._one_prefill(n)
        rates, seconds, counted = [], [], Counted()
        before = self._layers()
        for _ in range(samples):
            took, stats = self._one_prefill(n)
            rates.append(n / took)
            seconds.append(took)
            counted.add(stats, n, took)
        layers = self._layers_since(before, samples * n)
        return {"samples": rates, "first_token_seconds": seconds, **layers, **counted.summary()}

    def _one_prefill(self, n: int) -> tuple[float, dict[str, int]]:
        session = self.model.new_session()
        ids = self._tokens(n)
        try:
            start = time.perf_counter()
            self._feed(session, ids)
            return time.perf_counter() - start, session.stats()
        finally:
            session.close()

    def _decode(self, samples: int) -> dict[str, Any]:
        from flashmoe import _core

        setting = self.setting
        sessions = [self.model.new_session() for _ in range(setting.batch)]
        if not setting.cold:
            self._one_prefill(max(512, setting.context))  # experts that fit are brought in
        for session in sessions:
            if setting.context:
                self._feed(session, self._tokens(setting.context))
        parts = [self._tokens(1) for _ in sessions]

        def step() -> None:
            for part in parts:
                part[:] = self._tokens(1)
            if len(sessions) == 1:
                sessions[0].eval(parts[0], self._logits[0])
            else:
                _core.eval_together(sessions, parts, list(self._logits))

        rates, times, counted = [], [], Counted()
        for _ in range(0 if setting.cold else WARM_TOKENS):
            step()
        layers = self._layers()
        for _ in range(samples):
            before = [s.stats() for s in sessions]
            took = [_timed(step, self._look) for _ in range(setting.tokens)]
            times += took
            rates.append(setting.tokens * len(sessions) / sum(took))
            for session, old in zip(sessions, before, strict=True):
                new = session.stats()
                delta = {k: new[k] - old[k] for k in new}
                counted.add(delta, setting.tokens, sum(took))
        for session in sessions:
            session.close()
        since = self._layers_since(layers, samples * setting.tokens * len(sessions))
        return {"samples": rates, "step_seconds": times, **since, **counted.summary()}

    def _layers(self) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]]:
        return self.model.layer_seconds(), self.model.expert_uses()

    def _layers_since(
        self, before: tuple[dict[str, NDArray[np.float64]], NDArray[np.int64]], tokens: int
    ) -> dict[str, Any]:
        """Milliseconds a token by layer, and how often each expert was picked."""
        seconds, uses = self._layers()
        return {
            "layer_ms": {
                k: (1e3 * (v - before[0][k]) / tokens).tolist() for k, v in seconds.items()
            },
            "expert_uses": (uses - before[1]).tolist(),
        }


class Counted:
    """Sums of what sessions counted."""

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0
        self._sums = {"bytes_read": 0, "experts_used": 0, "experts_hit": 0, "read_wait_ns": 0}

    def add(self, stats: dict[str, int], tokens: int, seconds: float) -> None:
        """Count some tokens.

        Args:
            stats: What one session counted meanwhile.
            tokens: How many.
            seconds: How long they took.
        """
        self._tokens += tokens
        self._seconds += seconds
        for name in self._sums:
            self._sums[name] += stats[name]

    def summary(self) -> dict[str, float | None]:
        """Bytes a token, hit rate, and the share of the time that was waiting for reads."""
        sums = self._sums
        return {
            "bytes_read_per_token": sums["bytes_read"] / max(1, self._tokens),
            "hit_rate": sums["experts_hit"] / sums["experts_used"]
            if sums["experts_used"]
            else None,
            "read_wait_share": sums["read_wait_ns"] / 1e9 / self._seconds
            if self._seconds
            else None,
        }


def _timed(step: Callable[[], None], after: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    took = time.perf_counter() - start
    after()
    return took


def main() -> None:
    """Answer the request on standard input."""
    from flashmoe.errors import FlashMoEError

    request = json.load(sys.stdin)
    try:
        visit = Visit(
            request["path"],
            Setting.from_dict(request["setting"]),
            request.get("tokens"),
            request.get("seed", 0),
        )
        answer = visit.run(request["samples"])
        visit.close()
    except FlashMoEError as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
