"""Answers that follow a schema, a grammar or the form of a tool call, token by token."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from flashmoe.errors import ArgumentError
from flashmoe.panics import translated
from flashmoe.tool_grammar import check_number, forced_tools, laid_out, tool_call_grammar

if TYPE_CHECKING:
    import llguidance
    import numpy as np
    from numpy.typing import NDArray

    from flashmoe.tokenizer import Tokenizer

MAX_SCHEMA_BYTES = 64 * 1024
"""Longest schema or grammar that is compiled."""

MAX_RULES = 500
"""Most rules of a grammar: a chain of thousands overflows the stack of llguidance 1.9."""

LEXER_FUEL = 200_000
"""Work on the expressions of one grammar: a fifth of llguidance's own limit."""

MAX_COMPILED = 64
"""Compiled grammars that a tokenizer keeps."""

_NEGATIVE = re.compile(r"-\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")

_FORMATS = ("text", "json_object", "json_schema", "regex", "grammar", "choice")


class Constraint(Protocol):
    """What may be said next in one answer.

    Attributes:
        finished: The answer is complete and nothing can follow it.
    """

    finished: bool

    def apply(self, row: NDArray[np.float32]) -> None:
        """Make the logits of forbidden tokens -inf, in place.

        Args:
            row: float32 ``[vocab_size]``.
        """

    def accept(self, token: int) -> None:
        """Move on by the token that was chosen.

        Args:
            token: Its id.
        """


Trial = Callable[[str, str], None]
"""Takes a grammar and what it is, and raises if it must not be compiled in this process."""


class ConstraintFactory:
    """A compiled grammar, and how an answer that follows it begins."""

    def __init__(
        self, grammars: Grammars, matcher: llguidance.LLMatcher, reasoning: list[int] | None
    ) -> None:
        """Keep what every answer starts from.

        Args:
            grammars: That compiled the grammar.
            matcher: At its start; only copied.
            reasoning: Tokens that end the reasoning with which an answer begins, ``None`` for an
                answer without.
        """
        self._grammars, self._matcher, self._reasoning = grammars, matcher, reasoning

    def start(self) -> Constraint:
        """Begin an answer."""
        constraint = _Grammar(self._grammars, self._grammars.copy(self._matcher))
        if self._reasoning is None:
            return constraint
        return _AfterReasoning(self._grammars.end_tokens, self._reasoning, constraint)


class Grammars:
    """Compiles grammars for one tokenizer and keeps those used last.

    Attributes:
        end_tokens: Every id that ends an answer, in order.
    """

    def __init__(self, tokenizer_json: str, vocab_size: int, end_tokens: Collection[int]) -> None:
        """Read the vocabulary; takes about a second for one of 250,000 tokens.

        Args:
            tokenizer_json: The contents of tokenizer.json.
            vocab_size: Ids that the tokenizer has.
            end_tokens: Every id that ends an answer.

        Raises:
            ArgumentError: llguidance is not installed, or the tokenizer cannot be used.
        """
        try:
            import llguidance
        except ImportError as error:
            raise ArgumentError(
                "response_format and forced tool calls need llguidance: "
                "pip install 'flashmoe[structured]'"
            ) from error
        if not end_tokens:
            raise ArgumentError(
                "the tokenizer names no end token (eos_token_id in generation_config.json), so an "
                "answer that follows a grammar could not end"
            )
        self.end_tokens = sorted(end_tokens)
        with translated(ArgumentError, "llguidance cannot use this tokenizer"):
            self._tokenizer = llguidance.LLTokenizer(
                tokenizer_json, n_vocab=vocab_size, eos_token=self.end_tokens
            )
        self._limits = llguidance.LLParserLimits(
            verbose_errors=False, initial_lexer_fuel=LEXER_FUEL
        )
        self._compiled: OrderedDict[str, llguidance.LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        self.mask_words = (self._tokenizer.vocab_size + 31) // 32

    def compile(self, grammar: str, what: str, trial: Trial | None = None) -> llguidance.LLMatcher:
        """A matcher at the start of a grammar; only to be copied.

        Args:
            grammar: In llguidance's own form.
            what: What it is, for errors.
            trial: Refuses what must not be compiled here.

        Raises:
            ArgumentError: It is not valid, or above a limit.
        """
        import llguidance

        with self._lock:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
                return self._compiled[grammar]
        if trial is not None:
            trial(grammar, what)
        with translated(ArgumentError, what):
            matcher = llguidance.LLMatcher(
                self._tokenizer, grammar, log_level=0, limits=self._limits
            )
        if matcher.is_error():
            raise ArgumentError(f"{what}: {matcher.get_error()}")
        with self._lock:
            self._compiled[grammar] = matcher
            while len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        return matcher

    def try_out(self, grammar: str, what: str) -> None:
        """Compile a grammar and find what may be said first.

        Args:
            grammar: In llguidance's own form.
            what: What it is, for errors.

        Raises:
            ArgumentError: As :meth:`compile`; or nothing can be said.
        """
        matcher = self.copy(self.compile(grammar, what))
        matcher.compute_bitmask()
        if matcher.is_error():
            raise ArgumentError(f"{what}: {matcher.get_error()}")

    def copy(self, matcher: llguidance.LLMatcher) -> llguidance.LLMatcher:
        """An independent matcher in the same state.

        Args:
            matcher: From :meth:`compile`.
        """
        with self._lock:
            return matcher.deep_copy()


@cache
def _ceilings() -> NDArray[np.float32]:
    """For each byte of a mask the largest logits of its eight tokens: inf, or -inf."""
    import numpy as np

    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(bits == 1, np.inf, -np.inf).astype(np.float32)


class _Grammar:
    """Follows a grammar from the first token on."""

    def __init__(self, grammars: Grammars, matcher: llguidance.LLMatcher) -> None:
        import numpy as np

        self.finished = False
        self._matcher = matcher
        self._mask = np.empty((1, grammars.mask_words), np.int32)
        self._limits = np.empty((4 * grammars.mask_words, 8), np.float32)

    def apply(self, row: NDArray[np.float32]) -> None:
        import llguidance.numpy
        import numpy as np

        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask)
        self._check()
        # Without branches: forbidden and allowed tokens alternate too often to be predicted.
        np.take(_ceilings(), self._mask[0].view(np.uint8), axis=0, out=self._limits, mode="clip")
        limits = self._limits.reshape(-1)[: row.size]
        np.minimum(row[: limits.size], limits, out=row[: limits.size])
        row[limits.size :] = -np.inf

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()
        self.finished = self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ArgumentError(
                f"the answer cannot follow its grammar: {self._matcher.get_error()}; "
                "simplify the schema or grammar, or use a sampler that keeps to the logits"
            )


class _AfterReasoning:
    """Leaves the reasoning free, then follows a grammar."""

    def __init__(self, ends: list[int], closing: list[int], then: _Grammar) -> None:
        self.finished = False
        self._ends, self._closing, self._then = ends, closing, then
        self._said = 0  # of the tokens that close the reasoning

    def apply(self, row: NDArray[np.float32]) -> None:
        import numpy as np

        if self._said == 0:
            row[self._ends] = -np.inf
        elif self._said < len(self._closing):
            kept = row[self._closing[self._said]]
            row[:] = -np.inf
            row[self._closing[self._said]] = kept
        else:
            self._then.apply(row)

    def accept(self, token: int) -> None:
        if self._said == len(self._closing):
            self._then.accept(token)
            self.finished = self._then.finished
        elif self._said or token == self._closing[0]:
            self._said += 1


def compile_constraint(
    tokenizer: Tokenizer,
    response_format: Mapping[str, Any] | None,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: str | Mapping[str, Any] | None = None,
    style: str | None = None,
    in_reasoning: bool = False,
    trial: Trial | None = None,
) -> ConstraintFactory | None:
    """Compile what an answer must follow.

    Args:
        tokenizer: Keeps what was compiled.
        response_format: As in the OpenAI API (``text``, ``json_object``, ``json_schema``), or
            ``{"type": "regex", "regex": …}``, ``{"type": "grammar", "grammar": …}`` with a Lark
            grammar, ``{"type": "choice", "choices": […]}``. A schema always holds, ``strict`` or
            not; one with a keyword that cannot be enforced is refused.
        tools: Functions in the OpenAI form.
        tool_choice: ``"required"`` or ``{"type": "function", "function": {"name": …}}`` make the
            answer a call; ``None``, ``"auto"`` and ``"none"`` leave it free.
        style: How the checkpoint writes calls: ``"hermes"`` or ``"xml"``.
        in_reasoning: The prompt ends inside reasoning: that stays free, and the rest follows.
        trial: What a new grammar must pass before it is compiled here.

    Returns:
        ``None`` if nothing constrains the answer.

    Raises:
        ArgumentError: The format, schema or grammar is wrong, too large or too complex, or the
            extra ``structured`` is not installed.
    """
    kind = _kind(response_format)
    forced = forced_tools(tools, tool_choice)
    if forced and kind != "text":
        raise ArgumentError("tool_choice forces a call, so response_format must be left out")
    if not forced and (kind == "text" or response_format is None):
        return None
    grammars = tokenizer.grammars
    if forced:
        many = tool_choice == "required"
        try:
            _check_size(json.dumps(forced, ensure_ascii=False), "the tools")
            lark = tool_call_grammar(forced, style, tokenizer.token_to_id, many=many)
        except (TypeError, ValueError, RecursionError) as error:
            if isinstance(error, ArgumentError):
                raise
            raise ArgumentError(f"the tools are not plain JSON: {error}") from error
        grammar, what = _compilers().grammar_from_lark(lark), "the tools"
    else:
        assert response_format is not None
        grammar, what = _grammar(kind, response_format), f"response_format of type {kind!r}"
    reasoning = _closing(tokenizer) if in_reasoning else None
    return ConstraintFactory(grammars, grammars.compile(grammar, what, trial), reasoning)


def compile_chat_constraint(
    tokenizer: Tokenizer,
    response_format: Mapping[str, Any] | None,
    prompt: str,
    tools: Sequence[Any] | None = None,
    tool_choice: str | Mapping[str, Any] | None = None,
    trial: Trial | None = None,
) -> ConstraintFactory | None:
    """Compile what the answer to a rendered conversation must follow.

    Args:
        tokenizer: Its chat template tells how calls are written.
        response_format: See :func:`compile_constraint`.
        prompt: The conversation; if it ends inside reasoning, that stays free.
        tools: JSON schemas in the OpenAI form, or Python functions.
        tool_choice: See :func:`compile_constraint`.
        trial: See :func:`compile_constraint`.
    """
    from flashmoe.chat import tool_schemas
    from flashmoe.reply import starts_in_reasoning, tool_style

    template = tokenizer.chat_template
    return compile_constraint(
        tokenizer,
        response_format,
        tools=tool_schemas(tools or ()),
        tool_choice=tool_choice,
        style=tool_style("\n".join(template.sources.values())) if template else None,
        in_reasoning=starts_in_reasoning(prompt),
        trial=trial,
    )


def _compilers() -> type[llguidance.LLMatcher]:
    import llguidance

    return llguidance.LLMatcher


def _kind(response_format: Mapping[str, Any] | None) -> str:
    if response_format is None:
        return "text"
    if not isinstance(response_format, Mapping) or response_format.get("type") not in _FORMATS:
        raise ArgumentError(
            f"response_format must be an object whose type is one of {', '.join(_FORMATS)}, "
            f"not {str(response_format)[:200]}"
        )
    return str(response_format["type"])


def _grammar(kind: str, wanted: Mapping[str, Any]) -> str:
    """The grammar of a response format, in llguidance's form."""
    compilers = _compilers()
    if kind == "json_object":
        return compilers.grammar_from_json_schema(laid_out({"type": "object"}))
    if kind == "json_schema":
        inner = wanted.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if not isinstance(schema, Mapping):
            raise ArgumentError("response_format: json_schema.schema must be a JSON schema")
        return compilers.grammar_from_json_schema(_dumped(schema))
    if kind == "choice":
        choices = wanted.get("choices")
        if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
            raise ArgumentError("response_format: choices must be a list of texts, not empty")
        if any(not isinstance(choice, str) or not choice for choice in choices):
            raise ArgumentError("response_format: each of choices must be a text, not empty")
        _check_size("".join(choices), "choices")
        texts = (json.dumps(choice, ensure_ascii=False) for choice in choices)
        return compilers.grammar_from_lark("start: " + " | ".join(texts))
    text = wanted.get(kind)
    if not isinstance(text, str) or not text:
        raise ArgumentError(f"response_format: {kind} must be a text, not empty")
    _check_size(text, kind)
    if kind == "regex":
        return compilers.grammar_from_regex(text)
    if "%json" in text:
        for number in _NEGATIVE.findall(text):
            check_number(float(number), kind)
    if (rules := text.count(":")) > MAX_RULES:  # never fewer than there are
        raise ArgumentError(
            f"the grammar has {rules} colons, and with them rules; at most {MAX_RULES} are compiled"
        )
    return compilers.grammar_from_lark(text)


def _dumped(schema: Mapping[str, Any]) -> str:
    try:
        text = laid_out(schema)
    except ArgumentError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"the schema is not plain JSON: {error}") from error
    _check_size(text, "the schema")
    return text


def _check_size(text: str, what: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{what}: holds half a character, {text[error.start]!r}") from None
    if size > MAX_SCHEMA_BYTES:
        raise ArgumentError(f"{what}: {size} bytes; at most {MAX_SCHEMA_BYTES} are compiled")


def _closing(tokenizer: Tokenizer) -> list[int]:
    """The tokens from the end of reasoning to the answer, as templates write them."""
    end = tokenizer.token_to_id("</think>")
    if end is None:
        raise ArgumentError(
            "the prompt opens reasoning, but the tokenizer has no token </think>; pass "
            "enable_thinking=False to constrain the answer"
        )
    return [end, *tokenizer.encode("\n\n")]
