"""Figures of a results document, drawn with matplotlib."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flashmoe.bench.run import SCHEMA
from flashmoe.errors import ArgumentError, FlashMoEError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Any]
Measured = Mapping[str, Any]

FORMATS = (".png", ".svg")
_STAGES = ("mixer", "router", "read", "experts")
_COLOURS = {
    "waiting for reads": "tab:orange",
    "computing": "tab:blue",
    "mixer": "tab:green",
    "router": "tab:purple",
    "read": "tab:orange",
    "experts": "tab:blue",
}


def check(path: str | PathLike[str]) -> Path:
    """Refuse early what could not be drawn later.

    Args:
        path: Where a figure is to be written.

    Returns:
        The same.

    Raises:
        ArgumentError: Figures are not written in this format.
        FlashMoEError: matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ArgumentError(f"{path}: figures are written as {' or '.join(FORMATS)}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise FlashMoEError(
            f'figures need matplotlib ({error}): run pip install "flashmoe[bench]"'
        ) from error
    return path


def draw(results: Results, path: str | PathLike[str]) -> list[Path]:
    """Draw every figure that a document has data for.

    Args:
        results: The document.
        path: Where to write; of several figures each gets a word, such as ``NAME-budget.svg``.

    Returns:
        The files written.

    Raises:
        ArgumentError: Nothing can be drawn, or not in this format.
        FlashMoEError: matplotlib is not installed.
    """
    path = check(path)
    done = _done(results)
    plots: dict[str, Callable[[Results, Path], None]] = {}
    if len({_budget(m, _budget_key(done)) for m in done} - {None}) > 1:
        plots["budget"] = plot_budget
    if len({m["settings"]["context"] for m in done if m["kind"] == "decode"}) > 1:
        plots["context"] = plot_context
    if any(_has_breakdown(m) for m in done):
        plots["breakdown"] = plot_breakdown
    if any(m.get("expert_uses") for m in done):
        plots["heat"] = plot_heat
    if not plots:
        raise ArgumentError(
            "the results hold nothing to draw: no measurement ended, or there are neither several "
            "budgets or contexts nor times of reading"
        )
    out = []
    for name, plot in plots.items():
        file = path if len(plots) == 1 else path.with_name(f"{path.stem}-{name}{path.suffix}")
        plot(results, file)
        out.append(file)
    return out


def plot_budget(results: Results, path: str | PathLike[str]) -> None:
    """Tokens a second against memory: medians, with quartiles as error bars.

    Memory is the model's budget, or the limit of the process where only that varies. Measurements
    without it are not part of this figure.

    Args:
        results: The document.
        path: Where to write.
    """
    path = check(path)
    done = _done(results)
    key = _budget_key(done)
    shown = [m for m in done if _budget(m, key) is not None]
    if not shown:
        raise ArgumentError("no measurement with a result has a memory budget")
    kinds = sorted({m["kind"] for m in shown})
    figure = _figure(height=3.5 * len(kinds))
    all_axes = figure.subplots(len(kinds), squeeze=False, sharex=True)[:, 0]
    for axes, kind in zip(all_axes, kinds, strict=True):
        part = [m for m in shown if m["kind"] == kind]
        _lines(axes, part, lambda m: float(m["settings"][key]) / 1e9, key)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
    all_axes[-1].set_xlabel("budget (GB)" if key == "memory" else "limit of the process (GB)")
    _save(figure, path)


def plot_context(results: Results, path: str | PathLike[str]) -> None:
    """Tokens a second of decoding against the tokens that came before.

    Args:
        results: The document.
        path: Where to write.
    """
    path = check(path)
    shown = [m for m in _done(results) if m["kind"] == "decode"]
    if not shown:
        raise ArgumentError("no measurement of decoding has a result")
    figure = _figure()
    axes = figure.subplots()
    _lines(axes, shown, lambda m: float(m["settings"]["context"]), "context")
    axes.set_xlabel("context (tokens)")
    _save(figure, path)


def plot_breakdown(results: Results, path: str | PathLike[str]) -> None:
    """Milliseconds a token of each measurement, and of each layer where layers were timed.

    Args:
        results: The document.
        path: Where to write.
    """
    path = check(path)
    done = _done(results)
    shown = [m for m in done if _has_breakdown(m)]
    if not shown:
        raise ArgumentError("no measurement tells how long it waited for reads")
    names = _names(shown)
    whole = [i for i, m in enumerate(shown) if m.get("read_wait_share") is not None]
    layered = [i for i, m in enumerate(shown) if m.get("layer_ms")]
    heights = ([1 + 0.35 * len(whole)] if whole else []) + [3.0] * len(layered)
    figure = _figure(height=sum(heights) + 0.5)
    rows = iter(figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0])
    if whole:
        axes = next(rows)
        times = [1000 / shown[i]["median"] for i in whole]
        waits = [t * shown[i]["read_wait_share"] for t, i in zip(times, whole, strict=True)]
        rest = [t - wait for t, wait in zip(times, waits, strict=True)]
        at = range(len(whole))
        for label, left, width in (("waiting for reads", None, waits), ("computing", waits, rest)):
            axes.barh(at, width, left=left, label=label, color=_COLOURS[label])
        axes.set_yticks(at, [names[i] for i in whole])
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds a token")
        axes.legend()
    for i in layered:
        _layers(next(rows), shown[i]["layer_ms"], names[i])
    _save(figure, path)


def plot_heat(
    results: Results | Sequence[Sequence[int]], path: str | PathLike[str], *, by_use: bool = False
) -> None:
    """How often each expert of each layer was used, on a logarithmic scale.

    Args:
        results: The document, of which each measurement that counted uses gets a map; or the
            counts of one, by layer and expert.
        path: Where to write.
        by_use: Whether the experts of each layer are sorted by use, not by index.
    """
    from math import ceil

    path = check(path)
    maps: dict[str, Sequence[Sequence[int]]]
    if isinstance(results, Mapping):
        shown = [m for m in _done(results) if m.get("expert_uses")]
        maps = dict(zip(_names(shown), (m["expert_uses"] for m in shown), strict=True))
    else:
        maps = {"": results}
    grids = {name: _grid(uses, by_use) for name, uses in maps.items()}
    if not any(grid.size and np.nanmax(grid, initial=0) > 0 for grid in grids.values()):
        raise ArgumentError("no measurement counted how often experts were used")

    heights = [ceil(1 + 0.08 * len(grid)) + 0.5 for grid in grids.values()]
    figure = _figure(height=sum(heights) + 0.5)
    from matplotlib.colors import LogNorm

    most = max(float(np.nanmax(grid, initial=0)) for grid in grids.values())
    norm = LogNorm(vmin=1, vmax=max(2.0, most))
    all_axes = figure.subplots(len(grids), squeeze=False, height_ratios=heights)[:, 0]
    for axes, (name, grid) in zip(all_axes, grids.items(), strict=True):
        seen = np.ma.masked_where(~(grid > 0), grid)
        image = axes.imshow(seen, aspect="auto", norm=norm, interpolation="nearest")
        axes.set_title(name)
        axes.set_ylabel("layer")
        axes.set_facecolor("lightgrey")
    all_axes[-1].set_xlabel("expert, most used first" if by_use else "expert")
    figure.colorbar(image, ax=list(all_axes), label="uses (grey: none)")
    _save(figure, path)


def _figure(height: float = 4.5) -> Figure:
    """A figure outside pyplot, whose state the whole process would share."""
    from matplotlib.figure import Figure

    return Figure(figsize=(8, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=150)


def _done(results: Results) -> list[Measured]:
    """The measurements that have a result; those that failed say why in the document."""
    if results.get("schema") != SCHEMA:
        raise ArgumentError(
            f"the results have schema {results.get('schema')!r}; this version draws {SCHEMA}"
        )
    return [m for m in results["measurements"] if m.get("median")]


def _budget_key(measured: Sequence[Measured]) -> str:
    """Which setting is the memory: the budget, unless only the process's limit varies."""
    memory, cap = ({m["settings"][k] for m in measured} - {None} for k in ("memory", "cap"))
    return "cap" if len(memory) <= 1 and len(cap) > len(memory) else "memory"


def _budget(measured: Measured, key: str) -> int | None:
    nbytes: int | None = measured["settings"][key]
    return nbytes


def _has_breakdown(measured: Measured) -> bool:
    return measured.get("read_wait_share") is not None or bool(measured.get("layer_ms"))


def _lines(axes: Axes, shown: Sequence[Measured], x: Callable[[Measured], float], key: str) -> None:
    """One line for each engine, kind and set of other settings, and a legend."""
    lines: dict[str, list[Measured]] = {}
    for name, measured in zip(_names(shown, but=key), shown, strict=True):
        lines.setdefault(name, []).append(measured)
    for name, points in lines.items():
        points.sort(key=x)
        middle = np.array([p["median"] for p in points])
        quartiles = np.array([p["quartiles"] for p in points]).T
        error = np.abs(quartiles - middle)
        axes.errorbar([x(p) for p in points], middle, error, label=name, marker="o", capsize=3)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("tokens a second")
    axes.grid(alpha=0.3)
    axes.legend()


def _layers(axes: Axes, layer_ms: Mapping[str, Sequence[float]], name: str) -> None:
    """Stacked bars by layer."""
    bottom = np.zeros(max(len(times) for times in layer_ms.values()))
    for stage in (*_STAGES, *(s for s in layer_ms if s not in _STAGES)):
        if stage in layer_ms:
            times = np.asarray(layer_ms[stage], float)
            if len(times) != len(bottom):
                raise ArgumentError(
                    f"{name}: layer_ms has {len(times)} layers of {stage}, not {len(bottom)}"
                )
            colour = _COLOURS.get(stage)
            axes.bar(range(len(times)), times, bottom=bottom, label=stage, color=colour)
            bottom += times
    axes.set_title(name)
    axes.set_xlabel("layer")
    axes.set_ylabel("milliseconds")
    axes.legend()


def _grid(uses: Sequence[Sequence[int]], by_use: bool) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Uses by layer and expert; NaN where a layer has fewer experts than another."""
    grid = np.full((len(uses), max(map(len, uses), default=0)), np.nan)
    for row, layer in zip(grid, uses, strict=True):
        row[: len(layer)] = sorted(layer, reverse=True) if by_use else layer
    return grid


def _names(shown: Sequence[Measured], but: str = "") -> list[str]:
    """What tells measurements apart: engine, kind, and the settings that vary within both.

    Args:
        shown: The measurements.
        but: A setting that is left out.
    """
    values: dict[tuple[str, str, str], set[str]] = {}
    for m in shown:
        for key, value in m["settings"].items():
            values.setdefault((m["engine"], m["kind"], key), set()).add(json.dumps(value))
    out = []
    for m in shown:
        engine, kind = m["engine"], m["kind"]
        varied = [
            _named(key, value)
            for key, value in m["settings"].items()
            if key != but and len(values[engine, kind, key]) > 1
        ]
        out.append(", ".join([f"{engine} {kind}", *varied]))
    return out


def _named(key: str, value: Any) -> str:
    if key in ("memory", "cap") and value is not None:
        return f"{key} {value / 1e9:g} GB"
    return f"{key} {json.dumps(value) if isinstance(value, dict | list) else value}"
