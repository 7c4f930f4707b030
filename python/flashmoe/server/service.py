"""From what a client asks to a running request, whatever the interface it came by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flashmoe.answer import Chunk, Stats
from flashmoe.batch import Event, Request
from flashmoe.chat_prompt import ChatPrompt, chat_prompt
from flashmoe.engine import Engine, Place
from flashmoe.errors import ContextLengthError
from flashmoe.grammar_worker import GrammarWorker
from flashmoe.model import Model
from flashmoe.prefix_cache import PrefixCache
from flashmoe.prefix_points import stable_tokens
from flashmoe.reply import Delta, ReplyParser, ToolCall, starts_in_reasoning, tool_style
from flashmoe.sampler import Sampler
from flashmoe.server.failures import Failure
from flashmoe.server.metrics import Metrics
from flashmoe.server.settings import Settings
from flashmoe.stop import StopMatcher
from flashmoe.template_worker import TemplateWorker

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flashmoe.structured import ConstraintFactory


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks for.

    Attributes:
        sampler: How tokens are drawn.
        max_tokens: Longest answer; ``None``: the server's own limit.
        stop: Texts that end the answer; not looked for in reasoning.
        top_logprobs: Likeliest tokens to tell with each token.
        messages: The conversation, in OpenAI's form.
        tools: What the model may call.
        tool_choice: ``"auto"``, ``"required"``, or the name of one of the tools.
        one_call: At most one call.
        response_format: What the answer must be, see :meth:`Generator.chat`.
        template_options: Variables of the chat template.
    """

    sampler: Sampler
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    top_logprobs: int = 0
    messages: Sequence[Mapping[str, Any]] = ()
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str = "auto"
    one_call: bool = False
    response_format: Mapping[str, Any] | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Usage:
    """Tokens of a request."""

    prompt: int
    completion: int = 0
    reasoning: int = 0
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """So much of the prompt was evaluated; ``done`` 0 while the request waits."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of the answer.

    Attributes:
        deltas: What it adds to the answer; often nothing yet.
        chunk: The token.
        reason: On the last one ``"stop"``, ``"length"`` or ``"tool_calls"``.
        stop: The stop string that ended the answer.
    """

    deltas: Sequence[Delta]
    chunk: Chunk
    reason: str | None = None
    stop: str | None = None


class Service:
    """One model and all that its interfaces share.

    Attributes:
        model: The model.
        engine: Runs the requests.
        settings: Limits.
        metrics: What has happened so far.
        prefixes: Conversations that may be gone on with.
        name: What clients call the model.
        started: When, in seconds since 1970.
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        """Begin to serve a model.

        Args:
            model: Stays open as long as the service.
            settings: Limits.
        """
        self.model = model
        self.settings = settings
        self.name = settings.name or model.path.name or "model"
        self.started = int(time.time())
        self.engine = Engine(model, queue=settings.queue, batch_size=settings.batch_size)
        self.metrics = Metrics(self.engine)
        self.prefixes: PrefixCache | None = None
        if settings.prefix_memory or settings.prefix_disk:
            self.prefixes = PrefixCache(
                model,
                memory=settings.prefix_memory,
                directory=settings.prefix_directory,
                disk=settings.prefix_disk,
            )
        self._templates = TemplateWorker()
        self._grammars = GrammarWorker(model.tokenizer)
        template = model.tokenizer.chat_template
        if template and self._templates.possible():
            template = template.rendered_by(self._templates)
        self._template = template
        self._style = tool_style("\n".join(template.sources.values())) if template else None

    def check_name(self, name: str | None) -> None:
        """Whether a request may call the model so.

        Args:
            name: As the request has it; ``None`` is fine.
        """
        known = (self.name, *self.settings.aliases)
        if name is not None and name not in known and "*" not in known:
            raise Failure(
                404,
                f"there is no model {name!r} here, only {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def chat(self, ask: Ask) -> Running:
        """Put a conversation into the queue. Takes a while: not for the event loop's thread.

        Args:
            ask: With messages.
        """
        prompt = self._render(ask)
        parser = ReplyParser(
            style=self._style if ask.tools else None,
            in_reasoning=starts_in_reasoning(prompt.text),
            tools=ask.tools,
        )
        constraint = self._constraint(ask, prompt.text)
        ids = prompt.ids
        stable = None
        if self.prefixes is not None:
            turns = self._render(ask, add_generation_prompt=False)
            stable = stable_tokens(turns.ids, ids)
        return Running(self, self._request(ids, ask, stable, constraint), ask, parser)

    def complete(self, prompt: str | Sequence[int], ask: Ask) -> Running:
        """Put a prompt into the queue; see :meth:`chat`.

        Args:
            prompt: Text, or token ids.
            ask: Without messages.
        """
        if isinstance(prompt, str):
            prompt = self.model.tokenizer.encode(prompt, add_special_tokens=True)
        return Running(self, self._request(prompt, ask), ask, None)

    def count(self, ask: Ask) -> int:
        """Tokens of a conversation's prompt.

        Args:
            ask: With messages.
        """
        return len(self._render(ask).ids)

    def close(self) -> None:
        """Let what runs end, for a while; then end it."""
        self.engine.drain(self.settings.grace)
        self.engine.close()
        if self.prefixes is not None:
            self.prefixes.close()
        self._templates.close()
        self._grammars.close()

    def _render(self, ask: Ask, **options: Any) -> ChatPrompt:
        options = {**ask.template_options, **options}
        return chat_prompt(
            self.model.tokenizer,
            list(ask.messages),
            list(ask.tools) or None,
            self._template,
            **options,
        )

    def _constraint(self, ask: Ask, prompt: str) -> ConstraintFactory | None:
        """What the answer must follow."""
        choice: str | Mapping[str, Any] | None = ask.tool_choice if ask.tools else None
        if choice not in (None, "auto", "required"):
            choice = {"type": "function", "function": {"name": choice}}
        if ask.response_format is None and choice in (None, "auto"):
            return None
        from flashmoe.structured import compile_chat_constraint

        trial = self._grammars if self._grammars.possible() else None
        return compile_chat_constraint(
            self.model.tokenizer, ask.response_format, prompt, ask.tools, choice, trial
        )

    def _request(
        self,
        tokens: Sequence[int],
        ask: Ask,
        stable: int | None = None,
        constraint: ConstraintFactory | None = None,
    ) -> Request:
        ids: NDArray[np.int32] = self.model.check_tokens(tokens)
        context = self.model.context_length
        if ids.size >= context:
            raise ContextLengthError(
                f"this model's context has {context} tokens, and the prompt alone has {ids.size}",
                ids.size,
                context,
            )
        longest = min(ask.max_tokens or self.settings.max_tokens, context - ids.size)
        return Request(
            ids,
            ask.sampler,
            StopMatcher(),
            longest,
            ask.top_logprobs,
            prefixes=self.prefixes,
            stable=stable,
            constraint=constraint,
        )


class Running:
    """A request under way: an asynchronous iterator of what happens to it.

    Attributes:
        usage: Tokens so far.
        stats: What the answer costs, once it has begun.
        reasoning: What the model thought so far.
        content: Its answer so far.
        tool_calls: Its calls, at the end.
    """

    def __init__(
        self, service: Service, request: Request, ask: Ask, parser: ReplyParser | None
    ) -> None:
        """Prepare; :meth:`start` puts it into the queue."""
        self._service = service
        self._request = request
        self._parser = parser
        self._matcher = StopMatcher(ask.stop)
        self._one_call = ask.one_call
        self._thinking = parser is not None and parser.in_reasoning
        self._over = False
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self.usage = Usage(int(request.ids.size))
        self.stats = Stats()
        self.reasoning = self.content = ""
        self.tool_calls: Sequence[ToolCall] = ()

    def start(self, client: str, place: Place | None = None) -> None:
        """Put it into the queue; on the event loop's thread.

        Args:
            client: Who asks; clients take turns.
            place: Held in the queue for it.
        """
        loop = asyncio.get_running_loop()
        self._until = loop.time() + self._service.settings.request_timeout

        def deliver(event: Event) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._job = self._service.engine.submit(self._request, deliver, client, place)
        self.stats = self._job.growing.meter.stats

    def close(self) -> None:
        """Nobody waits any more. May be called twice, and after the end."""
        if not self._over:
            self._service.engine.cancel(self._job)
            self._finish("cancelled")

    def __aiter__(self) -> Running:
        return self

    async def __anext__(self) -> Progress | Piece:
        if self._over:
            raise StopAsyncIteration
        event = await self._next_event()
        if event is None or (event.error is None and event.chunk is None):
            return Progress(self._job.growing.position, self.usage.prompt)
        if event.chunk is not None:
            return self._take(event.chunk)
        self._finish("failed")
        raise event.error or AssertionError

    async def _next_event(self) -> Event | None:
        """The next event; None if there is none for a while."""
        settings = self._service.settings
        left = self._until - asyncio.get_running_loop().time()
        if left <= 0:
            self.close()
            raise Failure(504, f"no answer within {settings.request_timeout:g} s", code="timeout")
        try:
            return await asyncio.wait_for(self._events.get(), min(settings.ping, left))
        except TimeoutError:
            return None

    def _take(self, chunk: Chunk) -> Piece:
        deltas = self._parse(chunk)
        self.usage.completion += 1
        self.usage.cached = self.stats.cached_tokens
        if deltas:
            self._thinking = deltas[-1].kind == "reasoning"
        self.usage.reasoning += self._thinking
        kept, cut = self._cut(deltas, chunk.finish_reason is not None)
        reason = "stop" if cut else chunk.finish_reason
        if reason is None:
            return Piece(kept, chunk)
        if self._parser is not None:
            self._parser.finish()
            self.tool_calls = self._parser.tool_calls[: 1 if self._one_call else None]
        if cut and chunk.finish_reason is None:
            self._service.engine.cancel(self._job)
        if reason == "stop" and self.tool_calls:
            reason = "tool_calls"
        self._finish(reason)
        return Piece(kept, chunk, reason, self._matcher.matched)

    def _parse(self, chunk: Chunk) -> list[Delta]:
        if self._parser is None:
            return [Delta("content", chunk.text)] if chunk.text else []
        deltas = self._parser.push(chunk.text)
        return deltas if chunk.finish_reason is None else [*deltas, *self._parser.finish()]

    def _cut(self, deltas: Sequence[Delta], last: bool) -> tuple[list[Delta], bool]:
        """Deltas before a stop string or one call too many, and whether there was one."""
        kept: list[Delta] = []
        for delta in deltas:
            if self._one_call and delta.index > 0:
                return kept, True
            if delta.kind == "content":
                text, stopped = self._matcher.push(delta.text)
                kept += self._content(text)
                if stopped:
                    return kept, True
                continue
            kept += self._content(self._matcher.flush())
            kept.append(delta)
            if delta.kind == "reasoning":
                self.reasoning += delta.text
        if last:
            kept += self._content(self._matcher.flush())
        return kept, False

    def _content(self, text: str) -> list[Delta]:
        self.content += text
        return [Delta("content", text)] if text else []

    def _finish(self, outcome: str) -> None:
        self._over = True
        self._service.metrics.ended(outcome, self.usage, self.stats)
