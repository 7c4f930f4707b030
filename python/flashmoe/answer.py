"""One answer while it grows: its tokens, its text and what it costs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flashmoe.errors import ArgumentError
from flashmoe.model import Model
from flashmoe.sampler import Sampler, TokenChooser
from flashmoe.stop import StopMatcher

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flashmoe import _core
    from flashmoe.reply import Delta, ToolCall
    from flashmoe.structured import Constraint


@dataclass(frozen=True)
class Chunk:
    """One token of an answer.

    Attributes:
        text: What can be shown now. Empty while a character or a possible stop string is
            incomplete; the text of all chunks together is the answer.
        token_id: The token.
        logprob: Natural logarithm of its probability under the model, before any penalty,
            temperature or cut.
        finish_reason: ``None``, or on the last chunk ``"stop"`` (end token or stop string),
            ``"length"``, or in a chat ``"tool_calls"``.
        top_logprobs: The likeliest tokens in its place, ids and log probabilities, as many as were
            asked for.
        deltas: In a chat, what it adds to reasoning, content and tool calls.
    """

    text: str
    token_id: int
    logprob: float
    finish_reason: str | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    deltas: tuple[Delta, ...] = ()


@dataclass
class Stats:
    """What an answer cost. Times in seconds, sizes in bytes.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        cached_tokens: Of those, restored from what was kept of an earlier call.
        completion_tokens: Tokens of the answer.
        time_to_first_token: From the call to the first token.
        prefill_tokens_per_second: Prompt tokens that were evaluated over the time that took.
        decode_tokens_per_second: Tokens after the first over the time to make them; 0 if there
            were none.
        expert_bytes_read: Expert bytes that came from files.
        expert_hit_rate: Share of the experts needed that were in memory; 1 for none needed.
        read_wait: Time that nothing was computed because expert bytes were missing.
        peak_memory: Largest resident memory of the process so far.
        experts_per_token: Routed experts per token that ran.
        native_experts_per_token: The model's own number.
        seed: The seed that drew this answer, ``None`` with another sampler than ours.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    time_to_first_token: float = 0.0
    prefill_tokens_per_second: float = 0.0
    decode_tokens_per_second: float = 0.0
    expert_bytes_read: int = 0
    expert_hit_rate: float = 1.0
    read_wait: float = 0.0
    peak_memory: int = 0
    experts_per_token: int = 0
    native_experts_per_token: int = 0
    seed: int | None = None


@dataclass(frozen=True)
class Generation:
    """A finished answer.

    Attributes:
        text: The answer as it was written, without end token or stop string.
        token_ids: Its tokens, the end token included.
        logprobs: The tokens' log probabilities.
        finish_reason: ``"stop"``, ``"length"``, or in a chat ``"tool_calls"``.
        stats: What it cost.
        content: Of a chat, what the answer says; else the text.
        reasoning: Of a chat, what the model thought before.
        tool_calls: Of a chat, what the model wants to be called.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    stats: Stats = field(repr=False)
    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    def __str__(self) -> str:
        return self.text

    @property
    def message(self) -> dict[str, Any]:
        """The answer as a message, to go on with the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [call.as_message() for call in self.tool_calls]
        return message

    @classmethod
    def of(cls, chunks: Sequence[Chunk], stats: Stats, *, parts: bool = False) -> Generation:
        """Put an answer together.

        Args:
            chunks: All chunks of it.
            stats: What it cost.
            parts: They have deltas.
        """
        from flashmoe.reply import tool_calls_of

        text = "".join(chunk.text for chunk in chunks)
        deltas = [delta for chunk in chunks for delta in chunk.deltas]
        said = {
            kind: "".join(delta.text for delta in deltas if delta.kind == kind)
            for kind in ("content", "reasoning")
        }
        return cls(
            text,
            [chunk.token_id for chunk in chunks],
            [chunk.logprob for chunk in chunks],
            chunks[-1].finish_reason or "length",
            stats,
            said["content"] if parts else text,
            said["reasoning"],
            tool_calls_of(deltas),
        )


class Answer:
    """Turns the logits after the prompt, and after each of its tokens, into chunks.

    Attributes:
        meter: Fills the stats.
    """

    def __init__(
        self,
        model: Model,
        ids: NDArray[np.int32],
        sampler: Sampler | TokenChooser,
        matcher: StopMatcher,
        max_tokens: int,
        meter: Meter,
        *,
        top_logprobs: int = 0,
        constraint: Constraint | None = None,
    ) -> None:
        """Begin an answer.

        Args:
            model: Whose logits these are.
            ids: The prompt.
            sampler: Started anew for this answer if it is one of ours.
            matcher: Finds the texts that end the answer; not used before.
            max_tokens: Longest answer.
            meter: Told of every token.
            top_logprobs: Likeliest tokens to tell with each token.
            constraint: What the answer must follow; log probabilities do not know of it.
        """
        self._constraint = constraint
        self.meter = meter
        self._top = top_logprobs
        self._tokenizer = model.tokenizer_or_none
        self._ends = self._tokenizer.eos_token_ids if self._tokenizer else frozenset()
        self._decoder = self._tokenizer.stream() if self._tokenizer else None
        self._matcher = matcher
        self._left = min(max_tokens, model.context_length - ids.size + 1)
        if not isinstance(sampler, Sampler):
            self._choose = _checked(sampler, model.vocab_size)
            return
        defaults = self._tokenizer.generation_defaults if self._tokenizer else {}
        draw = sampler.with_defaults(defaults).start(ids.tolist())
        meter.stats.seed = draw.seed
        self._choose = draw

    def take(self, row: NDArray[np.float32]) -> Chunk:
        """The next token. The last chunk has a finish reason; nothing may follow it.

        Args:
            row: Logits, float32 ``[vocab_size]``; those of padding rows are overwritten.
        """
        import numpy as np

        from flashmoe import _core

        if self._tokenizer is not None:
            row[self._tokenizer.vocab_size :] = -np.inf  # padding rows have no text
        token = self._choose(row if self._constraint is None else self._allowed(row))
        if self._constraint is not None:
            self._constraint.accept(token)
        logprob = _core.logprob(row, token)
        self._left -= 1
        end_token, full = token in self._ends, self._left == 0
        ended = end_token or (self._constraint is not None and self._constraint.finished)
        text = "" if self._decoder is None or end_token else self._decoder.push(token)
        text, stopped = self._matcher.push(text)
        if not stopped and (ended or full):
            tail = self._decoder.flush() if self._decoder is not None else ""
            more, stopped = self._matcher.push(tail)
            text += more if stopped else more + self._matcher.flush()
        self.meter.token()
        reason = "stop" if ended or stopped else "length" if full else None
        top = _likeliest(row, self._top, float(row[token]) - logprob) if self._top else ()
        return Chunk(text, token, logprob, reason, top)

    def _allowed(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of the logits without what the constraint forbids."""
        assert self._constraint is not None
        row = row.copy()
        self._constraint.apply(row)
        return row


def _likeliest(row: NDArray[np.float32], n: int, log_sum: float) -> tuple[tuple[int, float], ...]:
    """The ``n`` largest logits: ids and log probabilities, the likeliest first."""
    import numpy as np

    ids = np.argpartition(row, -n)[-n:]
    ids = ids[np.lexsort((ids, -row[ids]))]
    return tuple((int(i), float(row[i]) - log_sum) for i in ids)


def _checked(sampler: TokenChooser, vocab_size: int) -> TokenChooser:
    def choose(logits: NDArray[np.float32]) -> int:
        token = int(sampler(logits))
        if not 0 <= token < vocab_size:
            raise ArgumentError(f"the sampler chose token {token}; there are 0 .. {vocab_size - 1}")
        return token

    return choose


class Meter:
    """Fills the stats of one answer while it grows."""

    def __init__(self, info: Mapping[str, Any], prompt_tokens: int) -> None:
        """Start the clock of the call; that of the prompt starts with the first session.

        Args:
            info: Of the model.
            prompt_tokens: Tokens of the prompt.
        """
        self.stats = Stats(
            prompt_tokens=prompt_tokens,
            experts_per_token=info["experts_per_token"],
            native_experts_per_token=info["native_experts_per_token"],
        )
        self._called = time.perf_counter()
        self._start = self._first = 0.0
        self._session: _core.Session | None = None
        self._before: dict[str, int] = {}
        self._spent = dict.fromkeys(
            ("experts_used", "experts_hit", "bytes_read", "read_wait_ns"), 0
        )

    def attach(self, session: _core.Session) -> None:
        """Count what this session does from now on."""
        self._start = self._start or time.perf_counter()
        self._session, self._before = session, session.stats()

    def detach(self) -> None:
        """Keep what the session has cost; it may be closed or serve another answer."""
        self._spent = self._cost()
        self._session = None

    def _cost(self) -> dict[str, int]:
        if self._session is None:
            return self._spent
        now = self._session.stats()
        return {k: v + now[k] - self._before[k] for k, v in self._spent.items()}

    def prefilled(self) -> None:
        """The whole prompt was evaluated."""
        elapsed = time.perf_counter() - self._start
        evaluated = self.stats.prompt_tokens - self.stats.cached_tokens
        self.stats.prefill_tokens_per_second = evaluated / max(elapsed, 1e-9)

    def token(self) -> None:
        """One token was made."""
        now = time.perf_counter()
        s = self.stats
        s.completion_tokens += 1
        if s.completion_tokens == 1:
            self._first = now
            s.time_to_first_token = now - self._called
        else:
            s.decode_tokens_per_second = (s.completion_tokens - 1) / max(now - self._first, 1e-9)
        cost = self._cost()
        used, hit = cost["experts_used"], cost["experts_hit"]
        s.expert_hit_rate = hit / used if used else 1.0
        s.expert_bytes_read = cost["bytes_read"]
        s.read_wait = cost["read_wait_ns"] / 1e9
        s.peak_memory = _peak_memory()


def _peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
