"""An open model: weights in memory, experts on disk."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flashmoe.errors import PromptError, TokenizerError, UnsupportedModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flashmoe import _core
    from flashmoe.checkpoint import Checkpoint
    from flashmoe.tokenizer import Tokenizer

KV_DTYPES = ("f32", "f16", "bf16")
EVICTIONS = ("auto", "lru", "lfu", "slru", "static")
VERIFICATIONS = ("first", "always", "off")
STEP_END = 64
"""Prefill steps end at multiples of this position, so that results do not depend on their size."""


class Model:
    """A mixture-of-experts language model whose routed experts are read from disk when needed.

    A checkpoint directory is opened in place and never written to: Hugging Face safetensors in
    bf16, f16 or f32, directories quantised by mlx-lm, or what ``flashmoe convert`` wrote.

    One model may serve any number of generators and threads; they take turns.

    Attributes:
        path: The directory.
        config: The checkpoint's ``config.json``.
    """

    def __init__(
        self,
        path_or_hub_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        device: str = "auto",
        memory: int | float | str | None = None,
        experts_per_token: int | None = None,
        threads: int | None = None,
        kv_dtype: str | None = None,
        read: str = "auto",
        read_threads: int | None = None,
        read_split: int | None = None,
        read_timeout: float | None = 30.0,
        overlap: bool | None = None,
        guess: bool = True,
        eviction: str = "auto",
        verify: str = "first",
    ) -> None:
        """Open a model; touches no expert.

        Args:
            path_or_hub_id: A directory, or a repository of the Hugging Face hub, which is
                downloaded first.
            revision: Branch, tag or commit of the repository.
            device: ``"cpu"``, ``"metal"``, or ``"auto"``: Metal where there is one and it passes a
                quick selftest, else the CPU. :meth:`info` says which, and why.
            memory: Ceiling for what the model holds: resident weights, activations, KV caches,
                recurrent states and experts kept in memory. Bytes, a text such as ``"6GB"`` or
                ``"512MiB"``, or a fraction of the machine's memory such as ``0.5``. ``None``
                takes three quarters of the memory that is available now. On Metal it is at most
                what the GPU is meant to hold, and a Mac short of memory gets experts back.
            experts_per_token: Routed experts per token, 1 to the model's own number, which is the
                default. Fewer is another, weaker model; :meth:`info` says so.
            threads: Threads that compute. ``None`` takes every core this process may use.
            kv_dtype: ``"f16"`` (default), ``"bf16"`` or ``"f32"``: numbers in the KV cache.
            read: How experts are read: ``"buffered"`` through the page cache, ``"direct"`` around
                it, ``"uring"`` around it with one thread (Linux), ``"populate"`` or ``"mmap"`` out
                of a mapping (for comparison). ``"auto"`` takes the page cache if it can hold every
                expert, else what a measurement of the disk, made once, says is fastest.
            read_threads: Reads in flight, 1 to 256. ``None``: by that measurement, else 8.
            read_split: A record is read in 1, 2, 4 or 8 pieces. ``None``: likewise, else 1.
            read_timeout: Seconds without an expert from a disk that was asked for some; then
                :class:`ExpertReadError`. ``None`` waits for ever; Ctrl-C works all the same.
                Closing the model waits until the disk has answered.
            overlap: Compute while experts are being read. ``False`` is the plain order: compute,
                read, compute. ``None``: ``True`` on the CPU, ``False`` on Metal, whose memory is
                busy enough with one of the two.
            guess: While one token is decoded, also read what the next layer's router would pick
                now; switches itself off where that does not pay. Needs ``overlap``.
            eviction: Which experts stay in memory: ``"lru"`` those used last, ``"lfu"`` those used
                most, ``"slru"`` those used more than once, ``"static"`` the first that came.
                ``"auto"`` is ``"lfu"``. None of the three changes what is computed.
            verify: When an expert's bytes are compared with the checksum that ``flashmoe convert``
                wrote for it: ``"first"``, the first time it is read; ``"always"``, each time, for
                disks and memory that are not trusted; ``"off"``, never, and damaged bytes are
                computed with. A checkpoint opened in place has no checksums.

        Raises:
            ModelFormatError: A file is not what it must be.
            UnsupportedModelError: The model needs something this version does not have.
            BudgetError: It cannot run within ``memory``; the message spells out the sum.
            TokenizerError: There is a tokenizer, but not one for this model.
            DeviceError: There is no such device here.
        """
        from flashmoe import _core, devices, reading
        from flashmoe.checkpoint import open_checkpoint
        from flashmoe.hub import resolve
        from flashmoe.machine import available_memory, parse_size

        if kv_dtype is not None and kv_dtype not in KV_DTYPES:
            raise ValueError(f"kv_dtype must be one of {', '.join(KV_DTYPES)}, not {kv_dtype!r}")
        if eviction not in EVICTIONS:
            raise ValueError(f"eviction must be one of {', '.join(EVICTIONS)}, not {eviction!r}")
        if verify not in VERIFICATIONS:
            raise ValueError(f"verify must be one of {', '.join(VERIFICATIONS)}, not {verify!r}")
        if read_timeout is not None and not 0.1 <= read_timeout <= 86_400:
            raise ValueError(f"read_timeout must be 0.1 to 86400 seconds, not {read_timeout}")
        reading.check(read, read_threads, read_split)
        if experts_per_token is not None and experts_per_token < 1:
            raise ValueError(f"experts_per_token must be at least 1, not {experts_per_token}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")

        self._device = devices.choose(device)
        self.path = resolve(path_or_hub_id, revision)
        checkpoint = open_checkpoint(self.path)
        if checkpoint.kind == "fp8":
            raise UnsupportedModelError(
                f"{self.path} holds FP8 weights, which are not run in place; convert it first: "
                f"flashmoe convert {self.path} DIRECTORY --bits 4"
            )
        self.config = checkpoint.config
        self.tokenizer_or_none = _load_tokenizer(self.path, checkpoint)
        available = available_memory()
        budget = int(0.75 * available) if memory is None else parse_size(memory)
        choice = reading.choose(
            read,
            read_threads,
            read_split,
            manifest=checkpoint.manifest,
            directory=self.path,
            budget=budget,
            available=available,
        )
        self._sessions: list[weakref.ref[_core.Session]] = []  # a WeakSet may swallow Ctrl-C
        self._sessions_lock = threading.Lock()
        self._core = _core.Model(
            checkpoint.manifest.to_text(),
            str(self.path),
            device=self._device.name,
            cache=devices.cache() if self._device.name != "cpu" else "",
            memory=budget,
            threads=threads or 0,
            experts_per_token=experts_per_token or 0,
            kv=kv_dtype or "f16",
            read=choice.read,
            read_threads=choice.threads,
            read_split=choice.split,
            read_timeout_ms=round(1000 * (read_timeout or 0)),
            eviction=eviction,
            verify=verify,
            overlap=self._device.name == "cpu" if overlap is None else overlap,
            guess=guess,
        )
        self._info = self._core.info()
        self._reading = reading.refused(choice, self._info["read_direct"])

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | os.PathLike[str], **options: Any) -> Model:
        """The same as calling the class; see there.

        Args:
            path_or_hub_id: A directory or a repository of the Hugging Face hub.
            **options: Keyword arguments of the class.
        """
        return cls(path_or_hub_id, **options)

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer.

        Raises:
            TokenizerError: The checkpoint has none; the model then works on token ids.
        """
        if self.tokenizer_or_none is None:
            raise TokenizerError(
                f"{self.path} has no tokenizer.json; give token ids instead of text, "
                "or copy tokenizer.json from the original model"
            )
        return self.tokenizer_or_none

    @property
    def vocab_size(self) -> int:
        """Columns of the logits, padding rows of the vocabulary included."""
        return int(self._info["vocab_size"])

    @property
    def context_length(self) -> int:
        """Most tokens of one sequence."""
        return int(self._info["context_length"])

    def info(self) -> dict[str, Any]:
        """Shapes, memory and choices.

        Sizes are in bytes. ``experts_per_token`` is what runs, ``native_experts_per_token`` what
        the model was trained with; ``held_bytes`` is what is held now, at most ``memory``;
        ``device`` is what computes and ``device_reason`` why; ``read`` is how experts are read,
        ``read_reason`` why, ``read_probe`` what was measured.
        """
        probe = self._reading.probe
        return {
            "path": str(self.path),
            "model_type": self.config.get("model_type"),
            **self._open().info(),
            "device_reason": self._device.reason,
            "read_reason": self._reading.reason,
            "read_probe": [asdict(figure) for figure in probe.figures] if probe else [],
            "tokenizer": self.tokenizer_or_none is not None,
        }

    def logits(self, token_ids: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Logits after every token of a sequence.

        Args:
            token_ids: Token ids, ``[n]``.

        Returns:
            float32 ``[n, vocab_size]``; row i follows token i.

        Raises:
            PromptError: No tokens, or an id that the model does not have.
            ContextLengthError: More tokens than the model's context.
            ExpertReadError: An expert could not be read.
        """
        import numpy as np

        ids = self.check_tokens(token_ids)
        out = np.empty((ids.size, self.vocab_size), np.float32)
        session = self.new_session()
        try:
            for first, last in self.prefill_steps(0, ids.size):
                session.eval(ids[first:last], out[first:last])
        finally:
            session.close()
        return out

    def record_routes(self, on: bool = True) -> None:
        """Begin to record which experts the routers pick, or stop; what was recorded is forgotten.

        Args:
            on: Whether to record from now on.
        """
        self._open().record(on)

    def routes(self) -> NDArray[np.int32]:
        """What :meth:`record_routes` has recorded.

        Returns:
            int32 ``[n, 3 + experts_per_token]``: number of the step, row in it, layer, then the
            experts of that row in ascending order, padded with -1.
        """
        import numpy as np

        core, width = self._open(), 3 + int(self._info["experts_per_token"])
        lines = np.empty((core.recorded(np.empty((0, width), np.int32)), width), np.int32)
        return lines[: core.recorded(lines)]

    def expert_uses(self) -> NDArray[np.int64]:
        """How often each expert was picked since the model was opened.

        Returns:
            int64 ``[layers, experts]``.
        """
        import numpy as np

        shape = (self._info["num_hidden_layers"], self._info["num_experts"])
        counts = np.zeros(shape, np.int64)
        self._open().expert_uses(counts)
        return counts

    def layer_seconds(self) -> dict[str, NDArray[np.float64]]:
        """Where the time of each layer went since the model was opened, by the host's clock.

        Returns:
            Seconds, float64 ``[layers]`` each: ``mixer``; ``router``: norm, scores and choice;
            ``read``: waiting for experts; ``experts``: the rest of the feed-forward.
        """
        import numpy as np

        times = np.zeros((self._info["num_hidden_layers"], 4), np.int64)
        self._open().layer_ns(times)
        names = ("mixer", "router", "read", "experts")
        return {name: times[:, i] / 1e9 for i, name in enumerate(names)}

    def fingerprint(self) -> int:
        """A number that other weights, formats or ``experts_per_token`` do not have."""
        return self._open().fingerprint()

    def new_session(self) -> _core.Session:
        """A new sequence: KV cache and recurrent state. For :class:`flashmoe.Generator`."""
        from flashmoe import _core

        session = _core.Session(self._open())
        with self._sessions_lock:
            alive = [one for one in self._sessions if one() is not None]
            self._sessions = [*alive, weakref.ref(session)]
        if self._core.closed:  # meanwhile, and close() may not have seen the session
            session.close()
            self._open()
        return session

    def check_open(self) -> None:
        """Raise if the model cannot be used.

        Raises:
            ClosedError: It was closed.
            ForkedProcessError: This process was forked after the model was opened.
        """
        self._core.check_open()

    def check_tokens(
        self, token_ids: Sequence[int] | NDArray[np.integer[Any]]
    ) -> NDArray[np.int32]:
        """Token ids as the core wants them, int32 ``[n]``.

        Args:
            token_ids: Token ids, ``[n]``.

        Raises:
            PromptError: No tokens, not whole numbers, or an id that the model does not have.
        """
        import numpy as np

        self.check_open()
        ids = np.asarray(token_ids)
        if ids.ndim != 1 or ids.size == 0:
            raise PromptError(
                "the prompt is empty" if ids.size == 0 else f"token ids have shape {ids.shape}"
            )
        if not np.issubdtype(ids.dtype, np.integer):
            raise PromptError(f"token ids must be whole numbers, not {ids.dtype}")
        wrong = np.flatnonzero((ids < 0) | (ids >= self.vocab_size))
        if wrong.size:
            raise PromptError(
                f"token {int(ids[wrong[0]])} at position {int(wrong[0])} is outside the "
                f"vocabulary, 0 .. {self.vocab_size - 1}"
            )
        return np.ascontiguousarray(ids, dtype=np.int32)

    def prefill_steps(self, position: int, n: int) -> list[tuple[int, int]]:
        """How ``n`` tokens after ``position`` are cut into steps: pairs of first and last + 1.

        Args:
            position: Tokens that the session already has.
            n: Tokens to append.
        """
        rows = int(self._info["prefill_rows"])
        steps, first = [], 0
        while first < n:
            room = rows - (position + first) % STEP_END
            last = min(n, first + room)
            steps.append((first, last))
            first = last
        return steps

    def close(self) -> None:
        """Give everything back; calls that still run are cancelled. May be called twice."""
        self._core.close()  # first, so that a session that begins meanwhile is seen, or sees it
        with self._sessions_lock:
            sessions = [one() for one in self._sessions]
        for session in sessions:
            if session is not None:
                session.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        i = self._info
        k = f"{i['experts_per_token']} of {i['num_experts']} experts"
        if i["experts_per_token"] != i["native_experts_per_token"]:
            k += f" (the model's own number is {i['native_experts_per_token']})"
        state = ", closed" if self._core.closed else ""
        return f"Model({str(self.path)!r}, {self.config.get('model_type')}, {k}{state})"

    def _open(self) -> _core.Model:
        self.check_open()
        return self._core


def _load_tokenizer(path: Path, checkpoint: Checkpoint) -> Tokenizer | None:
    from flashmoe.tokenizer import Tokenizer

    if not (path / "tokenizer.json").exists():
        return None
    return Tokenizer.from_directory(path, num_logits=checkpoint.manifest.spec.vocab_size)
