"""Chat templates: a conversation as the text of a prompt, just as transformers renders it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import isfunction, ismethod
from pathlib import Path
from typing import Any

from flashmoe.errors import TemplateError
from flashmoe.messages import normalise_messages
from flashmoe.plain_data import plain_value
from flashmoe.template_rendering import TemplateRenderer

__all__ = ["ChatTemplate", "Tool", "normalise_messages"]

Tool = Mapping[str, Any] | Callable[..., Any]
Renderer = Callable[[str, dict[str, Any]], str]
"""Runs the text of a template with its variables."""

_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """The chat template of a checkpoint.

    Rendering is byte for byte what ``apply_chat_template`` of transformers 5.23 gives.
    It runs in a sandbox with limits on what a template may build and print, but not on
    its time, unless a :class:`~flashmoe.template_worker.TemplateWorker` runs it. Templates
    belong to the checkpoint and are not to be taken from requests.

    Attributes:
        sources: Template texts by name; the usual one is called ``default``.
        special_tokens: Names such as ``bos_token`` that templates may use.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        special_tokens: Mapping[str, str] | None = None,
        renderer: Renderer | None = None,
    ) -> None:
        """Keep the template; it is compiled when first used.

        Args:
            source: Text of the template, or several by name (``default``, ``tool_use``).
            special_tokens: Names such as ``bos_token`` and the text of each.
            renderer: Runs the template; ``None``: this process does.
        """
        self.sources = {"default": source} if isinstance(source, str) else dict(source)
        self.special_tokens = dict(special_tokens or {})
        self._renderer = renderer or TemplateRenderer()

    @classmethod
    def from_directory(
        cls, path: Path, special_tokens: Mapping[str, str], configured: object = None
    ) -> ChatTemplate | None:
        """Find the template of a checkpoint.

        Template files (``chat_template.jinja`` and ``additional_chat_templates/``) come
        first, then the older ``chat_template.json``, then what the tokenizer's
        configuration holds.

        Args:
            path: The checkpoint directory.
            special_tokens: Names such as ``bos_token`` and the text of each.
            configured: Value of ``chat_template`` in ``tokenizer_config.json``.

        Returns:
            The template, ``None`` where the checkpoint has none.

        Raises:
            TemplateError: A file cannot be read or holds no template.
        """
        sources = _template_files(path)
        if not sources:
            legacy = path / "chat_template.json"
            if legacy.is_file():
                sources = _named_sources(legacy, _read_legacy(legacy))
        if not sources and configured is not None:
            sources = _named_sources(path / "tokenizer_config.json", configured)
        return cls(sources, special_tokens) if sources else None

    def render(
        self,
        /,
        messages: Sequence[Any],
        *,
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = True,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """Render a conversation.

        Args:
            messages: Messages as dictionaries, dataclasses or pydantic models. Keys
                whose value is ``None`` count as absent.
            tools: Tools as schemas, or as Python functions with type hints and a
                docstring.
            add_generation_prompt: End with the header of the answer to be written.
            documents: Documents for templates that read them.
            **kwargs: Further variables of the template, such as ``enable_thinking``.
                What is not passed stays undefined, which is not the same as ``None``.

        Returns:
            The prompt. Encode it without adding special tokens: it has them already.

        Raises:
            TemplateError: The template refuses the conversation, fails on it, or
                prints too much.
        """
        variables = {
            **self.special_tokens,
            **plain_value(kwargs),
            "messages": _prepare_messages(messages),
            "tools": None if tools is None else tool_schemas(tools),
            "documents": _prepare_documents(documents),
            "add_generation_prompt": add_generation_prompt,
        }
        name = "tool_use" if tools is not None and "tool_use" in self.sources else "default"
        return self._run(name, variables)

    def rendered_by(self, renderer: Renderer) -> ChatTemplate:
        """The same template, run by another.

        Args:
            renderer: Such as a :class:`~flashmoe.template_worker.TemplateWorker`.
        """
        return ChatTemplate(self.sources, self.special_tokens, renderer)

    def _run(self, name: str, variables: dict[str, Any]) -> str:
        if name not in self.sources:
            raise TemplateError(
                f"the checkpoint has chat templates for {sorted(self.sources)} only, not {name!r}"
            )
        return self._renderer(self.sources[name], variables)


def _template_files(path: Path) -> dict[str, str]:
    files = {"default": path / "chat_template.jinja"}
    for file in sorted((path / "additional_chat_templates").glob("*.jinja")):
        files[file.name.removesuffix(".jinja")] = file
    return {name: _read_text(file) for name, file in files.items() if file.is_file()}


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TemplateError(f"{file}: cannot be read: {error}") from error


def _read_legacy(file: Path) -> object:
    try:
        return json.loads(_read_text(file))["chat_template"]
    except (ValueError, KeyError, TypeError) as error:
        raise TemplateError(f"{file}: holds no chat_template: {error}") from error


def _named_sources(file: Path, value: object) -> dict[str, str]:
    """Templates by name out of a text, a table, or a list of names and texts."""
    if isinstance(value, str):
        return {"default": value}
    try:
        pairs = value if isinstance(value, dict) else {t["name"]: t["template"] for t in value}  # type: ignore[attr-defined]
    except (TypeError, KeyError) as error:
        raise TemplateError(f"{file}: chat_template is not a template: {error}") from error
    if not all(isinstance(text, str) for pair in pairs.items() for text in pair):
        raise TemplateError(f"{file}: chat_template holds something that is not text")
    return dict(pairs)


def _prepare_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Fresh messages of plain values, empty keys dropped, reasoning under all its names."""
    if not messages:
        raise TemplateError("the conversation is empty; a chat needs at least one message")
    prepared = []
    for index, message in enumerate(plain_value(list(messages))):
        if not isinstance(message, dict):
            raise TemplateError(f"message {index} is not a dictionary with role and content")
        message = {key: value for key, value in message.items() if value is not None}
        reasoning = next((message[key] for key in _REASONING_KEYS if key in message), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        prepared.append(message)
    return prepared


def _prepare_documents(documents: Sequence[Mapping[str, Any]] | None) -> Any:
    for document in documents or ():
        if not isinstance(document, Mapping):
            raise TemplateError("a document must be a dictionary, usually with title and text")
    return plain_value(documents)


def tool_schemas(tools: Iterable[Tool]) -> list[Any]:
    """Tools as JSON schemas in OpenAI's form.

    Args:
        tools: Schemas, or Python functions with type hints and a docstring.

    Raises:
        TemplateError: One is neither, or a function cannot be described.
    """
    return [_tool_schema(tool) for tool in tools]


def _tool_schema(tool: Tool) -> Any:
    if isinstance(tool, Mapping):
        return plain_value(tool)
    if isfunction(tool) or ismethod(tool):
        from flashmoe.tool_schema import function_schema

        return plain_value(function_schema(tool))
    raise TemplateError(
        f"a tool must be a JSON schema or a Python function, not {type(tool).__name__}"
    )
