"""Text from a model: prompts, conversations, streams."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as PyGenerator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flashmoe.errors import (
    ArgumentError,
    CancelledError,
    ClosedError,
    ContextLengthError,
    PromptError,
    TemplateError,
)
from flashmoe.model import Model
from flashmoe.sampler import Sampler
from flashmoe.stop import StopMatcher

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flashmoe import _core

Prompt = str | Sequence[int]
DEFAULT_MAX_TOKENS = 512


@dataclass(frozen=True)
class Chunk:
    """One token of an answer.

    Attributes:
        text: What can be shown now. Empty while a character or a possible stop string is
            incomplete; the text of all chunks together is the answer.
        token_id: The token.
        logprob: Natural logarithm of its probability under the model, before any penalty,
            temperature or cut.
        finish_reason: ``None``, or on the last chunk ``"stop"`` (end token or stop string) or
            ``"length"``.
    """

    text: str
    token_id: int
    logprob: float
    finish_reason: str | None = None


@dataclass
class Stats:
    """What an answer cost. Times in seconds, sizes in bytes.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens of the answer.
        time_to_first_token: From the call to the first token.
        prefill_tokens_per_second: Prompt tokens over the time to evaluate them.
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
        text: The answer, without end token or stop string.
        token_ids: Its tokens, the end token included.
        logprobs: The tokens' log probabilities.
        finish_reason: ``"stop"`` or ``"length"``.
        stats: What it cost.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    stats: Stats = field(repr=False)

    def __str__(self) -> str:
        return self.text


class Generator:
    """Answers prompts and conversations with a model.

    Each call is a sequence of its own. Calls from several threads take turns; within a thread, a
    new call ends a stream that was left before its end.
    """

    def __init__(
        self, model: Model, sampler: Sampler | Callable[[NDArray[np.float32]], int] | None = None
    ) -> None:
        """Prepare to generate.

        Args:
            model: Shared by any number of generators.
            sampler: A :class:`Sampler`, or anything that maps logits, float32
                ``[vocab_size]``, to a token id. ``None`` takes the checkpoint's own settings.
        """
        self.model = model
        self.sampler = Sampler() if sampler is None else sampler
        self._turn = threading.Lock()
        self._session: _core.Session | None = None
        self._latest: _Answer | None = None
        self._closed = False
        self.stats = Stats()

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: str | Sequence[str] = (),
        progress: Callable[[int, int], object] | None = None,
    ) -> Iterator[Chunk]:
        """Generate token by token.

        Args:
            prompt: Text, or token ids.
            max_tokens: Longest answer.
            stop: Texts that end the answer; none of them is part of it.
            progress: Called with prompt tokens done and prompt tokens in all while the prompt is
                evaluated.

        Yields:
            A chunk for each token. ``self.stats`` grows along.

        Raises:
            PromptError: The prompt is empty.
            ContextLengthError: The prompt leaves no room for an answer.
            ExpertReadError: An expert could not be read. The generator stays usable.
        """
        ids = self._encode(prompt)
        if max_tokens < 1:
            raise ArgumentError(f"max_tokens must be at least 1, not {max_tokens}")
        matcher = StopMatcher(stop)
        if self._latest is not None:
            self._latest.replace()
        self._latest = _Answer(self._locked(self._run(ids, max_tokens, matcher, progress)))
        return self._latest

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: str | Sequence[str] = (),
        progress: Callable[[int, int], object] | None = None,
    ) -> Generation:
        """Generate a whole answer; see :meth:`stream`.

        Args:
            prompt: Text, or token ids.
            max_tokens: Longest answer.
            stop: Texts that end the answer.
            progress: Called while the prompt is evaluated.
        """
        return self._collect(
            self.stream(prompt, max_tokens=max_tokens, stop=stop, progress=progress)
        )

    def stream_chat(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        *,
        enable_thinking: bool | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: str | Sequence[str] = (),
        progress: Callable[[int, int], object] | None = None,
        **template_options: Any,
    ) -> Iterator[Chunk]:
        """Answer a conversation token by token; see :meth:`chat` and :meth:`stream`.

        Args:
            messages: Dictionaries with ``role`` and ``content``, as in the OpenAI API.
            tools: Functions the model may call.
            enable_thinking: Passed to the template if not ``None``.
            max_tokens: Longest answer.
            stop: Texts that end the answer.
            progress: Called while the prompt is evaluated.
            **template_options: Further variables of the template.
        """
        prompt = self.render(messages, tools, enable_thinking=enable_thinking, **template_options)
        ids = self.model.tokenizer.encode(prompt)
        return self.stream(ids, max_tokens=max_tokens, stop=stop, progress=progress)

    def chat(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        *,
        enable_thinking: bool | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: str | Sequence[str] = (),
        progress: Callable[[int, int], object] | None = None,
        **template_options: Any,
    ) -> Generation:
        """Answer a conversation, rendered by the checkpoint's own chat template.

        Args:
            messages: Dictionaries with ``role`` and ``content``, as in the OpenAI API.
            tools: Functions the model may call: JSON schemas in the OpenAI form, or Python
                functions with type hints and a docstring.
            enable_thinking: Passed to the template if not ``None``; what it does is the
                template's business.
            max_tokens: Longest answer.
            stop: Texts that end the answer.
            progress: Called while the prompt is evaluated.
            **template_options: Further variables of the template, such as
                ``reasoning_effort``.

        Raises:
            TemplateError: The checkpoint has no chat template, or it refuses the conversation.
        """
        return self._collect(
            self.stream_chat(
                messages,
                tools,
                enable_thinking=enable_thinking,
                max_tokens=max_tokens,
                stop=stop,
                progress=progress,
                **template_options,
            )
        )

    def render(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        *,
        enable_thinking: bool | None = None,
        **template_options: Any,
    ) -> str:
        """The prompt that a conversation becomes.

        Args:
            messages: Dictionaries with ``role`` and ``content``.
            tools: Functions the model may call.
            enable_thinking: Passed to the template if not ``None``.
            **template_options: Further variables of the template.

        Raises:
            TemplateError: The checkpoint has no chat template, or it refuses the conversation.
        """
        from flashmoe.messages import normalise_messages

        template = self.model.tokenizer.chat_template
        if template is None:
            raise TemplateError(
                f"{self.model.path} has no chat template; use generate() with a plain prompt"
            )
        if enable_thinking is not None:
            template_options["enable_thinking"] = enable_thinking
        return template.render(
            normalise_messages(messages, template), tools=tools, **template_options
        )

    def cancel(self) -> None:
        """Stop a call that runs in another thread; it raises ``CancelledError`` within a layer."""
        session = self._session
        if session is not None:
            session.cancel()

    def close(self) -> None:
        """Give the sequence's memory back. May be called twice."""
        self._closed = True
        if self._session is not None:
            self._session.close()
            self._session = None

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _encode(self, prompt: Prompt) -> NDArray[np.int32]:
        if self._closed:
            raise ClosedError("the generator is closed")
        if isinstance(prompt, str):
            if not prompt:
                raise PromptError("the prompt is empty")
            prompt = self.model.tokenizer.encode(prompt, add_special_tokens=True)
        ids = self.model.check_tokens(prompt)
        if ids.size >= self.model.context_length:
            raise ContextLengthError(
                f"the prompt has {ids.size} tokens; with a context of {self.model.context_length} "
                f"at most {self.model.context_length - 1} leave room for an answer",
                ids.size,
                self.model.context_length,
            )
        return ids

    def _locked(self, chunks: Iterator[Chunk]) -> PyGenerator[Chunk, None, None]:
        with self._turn:
            yield from chunks

    def _collect(self, chunks: Iterator[Chunk]) -> Generation:
        texts, ids, logprobs, reason = [], [], [], "length"
        for chunk in chunks:
            texts.append(chunk.text)
            ids.append(chunk.token_id)
            logprobs.append(chunk.logprob)
            reason = chunk.finish_reason or reason
        return Generation("".join(texts), ids, logprobs, reason, self.stats)

    def _fresh_session(self) -> _core.Session:
        if self._closed:
            raise ClosedError("the generator is closed")
        if self._session is None:
            self._session = self.model.new_session()
        else:
            self._session.reset()
        return self._session

    def _run(
        self,
        ids: NDArray[np.int32],
        max_tokens: int,
        matcher: StopMatcher,
        progress: Callable[[int, int], object] | None,
    ) -> Iterator[Chunk]:
        """One answer from its first prompt token to its last token."""
        import numpy as np

        from flashmoe import _core

        tokenizer = self.model.tokenizer_or_none
        ends = tokenizer.eos_token_ids if tokenizer else frozenset()
        decoder = tokenizer.stream() if tokenizer else None
        room = self.model.context_length - ids.size + 1
        session = self._fresh_session()
        meter = _Meter(self.model, session, ids.size)
        self.stats = meter.stats
        choose = self._chooser(ids, meter.stats)
        logits = np.empty((1, self.model.vocab_size), np.float32)

        for first, last in self.model.prefill_steps(0, ids.size):
            session.eval(ids[first:last], logits[: last == ids.size])
            if progress is not None:
                progress(last, ids.size)
        meter.prefilled()

        step = np.empty(1, np.int32)
        for n in range(1, min(max_tokens, room) + 1):
            row = logits[0]
            if tokenizer is not None:
                row[tokenizer.vocab_size :] = -np.inf  # padding rows have no text
            token = choose(row)
            logprob = _core.logprob(row, token)
            ended = token in ends
            full = n == min(max_tokens, room)
            text = "" if decoder is None or ended else decoder.push(token)
            text, stopped = matcher.push(text)
            if not stopped and (ended or full):
                tail = decoder.flush() if decoder is not None else ""
                more, stopped = matcher.push(tail)
                text += more if stopped else more + matcher.flush()
            meter.token()
            reason = "stop" if ended or stopped else "length" if full else None
            yield Chunk(text, token, logprob, reason)
            if reason:
                return
            step[0] = token
            session.eval(step, logits)

    def _chooser(
        self, ids: NDArray[np.int32], stats: Stats
    ) -> Callable[[NDArray[np.float32]], int]:
        """The sampler at the start of this answer."""
        if not isinstance(self.sampler, Sampler):
            return self._checked(self.sampler)
        tokenizer = self.model.tokenizer_or_none
        defaults = tokenizer.generation_defaults if tokenizer else {}
        draw = self.sampler.with_defaults(defaults).start(ids.tolist())
        stats.seed = draw.seed
        return draw

    def _checked(
        self, sampler: Callable[[NDArray[np.float32]], int]
    ) -> Callable[[NDArray[np.float32]], int]:
        def choose(logits: NDArray[np.float32]) -> int:
            token = int(sampler(logits))
            if not 0 <= token < self.model.vocab_size:
                raise ArgumentError(
                    f"the sampler chose token {token}; there are 0 .. {self.model.vocab_size - 1}"
                )
            return token

        return choose


class _Answer:
    """The chunks of one answer, which a later call of the same thread may end.

    A stream that nobody reads on, because its loop was left by ``break`` or an exception, would
    otherwise keep the generator's turn for as long as something refers to it.
    """

    def __init__(self, chunks: PyGenerator[Chunk, None, None]) -> None:
        self._chunks = chunks
        self._thread = threading.get_ident()
        self._replaced = False

    def __iter__(self) -> _Answer:
        return self

    def __next__(self) -> Chunk:
        if self._replaced:
            raise CancelledError("a later call on the same generator took this answer's place")
        return next(self._chunks)

    def close(self) -> None:
        """End the answer here."""
        self._chunks.close()

    def replace(self) -> None:
        """End it for a later call of the same thread; one of another thread waits its turn."""
        state = inspect.getgeneratorstate(self._chunks)
        if self._thread != threading.get_ident() or state == inspect.GEN_CLOSED:
            return
        if state == inspect.GEN_RUNNING:
            raise ArgumentError("a callback of an answer cannot start another with its generator")
        self._replaced = True
        self._chunks.close()


class _Meter:
    """Fills the stats of one answer while it grows."""

    def __init__(self, model: Model, session: _core.Session, prompt_tokens: int) -> None:
        info = model.info()
        self.stats = Stats(
            prompt_tokens=prompt_tokens,
            experts_per_token=info["experts_per_token"],
            native_experts_per_token=info["native_experts_per_token"],
        )
        self._session = session
        self._before = session.stats()
        self._start = time.perf_counter()
        self._first = self._start

    def prefilled(self) -> None:
        elapsed = time.perf_counter() - self._start
        self.stats.prefill_tokens_per_second = self.stats.prompt_tokens / max(elapsed, 1e-9)

    def token(self) -> None:
        now = time.perf_counter()
        s = self.stats
        s.completion_tokens += 1
        if s.completion_tokens == 1:
            self._first = now
            s.time_to_first_token = now - self._start
        else:
            s.decode_tokens_per_second = (s.completion_tokens - 1) / max(now - self._first, 1e-9)
        core = self._session.stats()
        used = core["experts_used"] - self._before["experts_used"]
        hit = core["experts_hit"] - self._before["experts_hit"]
        s.expert_hit_rate = hit / used if used else 1.0
        s.expert_bytes_read = core["bytes_read"] - self._before["bytes_read"]
        s.read_wait = (core["read_wait_ns"] - self._before["read_wait_ns"]) / 1e9
        s.peak_memory = _peak_memory()


def _peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
