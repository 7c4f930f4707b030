"""Settings in a row: fewer experts, fewer bits, other numbers in the KV cache."""

from __future__ import annotations

import inspect
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby, product
from pathlib import Path
from typing import Any

from flashmoe.errors import ArgumentError, FlashMoEError
from flashmoe.evaluation.calls import Prompt
from flashmoe.evaluation.measure import Evaluation, Progress, evaluate
from flashmoe.model import Model

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Weights:
    """How the weights are stored.

    Attributes:
        bits: Bits they are converted to; None leaves the model as it is.
        options: Further arguments of :func:`flashmoe.convert`, by name.
    """

    bits: int | None = None
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """``as it is``, ``2 bits``, ``2 bits method=search``."""
        if self.bits is None:
            return "as it is"
        return " ".join([f"{self.bits} bits", *(f"{k}={v}" for k, v in self.options)])


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of a sweep.

    Attributes:
        weights: How the weights are stored.
        experts_per_token: Routed experts per token; None for the model's own number.
        kv_dtype: Numbers in the KV cache; None for the usual ones.
    """

    weights: Weights = Weights()
    experts_per_token: int | None = None
    kv_dtype: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "bits": self.weights.bits,
            "convert": dict(self.weights.options),
            "experts_per_token": self.experts_per_token,
            "kv_dtype": self.kv_dtype,
        }


@dataclass(slots=True)
class Line:
    """A setting and what was measured under it.

    Attributes:
        setting: What ran.
        result: The figures; None where it failed.
        error: Why it failed.
    """

    setting: Setting
    result: Evaluation | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        result = self.result.as_dict() if self.result else None
        return {"settings": self.setting.as_dict(), "result": result, "error": self.error}


def settings(
    bits: Sequence[int | None] = (None,),
    experts_per_token: Sequence[int | None] = (None,),
    kv_dtypes: Sequence[str | None] = (None,),
    options: Mapping[str, Sequence[Any]] | None = None,
) -> list[Setting]:
    """Every combination, those with the same weights together.

    Args:
        bits: Bits to convert to; None for the model as it is, which ignores ``options``.
        experts_per_token: None for the model's own number.
        kv_dtypes: None for the usual one.
        options: Values to try of further arguments of :func:`flashmoe.convert`.
    """
    named = options or {}
    out: dict[Setting, None] = {}
    for b, values in product(bits, list(product(*named.values()))):
        chosen = () if b is None else tuple(zip(named, values, strict=True))
        for k, kv in product(experts_per_token, kv_dtypes):
            out[Setting(Weights(b, chosen), k, kv)] = None
    return list(out)


def check_options(options: Mapping[str, Sequence[Any]]) -> None:
    """Refuse early what conversion does not know.

    Args:
        options: Values by name of argument.

    Raises:
        ArgumentError: There is no such argument, or it is not one to sweep over.
    """
    from flashmoe.conversion import convert

    known = set(inspect.signature(convert).parameters) - {
        "src", "dst", "bits", "revision", "progress"
    }  # fmt: skip
    for name in options:
        if name not in known:
            raise ArgumentError(
                f"convert has no option {name!r} to try; it has {', '.join(sorted(known))}"
            )


@dataclass(frozen=True)
class Work:
    """Where converted models lie while they are measured.

    Attributes:
        source: The model that is converted.
        directory: Where; None for a temporary directory.
        keep: Whether they stay afterwards, and are taken again by a later sweep.
        progress: Whether conversions show a bar on stderr.
    """

    source: Path
    directory: Path | None = None
    keep: bool = False
    progress: bool = False

    def __post_init__(self) -> None:
        if self.keep and self.directory is None:
            raise ArgumentError("to keep converted models, name a directory for them")

    @contextmanager
    def model(self, weights: Weights) -> Iterator[Path]:
        """The directory of the model with these weights, for the time of a ``with`` block.

        Args:
            weights: How they are to be stored.

        Raises:
            ArgumentError: There is something else where it would be made.
            ConversionError: The source cannot be converted like this.
        """
        if weights.bits is None or (not weights.options and weights.bits in _widths(self.source)):
            yield self.source
            return
        with ExitStack() as stack:
            base = self.directory
            if base is None:
                made = tempfile.TemporaryDirectory(prefix="flashmoe-eval-")
                base = Path(stack.enter_context(made))
            yield self._converted(weights, base, stack)

    def _converted(self, weights: Weights, base: Path, stack: ExitStack) -> Path:
        """Convert, or take what an earlier sweep kept and told of in a file beside it."""
        from flashmoe.conversion import convert

        name = "-".join(
            [self.source.name, f"{weights.bits}bit", *(f"{k}={v}" for k, v in weights.options)]
        )
        path, told = base / name, base / f"{name}.json"
        made_of = {"source": str(self.source.resolve()), **asdict(weights)}
        made_of = json.loads(json.dumps(made_of, default=str))
        if (path / "manifest.fm").exists():
            if not told.exists() or json.loads(told.read_text()) != made_of:
                raise ArgumentError(
                    f"{path} holds another model than {weights.name} of {self.source}; "
                    "delete it, or name another directory for the work"
                )
            return path
        if not self.keep:
            stack.callback(lambda: told.unlink(missing_ok=True))
            stack.callback(lambda: shutil.rmtree(path, ignore_errors=True))
        base.mkdir(parents=True, exist_ok=True)
        told.write_text(json.dumps(made_of, indent=1) + "\n")
        return convert(
            self.source, path, bits=weights.bits, progress=self.progress, **dict(weights.options)
        )


def _widths(path: Path) -> set[int]:
    """The bits of a model's experts if all of them have the same, else nothing."""
    from flashmoe.checkpoint import open_checkpoint

    bits = {
        layer.quant(p).bits
        for layer in open_checkpoint(path).manifest.experts
        for p in ("gate", "up", "down")
    }
    return bits if len(bits) == 1 else set()


@dataclass(frozen=True)
class Task:
    """What is measured under every setting.

    Attributes:
        text: As for :func:`evaluate`.
        prompts: As for :func:`evaluate`.
        reference: Directory of the model to compare with; None for the model as it is.
        compare: Whether to compare at all.
        window: As for :func:`evaluate`.
        context: As for :func:`evaluate`.
        max_tokens: As for :func:`evaluate`.
        options: Arguments of :class:`flashmoe.Model`, such as ``threads``. ``memory`` is for both
            models together where two are compared.
    """

    text: str | Path | None = None
    prompts: Sequence[Prompt] | None = None
    reference: Path | None = None
    compare: bool = True
    window: int | None = None
    context: int | None = None
    max_tokens: int = 300
    options: Mapping[str, Any] = field(default_factory=dict)


def sweep(
    work: Work,
    lines: Sequence[Setting],
    task: Task,
    *,
    progress: Callable[[Setting], Progress] = lambda _: lambda _what, _done, _total: None,
    on_line: Callable[[Line], object] = lambda _: None,
) -> list[Line]:
    """Measure every setting.

    A setting that fails says so in its line; the others go on.

    Args:
        work: The model, and where converted ones go.
        lines: Settings; a conversion is made once for neighbours that share it.
        task: What is measured.
        progress: Called with a setting, gives the ``progress`` of its evaluation.
        on_line: Called after every setting.
    """
    out = []
    for weights, group in groupby(lines, key=lambda s: s.weights):
        same = list(group)
        with ExitStack() as stack:
            try:
                path = stack.enter_context(work.model(weights))
            except FlashMoEError as error:
                failed = [Line(s, error=f"{type(error).__name__}: {error}") for s in same]
                out += failed
                for line in failed:
                    on_line(line)
                continue
            for setting in same:
                line = Line(setting)
                try:
                    line.result = _measure(path, work.source, setting, task, progress(setting))
                except FlashMoEError as error:
                    line.error = f"{type(error).__name__}: {error}"
                out.append(line)
                on_line(line)
    return out


def _measure(
    path: Path, source: Path, setting: Setting, task: Task, progress: Progress
) -> Evaluation:
    compared = task.compare and task.text is not None
    options = dict(task.options)
    if compared:
        options["memory"] = _half(options.get("memory"))
    with ExitStack() as stack:
        reference = None
        if compared:
            reference = stack.enter_context(Model(task.reference or source, **options))
        model = stack.enter_context(
            Model(
                path,
                experts_per_token=setting.experts_per_token,
                kv_dtype=setting.kv_dtype,
                **options,
            )
        )
        return evaluate(
            model,
            text=task.text,
            prompts=task.prompts,
            reference=reference,
            window=task.window,
            context=task.context,
            max_tokens=task.max_tokens,
            progress=progress,
        )


def _half(memory: int | float | str | None) -> int:
    """Half of a budget: two models share it."""
    from flashmoe.machine import available_memory, parse_size

    return (int(0.75 * available_memory()) if memory is None else parse_size(memory)) // 2


def document(source: Path, lines: Sequence[Line], task: Task) -> dict[str, Any]:
    """Everything that was measured, for JSON.

    Args:
        source: The model.
        lines: What was measured.
        task: How.
    """
    import sys

    from flashmoe.bench.run import machine

    return {
        "schema": SCHEMA,
        "model": str(source),
        "reference": str(task.reference or source) if task.compare and task.text else None,
        "window": task.window,
        "context": task.context,
        "machine": machine(None),
        "command": sys.argv[1:],
        "lines": [line.as_dict() for line in lines],
    }
