"""Renders conversations with the chat template that ships with the model, as transformers does."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from corpus.conversation import Document
from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE_PATH = Path(__file__).parent / "chat_template.jinja"


def refuse(message: str) -> NoReturn:
    """Raises the error that a template asks for.

    Raises:
        TemplateError: Always.
    """
    raise TemplateError(message)


def to_json(value: Any, indent: int | None = None) -> str:
    """Writes ``value`` as JSON without HTML escapes, keys in the order given."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


@lru_cache(maxsize=1)
def template() -> Template:
    """Returns the compiled chat template."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    return environment.from_string(TEMPLATE_PATH.read_text(encoding="utf-8"))


def render(document: Document) -> str:
    """Returns the training text of a document, without the end-of-text token."""
    if not document.messages:
        return document.text
    return template().render(messages=document.messages, tools=document.tools or None)
