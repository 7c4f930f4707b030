"""The lines of the library's Python parsers that inputs reach: counted with coverage.py, and looked for."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

from fuzz.harness import Report, Target, replay, run, run_one

LEAST = 0.95
"""Of all lines."""

_ANSWER = "writes answers"
_SIZES = "arithmetic on what was read and checked"
_WRITER = "writes the text"

PARSERS: Mapping[str, Mapping[str, str]] = {
    "build": {},
    "chat": {},
    "chat_prompt": {},
    "checkpoint": {},
    "families": {},
    "families.family": {},
    "families.fields": {},
    "manifest": {
        "Manifest.resident_bytes": _SIZES,
        "Manifest.expert_bytes": _SIZES,
        "Manifest.total_expert_bytes": _SIZES,
        "_memory_bytes": _SIZES,
    },
    "manifest_text": {
        "write": _WRITER,
        "_number": _WRITER,
        "_mixer": _WRITER,
        "_ffn": _WRITER,
        "_tensor_lines": _WRITER,
        "_experts_lines": _WRITER,
    },
    "messages": {},
    "places": {
        "Quant.matrix_bytes": _SIZES,
        "Tensor.nbytes": _SIZES,
        "Tensor.spans": _SIZES,
        "Extent.place": _SIZES,
        "Experts.parts": _SIZES,
    },
    "prefix_files": {
        "write": "writes the file",
        "_sync": "writes the file",
        "Directory": "keeps files within a budget; what is in them goes through read",
    },
    "quantization": {},
    "reply": {"ToolCall.as_message": _ANSWER},
    "safetensors": {},
    "sampler": {
        "Sampler.with_defaults": "draws tokens",
        "Sampler.start": "draws tokens",
        "Sampler.__call__": "draws tokens",
        "Draw": "draws tokens",
    },
    "server.anthropic": {
        "count_tokens": "reads as messages does, on another thread",
        "_Form": _ANSWER,
        "_end": _ANSWER,
    },
    "server.endpoint": {
        "Call": "waits for the queue and the client",
        "endpoint": "needs a connection: tests/reliability/server.py",
        "_read": "needs a connection: tests/reliability/server.py",
    },
    "server.fields": {},
    "server.openai_chat": {
        "usage_of": _ANSWER,
        "timings_of": _ANSWER,
        "_Form": _ANSWER,
        "_delta": _ANSWER,
    },
    "server.openai_responses": {
        "Responses._keep": _ANSWER,
        "_Form": _ANSWER,
        "_item": _ANSWER,
        "_add": _ANSWER,
        "_filled": _ANSWER,
    },
    "server.openai_text": {"_Form": _ANSWER},
    "server.stream": {"sign_of_life": _ANSWER, "EventStream": "sends"},
    "source": {},
    "spec": {},
    "stream_decoder": {"_byte_alphabet": "runs when the module is imported"},
    "strict_json": {},
    "structured": {
        "ConstraintFactory": "chooses among tokens",
        "_ceilings": "chooses among tokens",
        "_Grammar": "chooses among tokens",
        "_AfterReasoning": "chooses among tokens",
    },
    "tokenizer": {
        "Tokenizer.bos_token": "says what was read",
        "Tokenizer.eos_token": "says what was read",
        "Tokenizer.pad_token": "says what was read",
        "Tokenizer.unk_token": "says what was read",
    },
    "tool_calls": {},
    "tool_grammar": {},
}
"""The modules that read what comes from outside; functions and classes in them that do not, and why.

Only lines inside functions are counted: those that run when a module is imported need no input.
"""


@dataclass(frozen=True)
class Module:
    """A parser.

    Attributes:
        name: Inside ``flashmoe``.
        path: The installed file.
        lines: Inside its functions, those left out not.
    """

    name: str
    path: str
    lines: frozenset[int]


def modules() -> list[Module]:
    """The parsers, as they are installed."""
    found = []
    for name, left_out in PARSERS.items():
        spec = importlib.util.find_spec(f"flashmoe.{name}")
        if spec is None or spec.origin is None:
            raise RuntimeError(f"flashmoe.{name} is not there any more; see PARSERS in {__file__}")
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        absent = set(left_out)
        lines = frozenset(_inside(tree, "", absent))
        if absent:
            raise RuntimeError(
                f"flashmoe.{name} has no {sorted(absent)}; see PARSERS in {__file__}"
            )
        found.append(Module(name, spec.origin, lines))
    return found


def _inside(node: ast.AST, prefix: str, left_out: set[str]) -> Iterator[int]:
    """Lines of functions' bodies; takes from ``left_out`` what it comes by."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        name = prefix + child.name
        if name in left_out:
            left_out.remove(name)
        elif isinstance(child, ast.ClassDef):
            yield from _inside(child, f"{name}.", left_out)
        else:
            yield from range(child.body[0].lineno, (child.end_lineno or 0) + 1)


def coverage(targets: Sequence[Target]) -> dict[str, tuple[set[int], set[int]]]:
    """Lines of each parser that the kept inputs and the seeds do not reach, and all of its lines.

    Args:
        targets: Those whose inputs are run, in a process that has not run any yet.
    """
    import coverage

    parsers = modules()
    paths = [module.path for module in parsers]
    tool = coverage.Coverage(data_file=None, config_file=False, include=paths, messages=False)
    with tool.collect():
        reports = replay(targets)
    for report in reports:
        for finding in report.findings:
            print(f"    {report.name}: {finding.what}")
    found = {}
    for module in parsers:
        _, statements, _, missing, _ = tool.analysis2(module.path)
        found[module.name] = (module.lines & set(missing), module.lines & set(statements))
    return found


def print_coverage(targets: Sequence[Target]) -> int:
    """Show it; 1 if less than 95 % of all lines are reached."""
    found = coverage(targets)
    for name, (missed, lines) in found.items():
        print(_row(f"flashmoe.{name}", len(lines) - len(missed), len(lines)))
        if missed:
            print(f"    not reached: {sorted(missed)}")
    print("not counted:")
    for name, left_out in PARSERS.items():
        for why in dict.fromkeys(left_out.values()):
            what = ", ".join(part for part, said in left_out.items() if said == why)
            print(f"    flashmoe.{name}: {what}: {why}")
    total = sum(len(lines) for _, lines in found.values())
    reached = total - sum(len(missed) for missed, _ in found.values())
    print(_row("all of Python", reached, total))
    return 0 if reached >= LEAST * total else 1


def _row(name: str, reached: int, lines: int) -> str:
    return f"{name:34} {reached:4} of {lines:4} lines, {100 * reached / max(lines, 1):5.1f} %"


class Watch:
    """Sees lines of the parsers that were not reached before, while it is entered."""

    def __init__(self) -> None:
        self._lines = {module.path: module.lines for module in modules()}
        self._left: dict[CodeType, set[int]] = {}
        self._news: set[tuple[str, int]] = set()

    def __enter__(self) -> Watch:
        sys.settrace(self._called)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        sys.settrace(None)

    def copy(self) -> Watch:
        """Another that has seen the same."""
        other = Watch()
        other._left = {code: set(lines) for code, lines in self._left.items()}
        return other

    def news(self) -> set[tuple[str, int]]:
        """Files and lines that were reached for the first time since the last call."""
        news, self._news = self._news, set()
        return news

    def _called(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if code.co_filename not in self._lines:
            return None
        if code not in self._left:
            lines = {line for _, _, line in code.co_lines() if line}
            self._left[code] = lines & self._lines[code.co_filename]
        return self._stepped if self._left[code] else None  # a function known through and through

    def _stepped(self, frame: FrameType, event: str, arg: Any) -> Any:
        left = self._left[frame.f_code]
        if frame.f_lineno in left:
            left.remove(frame.f_lineno)
            self._news.add((frame.f_code.co_filename, frame.f_lineno))
        return self._stepped


def grow(target: Target, watch: Watch, cases: int, seed: int) -> tuple[Report, list[bytes]]:
    """Look for inputs that reach lines which no other did.

    Args:
        target: The parser.
        watch: Has seen what all kept inputs and seeds reach.
        cases: How many damaged inputs.
        seed: Of the damage.

    Returns:
        What happened, and as few of the inputs as reach all that was found, the shortest first.
    """
    again = watch.copy()
    with watch:
        report = run(target, cases=cases, seed=seed, news=watch.news)
    fewer = []
    with again:
        for data in sorted(report.news, key=len):
            run_one(target, data, Report(target.name))
            if again.news():
                fewer.append(data)
    return report, fewer
