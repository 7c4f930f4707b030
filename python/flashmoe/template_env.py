"""The Jinja environment for chat templates: what transformers gives them, and no more.

Chat templates come from downloaded checkpoints and are code. They run in Jinja's
immutable sandbox, see plain JSON values only, and cannot reach Python's internals
through the helpers they are given.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from flashmoe.errors import TemplateError

MAX_CHARACTERS = 1 << 25
"""Longest text that a template may build or print."""

_MAX_INTEGER_BITS = 1 << 16
_OLDEST_SAFE_JINJA = (3, 1, 6)


def compile_template(source: str) -> jinja2.Template:
    """Compile a chat template.

    Args:
        source: Text of the template.

    Raises:
        TemplateError: The installed Jinja has known ways out of its sandbox.
        jinja2.TemplateSyntaxError: The text is not a template.
    """
    _require_safe_jinja()
    environment = _ChatEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _DictFactory()
    environment.globals["namespace"] = _GuardedNamespace
    return environment.from_string(source)


def _require_safe_jinja() -> None:
    installed = importlib.metadata.version("jinja2")
    if tuple(int(part) for part in re.findall(r"\d+", installed)[:3]) < _OLDEST_SAFE_JINJA:
        raise TemplateError(
            f"jinja2 {installed} lets templates out of its sandbox; "
            "run: pip install --upgrade 'jinja2>=3.1.6'"
        )


class _ChatEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which also refuses operators that would fill the memory."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _is_oversized(operator, left, right):
            raise SecurityError(f"the result of {operator!r} would be too large")
        return super().call_binop(context, operator, left, right)


def _is_oversized(operator: str, left: Any, right: Any) -> bool:
    """Whether an operator would build a huge text, list or number."""
    if isinstance(left, int) and isinstance(right, int):
        if operator == "**":
            return left.bit_length() * right > _MAX_INTEGER_BITS
        return left.bit_length() + right.bit_length() > _MAX_INTEGER_BITS
    if operator == "+":
        return _length(left) + _length(right) > MAX_CHARACTERS
    if operator == "*":
        repeats = left if isinstance(left, int) else right
        return isinstance(repeats, int) and repeats * _length(left, right) > MAX_CHARACTERS
    if operator == "%" and isinstance(left, str):  # a width such as %0999999999d or %*d
        return re.search(r"%[^a-zA-Z%]*?(\d{6}|\*)", left) is not None
    return False


def _length(*values: Any) -> int:
    """Characters, or for an element of a list the room of eight."""
    texts = sum(len(value) for value in values if isinstance(value, str))
    return texts + sum(8 * len(value) for value in values if isinstance(value, (list, tuple)))


class _GenerationTag(Extension):
    """``{% generation %}…{% endgeneration %}`` marks what the model wrote; the text passes."""

    tags: set[str] = {"generation"}  # noqa: RUF012  (declared so by Jinja)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_pass_through"), [], [], body).set_lineno(line)

    def _pass_through(self, caller: Macro) -> str:
        return caller()


class _DictFactory:
    """Stands in for ``dict`` without being the class, whose attributes lead out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _GuardedNamespace(Namespace):
    """A Jinja namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no self: a key may have that name
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace attribute may not begin with an underscore: {name!r}")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter, which would change the tokens."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
