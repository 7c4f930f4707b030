"""Runs chat templates in a process of their own, with limits on time and memory.

A template is code of whoever made the checkpoint. In the process of a server one that never ends
would hold a thread for good, and one that builds a huge text would take the model's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flashmoe.errors import TemplateError
from flashmoe.limited_worker import LimitedWorker, serve
from flashmoe.template_rendering import TemplateRenderer


class TemplateWorker(LimitedWorker):
    """Takes the place of a :class:`TemplateRenderer`."""

    module = "template_worker"
    error = TemplateError

    def __init__(self, seconds: float = 1.5, memory: int = 512 << 20) -> None:
        """Prepare; nothing is started yet.

        Args:
            seconds: Longest time of one rendering.
            memory: Bytes that the process may have (not enforced by macOS).
        """
        super().__init__(seconds, memory)

    def __call__(self, source: str, variables: dict[str, Any]) -> str:
        """Render.

        Args:
            source: Text of the template.
            variables: Plain values.

        Raises:
            TemplateError: As of :class:`TemplateRenderer`; or a limit is reached.
        """
        try:
            answer = self.ask([source, variables])
        except (ValueError, TypeError, RecursionError) as error:
            raise TemplateError(f"the chat template cannot be given its input: {error}") from error
        if answer is None:
            raise TemplateError(
                f"the chat template took more than {self.seconds:g} s or "
                f"{self.memory >> 20} MB; it does not fit this conversation or never ends"
            )
        if "error" in answer:
            raise TemplateError(answer["error"])
        return str(answer["text"])


def work(memory: int) -> None:
    """Render what standard input asks for, in the process.

    Args:
        memory: Bytes that it may have.
    """
    serve(_prepare, memory)


def _prepare(_: None) -> Callable[[Any], dict[str, str]]:
    render = TemplateRenderer()
    render("", {})  # everything is imported before there are limits

    def answer(question: Any) -> dict[str, str]:
        try:
            return {"text": render(*question)}
        except TemplateError as error:
            if isinstance(error.__cause__, MemoryError):
                raise  # ends the process: what was built may still be held
            return {"error": str(error)}

    return answer
