"""``POST /v1/completions``: prompts without a conversation."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response

from flashmoe.errors import FlashMoEError
from flashmoe.server.endpoint import Call, read_sampler
from flashmoe.server.failures import Failure, failure_of
from flashmoe.server.fields import Fields
from flashmoe.server.openai_chat import MOST_STOPS, timings_of, usage_of
from flashmoe.server.service import Ask, Piece, Progress, Running, Service
from flashmoe.server.stream import EventStream, data, sign_of_life

MOST_TOP = 20


async def completions(call: Call) -> Response:
    """Go on with a prompt.

    Args:
        call: The request.
    """
    fields = call.fields
    call.service.check_name(fields.text("model"))
    prompt = _prompt(fields)
    top = fields.integer("logprobs", 0, MOST_TOP)
    for name in ("suffix", "echo"):
        if fields.any(name):
            raise Failure(400, f"{name} is not supported", param=name)
    for name in ("n", "best_of"):
        if (fields.integer(name, 1, 1 << 20) or 1) != 1:
            raise fields.wrong(name, "1: ask several times for several answers")
    ask = Ask(
        sampler=read_sampler(fields),
        max_tokens=fields.integer("max_tokens", 1, 1 << 30) or 16,
        stop=fields.texts("stop", MOST_STOPS),
        top_logprobs=top or 0,
    )
    options = fields.object("stream_options")
    usage = options is not None and options.flag("include_usage")
    stream = fields.flag("stream")
    running = await call.start(lambda: call.service.complete(prompt, ask))
    form = _Form(call.service, top is not None)
    if stream:
        events = form.stream(running, usage)
        return EventStream(events, running, call.service.settings.write_timeout)
    return JSONResponse(await form.whole(call, running))


def _prompt(fields: Fields) -> str | Sequence[int]:
    """Text or token ids; a list of one of them is as good."""
    prompt = fields.any("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return prompt
    raise fields.wrong("prompt", "one text or one list of token ids, not empty")


class _Form:
    """The shape of one request's answer."""

    def __init__(self, service: Service, logprobs: bool) -> None:
        self._service = service
        self._logprobs = logprobs
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._offset = 0

    def _body(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._service.name,
            "choices": choices,
            **more,
        }

    def _choice(self, text: str, reason: str | None, pieces: Sequence[Piece]) -> dict[str, Any]:
        logprobs = self._tokens(pieces) if self._logprobs else None
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _tokens(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Log probabilities in four lists, one entry a token."""

        def text(token: int) -> str:
            return self._service.model.tokenizer.decode([token], skip_special_tokens=False)

        offsets = []
        for piece in pieces:
            offsets.append(self._offset)
            self._offset += len(piece.chunk.text)
        return {
            "tokens": [text(piece.chunk.token_id) for piece in pieces],
            "token_logprobs": [max(piece.chunk.logprob, -9999.0) for piece in pieces],
            "top_logprobs": [{text(t): p for t, p in piece.chunk.top_logprobs} for piece in pieces],
            "text_offset": offsets,
        }

    async def whole(self, call: Call, running: Running) -> dict[str, Any]:
        """The answer in one body."""
        pieces: list[Piece] = []
        last = await call.whole(running, pieces.append)
        choice = self._choice(running.content, last.reason, pieces)
        return self._body([choice], usage=usage_of(running), timings=timings_of(running))

    async def stream(self, running: Running, usage: bool) -> AsyncGenerator[bytes, None]:
        """The answer as it comes."""
        try:
            async for update in running:
                if isinstance(update, Progress):
                    yield sign_of_life(update)
                    continue
                text = "".join(delta.text for delta in update.deltas)
                if text or update.reason or self._logprobs:
                    yield data(self._body([self._choice(text, update.reason, [update])]))
        except (Failure, FlashMoEError) as error:
            yield data(failure_of(error).openai())
            return
        if usage:
            more = {"usage": usage_of(running), "timings": timings_of(running)}
            yield data(self._body([], **more))
        yield b"data: [DONE]\n\n"
