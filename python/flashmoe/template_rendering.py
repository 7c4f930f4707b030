"""Runs the text of a chat template, in this process or in one that is limited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flashmoe.errors import TemplateError

if TYPE_CHECKING:
    import jinja2


class TemplateRenderer:
    """Runs templates in this process: with bounds on what they build, not on their time."""

    def __init__(self) -> None:
        """Templates are compiled when first used, and kept."""
        self._compiled: dict[str, jinja2.Template] = {}

    def __call__(self, source: str, variables: dict[str, Any]) -> str:
        """Render; a template is foreign code and may raise anything.

        Args:
            source: Text of the template.
            variables: Plain values, see :func:`~flashmoe.plain_data.plain_value`.

        Raises:
            TemplateError: The template is broken, refuses, fails or prints too much.
        """
        from flashmoe import template_env

        try:
            if source not in self._compiled:
                self._compiled[source] = template_env.compile_template(source)
            pieces: list[str] = []
            room = template_env.MAX_CHARACTERS
            for piece in self._compiled[source].generate(variables):
                room -= len(piece)
                if room < 0:
                    raise TemplateError(
                        f"the chat template printed more than {template_env.MAX_CHARACTERS} "
                        "characters; it does not fit this conversation or never ends"
                    )
                pieces.append(piece)
            return "".join(pieces)
        except TemplateError:
            raise
        except Exception as error:
            raise TemplateError(_explain(error)) from error


def _explain(error: Exception) -> str:
    import jinja2

    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"the chat template is broken at line {error.lineno}: {error.message}"
    if type(error) is jinja2.TemplateError:  # raised by the template itself
        return f"the chat template refuses the conversation: {error}"
    return f"the chat template fails on the conversation: {type(error).__name__}: {error}"
