"""``flashmoe bench``: how fast a model runs here, under several settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashmoe.cli import show
from flashmoe.cli.options import find_model
from flashmoe.reading import WAYS

if TYPE_CHECKING:
    from flashmoe.bench.run import Engine, Floors, Measurement
    from flashmoe.bench.setting import Setting

EPILOG = """\b
Examples:
  flashmoe bench demo
  flashmoe bench MODEL --memory 2GB,4GB,8GB --plot budget.svg
  flashmoe bench MODEL --kind prefill --prompt 512,4096 --json prefill.json
  flashmoe bench MODEL --context 1024,32768 --tokens 16
  flashmoe bench MODEL --batch 1,2,4,8 --memory 4GB
  flashmoe bench MODEL --memory 5GB --cap 6GB --cold      (Linux, as root)
  flashmoe bench MODEL --read direct,buffered --option overlap=true,false
  flashmoe bench MODEL --threads 2 --compare llama.cpp=./llama-bench:model.gguf

Every combination of the values is one line. Each visit is a process of its own; settings take turns
(ABBA), so that a machine that grows busier treats all alike. Tokens are random unless --text is
given, which is the worst case for keeping experts in memory. What is printed: the median and
quartiles of the samples, expert bytes read from disk a token, the share of experts that were in
memory, the share of the time spent waiting for reads, the most anonymous memory, and the floor:
tokens a second if only the bytes had to move. Other engines have no budget: --memory is ours alone,
--cap limits all alike.
"""


def comma(convert: Callable[[str], Any]) -> Callable[..., list[Any] | None]:
    """A callback for values that are separated by commas.

    Args:
        convert: What makes a value of a text; its ValueError is the user's to read.
    """

    def callback(_ctx: click.Context, param: click.Parameter, text: str | None) -> list[Any] | None:
        if text is None:
            return None
        try:
            return [convert(part.strip()) for part in text.split(",")]
        except ValueError as error:
            raise click.BadParameter(str(error), param=param) from error

    return callback


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(f"{value} is not at least 1")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(f"{value} is below 0")
    return value


def _bytes(text: str) -> int:
    from flashmoe.errors import FlashMoEError
    from flashmoe.machine import parse_size

    try:
        return parse_size(text)
    except FlashMoEError as error:
        raise ValueError(str(error)) from error


def _one_of(*names: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in names:
            raise ValueError(f"{text!r} is not one of {', '.join(names)}")
        return text

    return convert


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return int(text)
    except ValueError:
        return text


@click.command(epilog=EPILOG)
@click.argument("model")
@click.option("--kind", default="decode,prefill", callback=comma(_one_of("decode", "prefill")),
              show_default=True, help="Tokens one after another; a prompt at once.")  # fmt: skip
@click.option("--memory", metavar="SIZES", callback=comma(_bytes), help="Budgets of the model.")
@click.option("--cap", metavar="SIZES", callback=comma(_bytes),
              help="Limits of the whole process, page cache included.")  # fmt: skip
@click.option("--prompt", metavar="NS", default="512", callback=comma(_positive),
              show_default=True, help="Tokens of a prompt.")  # fmt: skip
@click.option("--context", metavar="NS", default="64", callback=comma(_whole), show_default=True,
              help="Tokens before the first that is decoded.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(min=1), default=32, show_default=True,
              help="Tokens of a decode sample.")  # fmt: skip
@click.option("--experts-per-token", metavar="KS", callback=comma(_positive),
              help="Routed experts a token; fewer than its own is another model.")  # fmt: skip
@click.option("--threads", metavar="NS", callback=comma(_positive), help="Threads that compute.")
@click.option("--read", default="auto", callback=comma(_one_of("auto", *WAYS)), show_default=True,
              help=f"How experts are read: auto, {', '.join(WAYS)}.")  # fmt: skip
@click.option("--batch", metavar="NS", default="1", callback=comma(_positive), show_default=True,
              help="Sequences decoded together.")  # fmt: skip
@click.option("--option", "options", metavar="NAME=VALUES", multiple=True,
              help="Other arguments of flashmoe.Model, such as read_threads=4,8.")  # fmt: skip
@click.option("--cold/--warm", default=False, show_default=True,
              help="Measure from the first byte on, or when caches are filled.")  # fmt: skip
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Take the tokens of this file instead of random ones.")  # fmt: skip
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True,
              help="Visits to each setting.")  # fmt: skip
@click.option("--samples", type=click.IntRange(min=1), default=3, show_default=True,
              help="Samples of a visit.")  # fmt: skip
@click.option("--compare", multiple=True, metavar="ENGINE=…",
              help="llama.cpp=LLAMA-BENCH:GGUF or mlx-lm=MODEL, in the same turns.")  # fmt: skip
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path),
              help="Write every sample, with the machine and the commit.")  # fmt: skip
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path),
              help="Draw the results, .png or .svg.")  # fmt: skip
def command(
    model: str,
    json_path: Path | None,
    plot: Path | None,
    text: Path | None,
    rounds: int,
    samples: int,
    compare: tuple[str, ...],
    **asked: Any,
) -> None:
    """Measure how fast MODEL runs on this machine: decode, prefill, time to the first token."""
    from flashmoe.bench import run

    path = Path(find_model(model))
    settings = _settings(asked)
    engines: list[Engine] = [run.FlashMoE(path, _tokens(path, text))]
    if plot:
        from flashmoe.bench import plots

        plots.check(plot)
    if compare:
        from flashmoe.bench.compare import parse_comparison

        engines += [parse_comparison(c) for c in compare]
    show.note("measuring memory and disk")
    floors = run.measure_floors(path)
    bar = _Progress(len(settings) * len(engines) * rounds)
    with bar:
        seen = run.measure(engines, settings, rounds=rounds, samples=samples, on_visit=bar.step)
    document = run.document(seen, floors)
    click.echo(_report(seen, floors))
    if json_path:
        json_path.write_text(json.dumps(document, indent=1) + "\n")
    if plot:
        from flashmoe.bench.plots import draw

        for written in draw(document, plot):
            show.note(f"drew {written}")
    if all(m.error for m in seen):
        raise click.exceptions.Exit(1)


def _settings(asked: dict[str, Any]) -> list[Setting]:
    from flashmoe.bench.setting import Setting, sweep

    first = Setting(tokens=asked.pop("tokens"), cold=asked.pop("cold"))
    values = {k: v for k, v in asked.items() if v is not None and k != "options"}
    names, lists = [], []
    for text in asked["options"]:
        name, equals, listed = text.partition("=")
        if not equals or not name or not listed:
            raise click.UsageError(f"--option {text}: NAME=VALUE was expected")
        names.append(name)
        lists.append([_value(part) for part in listed.split(",")])
    values["options"] = [
        tuple(zip(names, combination, strict=True)) for combination in product(*lists)
    ]
    return sweep(first, values)


def _tokens(path: Path, text: Path | None) -> tuple[int, ...]:
    if text is None:
        return ()
    from flashmoe.tokenizer import Tokenizer

    tokens = tuple(Tokenizer.from_directory(path).encode(text.read_text()))
    if not tokens:
        raise click.UsageError(f"--text {text}: there is no text in it")
    return tokens


class _Progress:
    """A bar that moves with every visit."""

    def __init__(self, visits: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=visits, unit="visit", leave=False, disable=None)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def step(self, measurement: Measurement) -> None:
        """A visit has ended.

        Args:
            measurement: To what it belongs.
        """
        self._bar.set_postfix_str(f"{measurement.engine} {measurement.setting.kind}")
        self._bar.update()


def _report(seen: Sequence[Measurement], floors: Floors) -> str:
    """The table, the failures under it, and what moving bytes costs."""
    head = [
        "setting",
        "tok/s",
        "quartiles",
        "read/token",
        "hits",
        "waiting",
        "anon",
        "floor",
        "ratio",
    ]
    varied = _varied(seen)
    rows, notes = [], []
    base = {m.setting: m.median for m in seen if m.engine == "flashmoe"}
    for m in seen:
        name = " ".join([m.engine, m.setting.kind, *_differences(m.setting, varied)])
        if m.error:
            notes.append(f"{name}: {m.error}")
        if m.median is None:
            continue
        d = m.as_dict(floors)
        ours = base.get(m.setting)
        low, high = d["quartiles"]
        rows.append([
            name,
            show.rate(m.median),
            f"{show.rate(low)} .. {show.rate(high)}",
            "" if d["bytes_read_per_token"] is None else show.size(d["bytes_read_per_token"]),
            _percent(d["hit_rate"]),
            _percent(d["read_wait_share"]),
            "" if d["peak_anon"] is None else show.size(d["peak_anon"]),
            "" if d["floor"] is None else show.rate(d["floor"]),
            f"{ours / m.median:.2f}x" if m.engine != "flashmoe" and ours else "",
        ])  # fmt: skip
    disk = f", disk {show.size(floors.disk)}/s" if floors.disk else ""
    notes.append(f"memory {show.size(floors.memory)}/s{disk}")
    return "\n".join([show.table(head, rows), "", *notes])


def _varied(seen: Sequence[Measurement]) -> list[str]:
    """The attributes in which settings of one kind differ."""
    first: dict[str, Setting] = {}
    out: dict[str, None] = {}
    for m in seen:
        other = first.setdefault(m.setting.kind, m.setting).as_dict()
        out |= {k: None for k, v in m.setting.as_dict().items() if v != other[k]}
    return list(out)


def _differences(setting: Setting, varied: Sequence[str]) -> list[str]:
    values = setting.as_dict()
    out = []
    for name in varied:
        value = values[name]
        if name == "options":
            out += [f"{k}={v}" for k, v in value.items()]
        elif value is not None:
            shown = show.size(value) if name in ("memory", "cap") else value
            out.append(f"{name}={shown}".replace(" ", ""))
    return out


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}%"
