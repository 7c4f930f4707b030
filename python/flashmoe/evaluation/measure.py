"""One model on one text and one set of prompts, beside a reference or alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import ArgumentError
from flashmoe.evaluation.calls import MAX_TOKENS, CallScore, Prompt, read_prompts, score_calls
from flashmoe.evaluation.scores import Divergence, Tally, TextScore
from flashmoe.evaluation.windows import Window, windows
from flashmoe.model import STEP_END, Model

if TYPE_CHECKING:
    from flashmoe import _core

WINDOW = 1024
_LOGITS_BYTES = 128 << 20
"""Logits held of one model at a time, unless 64 rows are more."""

Progress = Callable[[str, int, int], object]


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a model.

    Attributes:
        model: Its directory.
        experts_per_token: Routed experts per token that ran.
        kv_dtype: Numbers in its KV cache.
        text: How well it expects the text; None without one.
        divergence: How far it is from the reference; None without one.
        calls: Its tool calls; None without prompts.
        seconds: What it took.
    """

    model: str
    experts_per_token: int
    kv_dtype: str
    text: TextScore | None
    divergence: Divergence | None
    calls: CallScore | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def evaluate(
    model_or_path: Model | str | PathLike[str],
    *,
    text: str | Path | Sequence[int] | NDArray[np.integer[Any]] | None = None,
    prompts: Sequence[Prompt] | str | Path | None = None,
    reference: Model | str | PathLike[str] | None = None,
    window: int | None = None,
    context: int | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure what a model says.

    Args:
        model_or_path: An open model, or what :class:`flashmoe.Model` opens.
        text: A text, a ``Path`` of a UTF-8 file, or token ids: perplexity is measured on it.
        prompts: Conversations that ask for a tool, or a JSONL file of them: tool calls are judged.
        reference: Another model, or the same with other settings, whose next-token distributions
            are compared on the text. It must have the same tokenizer.
        window: Most tokens read from an empty state, 1024 or the models' context if that is less.
        context: Tokens at the start of each window that were scored before; half of it if None.
        max_tokens: Longest answer to a prompt.
        progress: Called with ``"text"`` or ``"prompts"``, how many tokens or prompts are done, and
            how many there are.

    Returns:
        Figures of the text, the comparison and the prompts, as far as they were asked for.

    Raises:
        ArgumentError: Nothing to measure, a text of less than two tokens, windows that score
            nothing, or a reference with another tokenizer.
        FlashMoEError: As of :class:`flashmoe.Model` and :meth:`flashmoe.Generator.generate_batch`.
    """
    if text is None and prompts is None:
        raise ArgumentError("there is nothing to measure; give a text, prompts or both")
    if text is None and reference is not None:
        raise ArgumentError("a reference is compared on a text; give one")
    asked = read_prompts(prompts) if isinstance(prompts, (str, Path)) else prompts
    say = progress or (lambda _what, _done, _total: None)
    start = time.perf_counter()
    with ExitStack() as stack:
        model = _open(stack, model_or_path)
        other = None if reference is None else _open(stack, reference)
        tally = None
        if text is not None:
            ids = _token_ids(model, text)
            _check_same_tokens(model, other, text, ids)
            tally = _score(model, other, ids, window, context, say)
        calls = None
        if asked is not None:
            calls = _ask(model, asked, max_tokens, say)
        info = model.info()
        return Evaluation(
            model=str(model.path),
            experts_per_token=info["experts_per_token"],
            kv_dtype=info["kv_dtype"],
            text=tally.text() if tally else None,
            divergence=tally.divergence() if tally else None,
            calls=calls,
            seconds=time.perf_counter() - start,
        )


def _open(stack: ExitStack, model: Model | str | PathLike[str]) -> Model:
    return model if isinstance(model, Model) else stack.enter_context(Model(model))


def _token_ids(
    model: Model, text: str | Path | Sequence[int] | NDArray[np.integer[Any]]
) -> NDArray[np.int32]:
    if isinstance(text, Path):
        text = text.read_text(encoding="utf-8")
    given = model.tokenizer.encode(text, add_special_tokens=True) if isinstance(text, str) else text
    ids = np.asarray(given, np.int64)
    if ids.size < 2:
        raise ArgumentError(f"the text has {ids.size} tokens; a score needs at least 2")
    return model.check_tokens(ids)


def _check_same_tokens(
    model: Model,
    reference: Model | None,
    text: str | Path | Sequence[int] | NDArray[np.integer[Any]],
    ids: NDArray[np.int32],
) -> None:
    """Distributions over different tokens cannot be compared."""
    if reference is None:
        return
    same = _vocab(model) == _vocab(reference)
    if same and isinstance(text, (str, Path)):
        same = np.array_equal(_token_ids(reference, text), ids)
    if not same:
        raise ArgumentError(
            f"{reference.path} has another tokenizer than {model.path}; "
            "compare models of one family"
        )


def _vocab(model: Model) -> int:
    """Columns of the logits that are tokens."""
    tokenizer = model.tokenizer_or_none
    return min(model.vocab_size, tokenizer.vocab_size) if tokenizer else model.vocab_size


def _score(
    model: Model,
    reference: Model | None,
    ids: NDArray[np.int32],
    window: int | None,
    context: int | None,
    say: Progress,
) -> Tally:
    models = [model] if reference is None else [model, reference]
    most = min(m.context_length for m in models)
    length = min(WINDOW, most) if window is None else window
    if length > most:
        raise ArgumentError(f"a window of {length} tokens is longer than the context of {most}")
    tally = Tally(_vocab(model))
    with ExitStack() as stack:
        sessions = [m.new_session() for m in models]
        for session in sessions:
            stack.callback(session.close)
        for w in windows(ids.size, length, length // 2 if context is None else context):
            for session in sessions:
                session.reset()
            _read(models, sessions, ids, w, tally, say)
    return tally


def _read(
    models: Sequence[Model],
    sessions: Sequence[_core.Session],
    ids: NDArray[np.int32],
    w: Window,
    tally: Tally,
    say: Progress,
) -> None:
    """One window through every model, a step at a time: only its logits are held."""
    read = ids[w.first : w.last - 1]  # nothing is asked of the row behind the last token
    skipped = w.scored - 1 - w.first  # rows that predict what was scored before
    for first, last in _steps(models, len(read)):
        rows = last - max(first, min(last, skipped))
        logits = []
        for model, session in zip(models, sessions, strict=True):
            out = np.empty((rows, model.vocab_size), np.float32)
            session.eval(read[first:last], out)
            logits.append(out)
        if rows:
            end = w.first + last + 1
            tally.add(logits[0], ids[end - rows : end], *logits[1:])
            say("text", end - 1, ids.size - 1)


def _steps(models: Sequence[Model], n: int) -> Iterator[tuple[int, int]]:
    """Steps that every model takes, and whose logits keep within :data:`_LOGITS_BYTES`."""
    narrow = min(models, key=lambda m: m.info()["prefill_rows"])
    fitting = _LOGITS_BYTES // (4 * max(m.vocab_size for m in models))
    rows = max(STEP_END, fitting // STEP_END * STEP_END)
    for first, last in narrow.prefill_steps(0, n):
        for at in range(first, last, rows):
            yield at, min(last, at + rows)


def _ask(model: Model, prompts: Sequence[Prompt], max_tokens: int, say: Progress) -> CallScore:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        say("prompts", done, len(prompts))

    return score_calls(model, prompts, max_tokens=max_tokens, on_answer=count)
