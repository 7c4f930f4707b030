"""Text from a model: prompts, conversations, streams, batches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Generator as PyGenerator
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar

from flashmoe.answer import Answer, Chunk, Generation, Meter, Stats
from flashmoe.batch import Batch, Request, naming
from flashmoe.errors import (
    ArgumentError,
    ClosedError,
    ContextLengthError,
    PromptError,
)
from flashmoe.model import Model
from flashmoe.prefix_points import PrefixPoints, stable_tokens
from flashmoe.sampler import Sampler, TokenChooser
from flashmoe.stop import StopMatcher
from flashmoe.stream import Stream, parsed

if TYPE_CHECKING:
    import os

    import numpy as np
    from numpy.typing import NDArray

    from flashmoe import _core
    from flashmoe.chat_prompt import ChatPrompt
    from flashmoe.prefix_cache import PrefixCache
    from flashmoe.structured import ConstraintFactory

Prompt = str | Sequence[int]
T = TypeVar("T")
DEFAULT_MAX_TOKENS = 512


class Generator:
    """Answers prompts and conversations with a model.

    Each call is a sequence of its own. Calls from several threads take turns; within a thread, a
    new call ends a stream that was left before its end.
    """

    def __init__(
        self,
        model: Model,
        sampler: Sampler | TokenChooser | None = None,
        *,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        """Prepare to generate.

        Args:
            model: Shared by any number of generators.
            sampler: A :class:`Sampler`, or anything that maps logits, float32
                ``[vocab_size]``, to a token id. ``None`` takes the checkpoint's own settings.
            prefix_cache: Lets a prompt that begins like an earlier one go on where that ended;
                see :class:`PrefixCache` for what that does to rounding.
        """
        self.model = model
        self.prefix_cache = prefix_cache
        self.sampler = Sampler() if sampler is None else sampler
        self._turn = threading.Lock()
        self._session: _core.Session | None = None
        self._prompt: NDArray[np.int32] | None = None  # with _said: the tokens of the session
        self._said: list[int] = []
        self._loaded = False  # what the session has goes on with a prompt that extends it
        self._latest: Stream[Any] | None = None
        self._batch: Batch | None = None
        self._closed = False
        self.stats = Stats()

    def stream(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: str | Sequence[str] = (),
        response_format: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Iterator[Chunk]:
        """Generate token by token.

        Args:
            prompt: Text, or token ids.
            max_tokens: Longest answer.
            stop: Texts that end the answer; none of them is part of it.
            response_format: What the answer must follow: a JSON schema as in the OpenAI API, a
                regex, a grammar or a choice; see :func:`flashmoe.structured.compile_constraint`.
                An answer that ends with ``"length"`` may lack its end.
            progress: Called with prompt tokens done and prompt tokens in all while the prompt is
                evaluated.

        Yields:
            A chunk for each token. ``self.stats`` grows along.

        Raises:
            PromptError: The prompt is empty.
            ContextLengthError: The prompt leaves no room for an answer.
            ExpertReadError: An expert could not be read. The generator stays usable.
        """
        constraint = self._constraint(response_format)
        return self._begin(self._start(prompt, max_tokens, stop, progress, constraint=constraint))

    def generate(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: str | Sequence[str] = (),
        response_format: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Generation:
        """Generate a whole answer; see :meth:`stream`.

        Args:
            prompt: Text, or token ids.
            max_tokens: Longest answer.
            stop: Texts that end the answer.
            response_format: What the answer must follow.
            progress: Called while the prompt is evaluated.
        """
        return self._collect(
            self.stream(
                prompt,
                max_tokens=max_tokens,
                stop=stop,
                response_format=response_format,
                progress=progress,
            )
        )

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: str | Sequence[str] = (),
        response_format: Mapping[str, Any] | None = None,
        samplers: Sequence[Sampler | TokenChooser] | None = None,
        batch_size: int | None = None,
        on_answer: Callable[[int, Generation], object] | None = None,
    ) -> list[Generation]:
        """Generate the answers to several prompts together.

        An expert that several sequences need at the same time is read and computed once for all,
        so that many prompts take far less time than one after another. Each answer is what
        :meth:`generate` gives for its prompt, to the bit.

        Args:
            prompts: Texts, or lists of token ids.
            max_tokens: Longest answer.
            stop: Texts that end an answer.
            response_format: What each answer must follow.
            samplers: One for each prompt, in place of the generator's, for instance
                ``[Sampler(seed=i) for i in range(len(prompts))]``. Without it a sampler with a
                seed starts every answer with that seed, as :meth:`generate` does.
            batch_size: Most sequences at a time; when one ends, the next prompt takes its place.
                ``None`` takes as many as fit beside half of the experts that memory has room for.
                Sequences for which there is no memory wait.
            on_answer: Called with the index of a prompt and its answer as soon as it is complete,
                in the order in which answers end.

        Returns:
            The answers, in the order of the prompts. Stats count an expert that was needed by
            several sequences in parts that add up to one.

        Raises:
            FlashMoEError: As for :meth:`stream`; the message and ``sequence`` tell the prompt.
                All prompts are checked before the first is evaluated.
        """
        if isinstance(prompts, str):
            raise ArgumentError("prompts is one text; give a list of prompts, or call generate()")
        if max_tokens < 1:
            raise ArgumentError(f"max_tokens must be at least 1, not {max_tokens}")
        if batch_size is not None and batch_size < 1:
            raise ArgumentError(f"batch_size must be at least 1, not {batch_size}")
        if samplers is None:
            samplers = [self.sampler] * len(prompts)
        if len(samplers) != len(prompts):
            raise ArgumentError(f"{len(samplers)} samplers for {len(prompts)} prompts")
        constraint = self._constraint(response_format)
        requests = []
        for index, prompt in enumerate(prompts):
            with naming(index):
                ids = self._encode(prompt)
            requests.append(
                Request(
                    ids,
                    samplers[index],
                    StopMatcher(stop),
                    max_tokens,
                    prefixes=self.prefix_cache,
                    constraint=constraint,
                )
            )
        answers = dict(self._begin(self._run_batch(requests, batch_size, on_answer)))
        return [answers[index] for index in range(len(prompts))]

    def stream_chat(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        *,
        enable_thinking: bool | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: str | Sequence[str] = (),
        response_format: Mapping[str, Any] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
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
            response_format: What the answer must follow after its reasoning.
            tool_choice: As in :meth:`chat`.
            progress: Called while the prompt is evaluated.
            **template_options: Further variables of the template.

        Yields:
            A chunk for each token, whose ``deltas`` tell reasoning, content and calls apart.
        """
        from flashmoe.chat import tool_schemas
        from flashmoe.reply import ReplyParser, starts_in_reasoning, tool_style

        prompt = self.chat_prompt(
            messages, tools, enable_thinking=enable_thinking, **template_options
        )
        ids = prompt.ids
        stable = None
        if self.prefix_cache is not None:
            options = {**template_options, "add_generation_prompt": False}
            turns = self.chat_prompt(messages, tools, enable_thinking=enable_thinking, **options)
            stable = stable_tokens(turns.ids, ids)
        template = self.model.tokenizer.chat_template
        parser = ReplyParser(
            style=tool_style("\n".join(template.sources.values())) if tools and template else None,
            in_reasoning=starts_in_reasoning(prompt.text),
            tools=tool_schemas(tools or ()),
        )
        constraint = self._constraint(response_format, prompt.text, tools, tool_choice)
        chunks = self._start(ids, max_tokens, stop, progress, stable, constraint)
        return self._begin(parsed(chunks, parser))

    def chat(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        *,
        enable_thinking: bool | None = None,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: str | Sequence[str] = (),
        response_format: Mapping[str, Any] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
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
            response_format: What the answer must follow after its reasoning; see :meth:`stream`.
            tool_choice: ``"required"``, or ``{"type": "function", "function": {"name": …}}``: the
                answer, after its reasoning, is a valid call; else that is up to the model.
            progress: Called while the prompt is evaluated.
            **template_options: Further variables of the template, such as
                ``reasoning_effort``.

        Returns:
            The answer. ``content`` is what it says, ``reasoning`` what the model thought before,
            ``tool_calls`` what it wants to be called; ``text`` is all of it as it was written.

        Raises:
            TemplateError: The checkpoint has no chat template, or it refuses the conversation.
        """
        chunks = self.stream_chat(
            messages,
            tools,
            enable_thinking=enable_thinking,
            max_tokens=max_tokens,
            stop=stop,
            response_format=response_format,
            tool_choice=tool_choice,
            progress=progress,
            **template_options,
        )
        return self._collect(chunks, parts=True)

    def render(
        self,
        /,
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
        return self.chat_prompt(
            messages, tools, enable_thinking=enable_thinking, **template_options
        ).text

    def chat_prompt(
        self,
        /,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        *,
        enable_thinking: bool | None = None,
        **template_options: Any,
    ) -> ChatPrompt:
        """As :meth:`render`, with the tokens; messages put no control tokens among them.

        Args:
            messages: Dictionaries with ``role`` and ``content``.
            tools: Functions the model may call.
            enable_thinking: Passed to the template if not ``None``.
            **template_options: Further variables of the template.
        """
        from flashmoe.chat_prompt import chat_prompt

        if enable_thinking is not None:
            template_options["enable_thinking"] = enable_thinking
        return chat_prompt(self.model.tokenizer, messages, tools, **template_options)

    def cancel(self) -> None:
        """Stop a call that runs in another thread; it raises ``CancelledError`` within a layer.

        Without such a call nothing happens.
        """
        session, batch = self._session, self._batch
        if batch is not None:
            batch.cancel()
        if session is not None:
            session.cancel()

    def close(self) -> None:
        """Give the sequence's memory back; a call that still runs is cancelled.

        May be called twice.
        """
        self._closed = True
        batch = self._batch
        if batch is not None:
            batch.cancel()
        self._forget_session()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Keep the sequence of the last call in a file, so that it can go on another time.

        Ends a stream that was left before its end. The file holds the conversation; only its owner
        can read it.

        Args:
            path: Replaced if it is there; never half written.

        Raises:
            ArgumentError: There is no sequence yet, or the last call was a batch.
            ClosedError: The generator is closed.
            OSError: The file cannot be written.
        """
        from pathlib import Path

        from flashmoe.prefix_cache import model_key
        from flashmoe.prefix_files import write

        if self._latest is not None:
            self._latest.replace()
        with self._turn:
            session = self._session
            self._check_open()
            ids = self._evaluated(session)
            if session is None or not ids.size:
                raise ArgumentError("there is no sequence to save; call generate() or chat() first")
            write(Path(path), model_key(self.model), ids, session.save())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on with a saved sequence: a later prompt that begins with it continues there.

        From then on a call goes on with the sequence of the call before wherever its prompt begins
        with that; any other prompt begins anew.

        Args:
            path: What :meth:`save` wrote with the same model.

        Raises:
            ModelFormatError: Not a saved sequence, or of another model, device or ``kv_dtype``.
            IntegrityError: The file was cut or changed.
            BudgetError: There is no memory for a sequence so long.
        """
        from pathlib import Path

        from flashmoe.prefix_cache import model_key
        from flashmoe.prefix_files import read

        if self._latest is not None:
            self._latest.replace()
        with self._turn:
            ids, snapshot = read(Path(path), model_key(self.model))
            self._open_session().load(snapshot)
            self._prompt, self._said, self._loaded = ids, [], True

    def _open_session(self) -> _core.Session:
        """The one of the call before, or a new one; never one that close() does not know of."""
        session = self._session
        if session is None:
            session = self._session = self.model.new_session()
        self._check_open()
        return session

    def _check_open(self) -> None:
        """Asked after what close() ends was put where it looks, which it does after it says so."""
        if self._closed:
            self._forget_session()
            raise ClosedError("the generator is closed")

    def _forget_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()  # first: nobody saves it without its tokens
        self._prompt, self._said, self._loaded = None, [], False

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _encode(self, prompt: Prompt) -> NDArray[np.int32]:
        self._check_open()
        self.model.check_open()
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

    def _constraint(
        self,
        response_format: Mapping[str, Any] | None,
        prompt: str = "",
        tools: Sequence[Any] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
    ) -> ConstraintFactory | None:
        """What an answer to a prompt must follow, ``None`` for anything."""
        if response_format is None and tool_choice is None:
            return None
        from flashmoe.structured import compile_chat_constraint

        return compile_chat_constraint(
            self.model.tokenizer, response_format, prompt, tools, tool_choice
        )

    def _begin(self, items: Iterator[T]) -> Stream[T]:
        """Let a call take the place of the one before, when it is its turn."""
        if self._latest is not None:
            self._latest.replace()
        self._latest = stream = Stream(self._locked(items))
        return stream

    def _locked(self, items: Iterator[T]) -> PyGenerator[T, None, None]:
        with self._turn:
            yield from items

    def _collect(self, chunks: Iterator[Chunk], *, parts: bool = False) -> Generation:
        return Generation.of(list(chunks), self.stats, parts=parts)

    def _start(
        self,
        prompt: Prompt,
        max_tokens: int,
        stop: str | Sequence[str],
        progress: Callable[[int, int], object] | None,
        stable: int | None = None,
        constraint: ConstraintFactory | None = None,
    ) -> Iterator[Chunk]:
        """Check what is asked for."""
        ids = self._encode(prompt)
        if max_tokens < 1:
            raise ArgumentError(f"max_tokens must be at least 1, not {max_tokens}")
        return self._run(ids, max_tokens, StopMatcher(stop), progress, stable, constraint)

    def _session_for(self, ids: NDArray[np.int32]) -> _core.Session:
        """An empty one, or one that has the beginning of a prompt."""
        session = self._open_session()
        session.resume()  # a cancel that came when nothing ran
        position, begin = session.position if self._loaded else 0, self._evaluated(session)
        if not (0 < position < ids.size and begin.tolist() == ids[:position].tolist()):
            session.reset()
            self._loaded = False
        self._prompt, self._said = ids, []
        return session

    def _evaluated(self, session: _core.Session | None) -> NDArray[np.int32]:
        """The tokens that a session has."""
        import numpy as np

        known = () if self._prompt is None else self._prompt
        ids = np.concatenate([known, self._said]).astype(np.int32)
        return ids[: session.position if session else 0]

    def _run(
        self,
        ids: NDArray[np.int32],
        max_tokens: int,
        matcher: StopMatcher,
        progress: Callable[[int, int], object] | None,
        stable: int | None,
        constraint: ConstraintFactory | None,
    ) -> Iterator[Chunk]:
        """One answer from its first prompt token to its last token."""
        import numpy as np

        session = self._session_for(ids)
        meter = Meter(self.model.info(), ids.size)
        meter.attach(session)
        self.stats = meter.stats
        position, cache = session.position, self.prefix_cache
        if position and cache is not None and cache.exact:
            cache = None  # nobody knows in which steps this sequence began
        points = PrefixPoints(cache, ids, stable)
        position = position or points.begin(session)
        meter.stats.cached_tokens = position
        follow = constraint.start() if constraint else None
        answer = Answer(
            self.model, ids, self.sampler, matcher, max_tokens, meter, constraint=follow
        )
        logits = np.empty((1, self.model.vocab_size), np.float32)

        for first, last in points.steps(self.model, position):
            session.eval(ids[first:last], logits[: last == ids.size])
            points.evaluated(session)
            if progress is not None:
                progress(last, ids.size)
        meter.prefilled()

        step = np.empty(1, np.int32)
        while True:
            chunk = answer.take(logits[0])
            yield chunk
            if chunk.finish_reason:
                points.ended(session, self._said)
                return
            step[0] = chunk.token_id
            self._said.append(chunk.token_id)  # first: the session never has more than is known
            session.eval(step, logits)

    def _run_batch(
        self,
        requests: Sequence[Request],
        batch_size: int | None,
        on_answer: Callable[[int, Generation], object] | None,
    ) -> Iterator[tuple[int, Generation]]:
        """All answers of a batch, as they end."""
        self._forget_session()  # the batch may need its memory
        batch = self._batch = Batch(self.model, requests, batch_size)
        try:
            self._check_open()
            with closing(batch.run()) as answers:
                for index, answer in answers:
                    if on_answer is not None:
                        on_answer(index, answer)
                    yield index, answer
        finally:
            self._batch = None
