"""Tries grammars that clients send in a process of their own, with limits on time and memory.

A schema of a few hundred bytes can take longer to compile than anybody lives, and a grammar can
overflow the stack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flashmoe.errors import ArgumentError
from flashmoe.limited_worker import LimitedWorker, serve

if TYPE_CHECKING:
    from flashmoe.tokenizer import Tokenizer


class GrammarWorker(LimitedWorker):
    """Tries grammars of one tokenizer."""

    module = "grammar_worker"
    error = ArgumentError

    def __init__(self, tokenizer: Tokenizer, seconds: float = 1.0, memory: int = 512 << 20) -> None:
        """Prepare; nothing is started yet.

        Args:
            tokenizer: Of the model that is to follow the grammars.
            seconds: Longest time of one grammar.
            memory: Bytes that the process may have (not enforced by macOS).
        """
        super().__init__(seconds, memory)
        self._tokenizer = tokenizer

    def opening(self) -> Any:
        """The tokenizer."""
        return self._tokenizer.grammar_source()

    def __call__(self, grammar: str, what: str) -> None:
        """Refuse a grammar that takes too much, or is wrong.

        Args:
            grammar: In llguidance's own form.
            what: What it is, for errors.

        Raises:
            ArgumentError: It takes too much to compile, or to find the first token; or it is wrong.
        """
        answer = self.ask([grammar, what])
        if answer is None:
            raise ArgumentError(
                f"{what}: compiling it takes more than {self.seconds:g} s or "
                f"{self.memory >> 20} MB; simplify it"
            )
        if "error" in answer:
            raise ArgumentError(answer["error"])


def work(memory: int) -> None:
    """Compile what standard input asks for, in the process.

    Args:
        memory: Bytes that it may have.
    """
    serve(_prepare, memory)


def _prepare(source: Any) -> Callable[[Any], dict[str, str]]:
    from flashmoe.structured import Grammars

    grammars = Grammars(*source)

    def answer(question: Any) -> dict[str, str]:
        try:
            grammars.try_out(*question)
        except ArgumentError as error:
            return {"error": str(error)}
        return {}

    return answer
