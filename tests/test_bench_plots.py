"""Figures of benchmark results: what is drawn where, and what cannot be drawn."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashmoe.bench import plots
from flashmoe.bench.setting import Setting
from flashmoe.errors import ArgumentError, FlashMoEError


def measurement(kind: str = "decode", engine: str = "flashmoe", **more: Any) -> dict[str, Any]:
    known = {name: more.pop(name) for name in list(more) if hasattr(Setting(), name)}
    median = more.get("median", 4.0)
    out = {"engine": engine, "kind": kind, "settings": Setting(kind, **known).as_dict()}
    quartiles = [median * 0.75, median * 1.5] if median else None
    return out | {"median": median, "quartiles": quartiles, "read_wait_share": None} | more


def document(*measurements: dict[str, Any]) -> dict[str, Any]:
    return {"schema": 1, "measurements": list(measurements)}


FULL = document(
    measurement(memory=8_000_000_000, median=6.0, read_wait_share=0.25),
    measurement(memory=2_000_000_000, median=2.0, read_wait_share=0.5),
    measurement(memory=2_000_000_000, median=1.0, context=4096),
    measurement("prefill", memory=2_000_000_000, median=50.0, read_wait_share=0.75),
    measurement("prefill", memory=8_000_000_000, median=90.0, expert_uses=[[1, 100, 0], [5]]),
    measurement(engine="llama.cpp", cap=9_000_000_000, median=3.0),
    measurement(engine="llama.cpp", cap=3_000_000_000, median=None, error="killed"),
)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures drawn, instead of files."""
    pytest.importorskip("matplotlib")
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    return drawn


def lines(axes: Any) -> dict[str, list[tuple[float, float, float, float]]]:
    """Of each line its points: x, and y with its error bar's ends."""
    out = {}
    for container in axes.containers:
        line, _, (bars,) = container.lines
        points = zip(*line.get_data(), bars.get_segments(), strict=True)
        out[container.get_label()] = [(x, y, s[0][1], s[1][1]) for x, y, s in points]
    return out


def test_budgets_are_lines_with_quartiles(figures: list[Any]) -> None:
    plots.plot_budget(FULL, "x.svg")
    decode, prefill = figures[0].axes
    assert lines(decode) == {
        "flashmoe decode, context 64": [(2, 2, 1.5, 3), (8, 6, 4.5, 9)],
        "flashmoe decode, context 4096": [(2, 1, 0.75, 1.5)],
    }
    assert lines(prefill) == {"flashmoe prefill": [(2, 50, 37.5, 75), (8, 90, 67.5, 135)]}
    assert prefill.get_xlabel() == "budget (GB)"


def test_limits_of_the_process_take_the_place_of_budgets(figures: list[Any]) -> None:
    caps = [
        measurement(engine=engine, cap=cap * 10**9, memory=10**9, median=float(cap))
        for engine in ("flashmoe", "llama.cpp")
        for cap in (3, 2)
    ]
    plots.plot_budget(document(*caps), "x.svg")
    (axes,) = figures[0].axes
    points = [(2, 2, 1.5, 3), (3, 3, 2.25, 4.5)]
    assert lines(axes) == {"flashmoe decode": points, "llama.cpp decode": points}
    assert axes.get_xlabel() == "limit of the process (GB)"


def test_contexts_are_of_decoding_alone(figures: list[Any]) -> None:
    results = document(
        *(measurement(context=n, median=1 / n) for n in (64, 8)), FULL["measurements"][3]
    )
    plots.plot_context(results, "x.svg")
    (axes,) = figures[0].axes
    ((label, points),) = lines(axes).items()
    assert label == "flashmoe decode"
    assert [(x, y) for x, y, *_ in points] == [(8, 1 / 8), (64, 1 / 64)]


def test_a_token_is_waiting_and_computing(figures: list[Any]) -> None:
    layers = {"mixer": [1.0, 2.0], "router": [0.5, 0.25], "read": [4.0, 8.0], "experts": [1.0, 3.0]}
    results = document(
        measurement(median=2.0, read_wait_share=0.25),
        measurement(median=4.0, read_wait_share=1.0, threads=2, layer_ms=layers),
    )
    plots.plot_breakdown(results, "x.svg")
    whole, by_layer = figures[0].axes
    waiting, computing = ([(b.get_x(), b.get_width()) for b in c] for c in whole.containers)
    assert waiting == [(0, 125), (0, 250)] and computing == [(125, 375), (250, 0)]
    assert [t.get_text() for t in whole.get_yticklabels()] == [
        "flashmoe decode, threads None",
        "flashmoe decode, threads 2",
    ]
    assert [c.get_label() for c in by_layer.containers] == list(layers)
    tops = [b.get_y() + b.get_height() for b in by_layer.containers[-1]]
    assert tops == [sum(stage[0] for stage in layers.values()), 13.25]


def test_layers_of_different_number_are_refused(figures: list[Any]) -> None:
    broken = measurement(layer_ms={"mixer": [1.0, 2.0], "read": [1.0]})
    with pytest.raises(ArgumentError, match="1 layers of read, not 2"):
        plots.plot_breakdown(document(broken), "x.svg")


@pytest.mark.parametrize("by_use", [False, True])
def test_experts_are_a_map(figures: list[Any], by_use: bool) -> None:
    uses = [[1, 100, 0], [5]]
    plots.plot_heat(FULL, "x.svg", by_use=by_use)
    plots.plot_heat(uses, "x.svg", by_use=by_use)
    for figure in figures:
        (image,) = figure.axes[0].images
        seen = image.get_array()
        first = [100, 1, 0] if by_use else [1, 100, 0]
        assert seen.filled(0).tolist() == [first, [5, 0, 0]]
        assert np.array_equal(seen.mask, [[n == 0 for n in first], [False, True, True]])
        assert (image.norm.vmin, image.norm.vmax) == (1, 100)


def test_draw_writes_what_there_is_data_for(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = ["budget", "context", "breakdown", "heat"]
    assert plots.draw(FULL, tmp_path / "a.svg") == [tmp_path / f"a-{name}.svg" for name in names]
    only = document(measurement(read_wait_share=0.5))
    assert plots.draw(only, tmp_path / "b.png") == [tmp_path / "b.png"]
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert all("<svg" in (tmp_path / f"a-{name}.svg").read_text() for name in names)
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize(
    ("results", "why"),
    [
        (document(), "nothing to draw"),
        (document(measurement(median=None)), "nothing to draw"),
        ({"schema": 2, "measurements": []}, "schema 2; this version draws 1"),
    ],
)
def test_nothing_to_draw(results: dict[str, Any], why: str) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ArgumentError, match=why):
        plots.draw(results, "x.svg")


@pytest.mark.parametrize("plot", ["plot_budget", "plot_context", "plot_breakdown", "plot_heat"])
def test_a_figure_without_its_data_is_refused(plot: str) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ArgumentError, match="no measurement"):
        getattr(plots, plot)(document(measurement("prefill")), "x.svg")


def test_other_formats_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"x\.pdf: figures are written as \.png or \.svg"):
        plots.draw(FULL, "x.pdf")


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FlashMoEError, match=r'pip install "flashmoe\[bench\]"'):
        plots.check("x.svg")
