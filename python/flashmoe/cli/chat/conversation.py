"""What has been said in a chat, and how it goes on; nothing here knows of terminals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from flashmoe.cli.chat.interrupts import Interrupts
from flashmoe.cli.options import SAMPLER_NAMES
from flashmoe.errors import ArgumentError
from flashmoe.sampler import Sampler

if TYPE_CHECKING:
    from flashmoe.answer import Chunk
    from flashmoe.generator import Generator
    from flashmoe.reply import ToolCall


class Screen(Protocol):
    """Where an answer appears."""

    def progress(self, done: int, total: int) -> None:
        """So much of the prompt was evaluated."""

    def show(self, chunk: Chunk) -> None:
        """A token came."""

    def end(self, stopped: bool) -> None:
        """The answer is complete, or was stopped."""

    def called(self, call: ToolCall, result: str) -> None:
        """A function was called, or refused."""


@dataclass
class Conversation:
    """Messages, and the settings with which they are answered.

    Attributes:
        generator: Answers.
        system: The system message, if any.
        think: Passed to the chat template if not None.
        max_tokens: Longest answer.
        functions: What the model may call, by name.
        tools_on: Whether it may, now.
        approve: Asked before each call.
        interrupts: Of answers; nothing is heard unless it was entered.
        max_rounds: Answers to one message that may call functions.
        messages: All of them but the system message.
    """

    generator: Generator
    system: str | None = None
    think: bool | None = None
    max_tokens: int = 2048
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)
    tools_on: bool = True
    approve: Callable[[ToolCall], bool] = lambda _call: False
    interrupts: Interrupts = field(default_factory=Interrupts)
    max_rounds: int = 8
    messages: list[dict[str, Any]] = field(default_factory=list)

    def say(self, text: str, screen: Screen) -> None:
        """Say something, and let it be answered; see :meth:`answer`.

        Args:
            text: The user's message.
            screen: Where the answer appears.
        """
        self.messages.append({"role": "user", "content": text})
        before = len(self.messages)
        try:
            self.answer(screen)
        finally:
            if len(self.messages) == before:  # nothing was answered: as if never said
                self.messages.pop()

    def answer(self, screen: Screen) -> None:
        """Answer what was said last, calling functions as the model wants.

        What Ctrl-C cuts off stays in the conversation as far as it came.

        Args:
            screen: Where the answer appears.

        Raises:
            FlashMoEError: As :meth:`Generator.chat`; the conversation is as it was before.
        """
        from flashmoe.tool_loop import call_function

        for _ in range(self.max_rounds + 1):
            calls = self._answer_once(screen)
            if not calls:
                return
            for call in calls:
                allowed = self.approve(call)
                result = call_function(call, self.functions if allowed else None)
                self.messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
                screen.called(call, result)

    def _answer_once(self, screen: Screen) -> Sequence[ToolCall]:
        from flashmoe.answer import Generation

        chunks: list[Chunk] = []
        stopped = True
        system = [{"role": "system", "content": self.system}] if self.system else []
        stream = self.generator.stream_chat(
            [*system, *self.messages],
            list(self.functions.values()) if self.tools_on and self.functions else None,
            enable_thinking=self.think,
            max_tokens=self.max_tokens,
            progress=lambda done, total: self._draw(screen.progress, done, total),
        )
        try:
            for chunk in stream:
                chunks.append(chunk)
                self._draw(screen.show, chunk)
            stopped = False
        except KeyboardInterrupt:
            pass  # what was said stays said
        finally:
            with self.interrupts.held():
                screen.end(stopped)
        if self.interrupts.heard and not stopped:  # while the end was drawn: call nothing now
            stopped = True
            screen.end(stopped)
        if not chunks:
            return ()
        answer = Generation.of(chunks, self.generator.stats, parts=True)
        if stopped:
            answer = replace(answer, tool_calls=[])
        self.messages.append(answer.message)
        return answer.tool_calls

    def _draw(self, how: Callable[..., None], *what: Any) -> None:
        with self.interrupts.held():
            how(*what)
        self.interrupts.check()

    # ---- going back ----

    def clear(self) -> None:
        """Forget all messages."""
        self.messages.clear()

    def undo(self) -> bool:
        """Forget the last message of the user's and all after it; False if there is none."""
        return self._back_to_user(keep=False)

    def retry(self) -> bool:
        """Forget what follows the last message of the user's; False if there is none."""
        return self._back_to_user(keep=True)

    def _back_to_user(self, *, keep: bool) -> bool:
        for i in reversed(range(len(self.messages))):
            if self.messages[i]["role"] == "user":
                del self.messages[i + keep :]
                return True
        return False

    # ---- settings ----

    def settings(self) -> dict[str, Any]:
        """All that :meth:`set` can change, by name; None is the model's own."""
        sampler = self.generator.sampler
        return {n: getattr(sampler, n, None) for n in SAMPLER_NAMES} | {
            "max_tokens": self.max_tokens
        }

    def set(self, name: str, value: str) -> None:
        """Change a setting.

        Args:
            name: One of :meth:`settings`.
            value: As typed; ``default`` for the model's own.

        Raises:
            ArgumentError: There is no such setting, or that is no value for it.
        """
        if name not in (*SAMPLER_NAMES, "max_tokens"):
            names = ", ".join((*SAMPLER_NAMES, "max_tokens"))
            raise ArgumentError(f"there is no setting {name!r}; there are {names}")
        whole = name in ("top_k", "seed", "max_tokens")
        try:
            number = None if value == "default" else int(value) if whole else float(value)
        except ValueError as error:
            raise ArgumentError(f"{value!r} is not a value for {name}") from error
        if name == "max_tokens":
            if number is None or number < 1:
                raise ArgumentError(f"{value!r} is not a value for max_tokens")
            self.max_tokens = int(number)
            return
        sampler = self.generator.sampler
        assert isinstance(sampler, Sampler)
        changed: Any = {name: number}
        self.generator.sampler = replace(sampler, **changed)
