"""Figures of a sweep, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from flashmoe.errors import ArgumentError
from flashmoe.evaluation.sweep import SCHEMA

Document = Mapping[str, Any]

_AXES = ("experts_per_token", "weights", "kv_dtype")
_TITLES = {
    "experts_per_token": "experts per token",
    "weights": "weights",
    "kv_dtype": "numbers in the KV cache",
}


def draw(document: Document, path: str | PathLike[str]) -> Path:
    """Draw every figure of merit that was measured against what varies.

    Args:
        document: Of a sweep.
        path: Where to write, ``.png`` or ``.svg``.

    Returns:
        The file written.

    Raises:
        ArgumentError: There is no result to draw, or not in this format.
        FlashMoEError: matplotlib is not installed.
    """
    from flashmoe.bench.plots import check

    path = check(path)
    if document.get("schema") != SCHEMA:
        raise ArgumentError(
            f"the results have schema {document.get('schema')!r}; this version draws {SCHEMA}"
        )
    done = [line for line in document["lines"] if line["result"]]
    panels = {title: get for title, get in _PANELS.items() if any(get(x) is not None for x in done)}
    if not panels:
        raise ArgumentError("the results hold nothing to draw: no setting ended")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3 * len(panels)), layout="constrained")
    named = [_named(line) for line in done]
    x = next((a for a in _AXES if len({n[a] for n in named}) > 1), _AXES[0])
    ticks = list(dict.fromkeys(n[x] for n in named))
    all_axes = figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0]
    for axes, (title, get) in zip(all_axes, panels.items(), strict=True):
        for label, points in _lines(done, named, x, get).items():
            at = [ticks.index(tick) for tick, _ in points]
            axes.plot(at, [y for _, y in points], marker="o", label=label or None)
            if label:
                axes.legend()
        axes.set_ylabel(title)
        axes.set_xticks(range(len(ticks)), ticks)
        axes.grid(alpha=0.3)
        if title.startswith("KL"):
            axes.set_yscale("symlog", linthresh=1e-4)
            axes.set_ylim(bottom=0)
    all_axes[-1].set_xlabel(_TITLES[x])
    figure.savefig(path, dpi=150)
    return path


def _share(part: str) -> Callable[[Mapping[str, Any]], float | None]:
    def get(line: Mapping[str, Any]) -> float | None:
        calls = line["result"]["calls"]
        return calls[part] / calls["prompts"] if calls else None

    return get


def _figure(of: str, name: str) -> Callable[[Mapping[str, Any]], float | None]:
    def get(line: Mapping[str, Any]) -> float | None:
        part = line["result"][of]
        return part[name] if part else None

    return get


_PANELS = {
    "perplexity": _figure("text", "perplexity"),
    "KL, mean (nats)": _figure("divergence", "kl_mean"),
    "top-1 agreement": _figure("divergence", "agreement"),
    "calls that fit": _share("fits"),
}


def _named(line: Mapping[str, Any]) -> dict[str, str]:
    """The setting of a line in words, by axis."""
    s = line["settings"]
    words = [f"{k}={v}" for k, v in s["convert"].items()]
    return {
        "experts_per_token": str(line["result"]["experts_per_token"]),
        "weights": " ".join([f"{s['bits']} bits" if s["bits"] else "as it is", *words]),
        "kv_dtype": str(line["result"]["kv_dtype"]),
    }


def _lines(
    done: list[Mapping[str, Any]],
    named: list[dict[str, str]],
    x: str,
    get: Callable[[Mapping[str, Any]], float | None],
) -> dict[str, list[tuple[str, float]]]:
    """Points of each line: one for each combination of what varies besides ``x``."""
    others = [a for a in _AXES if a != x and len({n[a] for n in named}) > 1]
    out: dict[str, list[tuple[str, float]]] = {}
    for line, names in zip(done, named, strict=True):
        value = get(line)
        if value is not None:
            label = ", ".join(names[a] for a in others)
            out.setdefault(label, []).append((names[x], value))
    return out
