"""``flashmoe eval``: what fewer experts or fewer bits cost, in figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashmoe.cli import show
from flashmoe.cli.options import find_model

if TYPE_CHECKING:
    from flashmoe.evaluation.sweep import Line, Setting

EPILOG = """\b
Examples:
  flashmoe eval demo
  flashmoe eval MODEL --text book.txt
  flashmoe eval MODEL --text book.txt --experts-per-token native,6,4,2,1
  flashmoe eval BF16-MODEL --text book.txt --bits 8,4,3,2 --plot bits.svg
  flashmoe eval BF16-MODEL --text book.txt --bits 4 --convert-option group_size=32,64,128
  flashmoe eval 4BIT-MODEL --text book.txt --reference BF16-MODEL
  flashmoe eval MODEL --text book.txt --kv-dtype f32,f16,bf16
  flashmoe eval MODEL --prompts tools.jsonl --json result.json

Every combination of the values is one line:

\b
  perplexity  e to the mean surprise at each token of --text; 1 would be certainty.
  ±           its standard error, as if tokens were independent: not less than this.
  KL          how far the next-token distribution is from the reference's: mean, 99th percentile
              and maximum over the text, in nats. 0 is the same distribution.
  top-1       how often both think the same token likeliest.
  valid       answers to --prompts whose tool calls are valid JSON.
  fits        those that name an offered tool and keep to its schema.
  exact       those that make the call the prompt expects.

The reference is MODEL as it is, with all its experts, unless --reference names another. KL tells
settings apart on a shorter text than perplexity does. The text is read in windows; every token but
the first is scored once, with at least --context tokens before it.

A line of --prompts is {"messages": [...], "tools": [...], "expected": {"name": ..., "arguments":
{...}}}, the last one optional; without tools the answer itself is to be JSON. --bits converts
MODEL, which must not be quantised already, into --work or a temporary directory, one after another.
Perplexities of models with different tokenizers cannot be compared.
"""


def _listed(convert: Callable[[str], Any]) -> Callable[..., list[Any]]:
    """A callback for values separated by commas; ``native`` is None."""

    def callback(_ctx: click.Context, param: click.Parameter, text: str | None) -> list[Any]:
        if text is None:
            return [None]
        words = [part.strip() for part in text.split(",")]
        try:
            return [None if word == "native" else convert(word) for word in words]
        except ValueError as error:
            raise click.BadParameter(str(error), param=param) from error

    return callback


def _experts(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"{text!r} is neither native nor a number from 1")
    return int(text)


def _bits(text: str) -> int:
    from flashmoe.places import AFFINE_BITS

    if text not in map(str, AFFINE_BITS):
        raise ValueError(
            f"{text!r} is neither native nor one of {', '.join(map(str, AFFINE_BITS))}"
        )
    return int(text)


def _kv(text: str) -> str:
    names = ("f32", "f16", "bf16")
    if text not in names:
        raise ValueError(f"{text!r} is not one of {', '.join(names)}")
    return text


def _options(
    _ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, list[Any]]:
    out: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        if not equals or not name or not listed:
            raise click.BadParameter(f"{text}: NAME=VALUES was expected", param=param)
        out[name] = [int(v) if v.isdigit() else v for v in listed.split(",")]
    return out


@click.command(epilog=EPILOG)
@click.argument("model")
@click.option("--text", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="UTF-8 text to predict.  [default for demo: a text of its own]")  # fmt: skip
@click.option("--prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="JSONL of conversations to answer.  [default for demo: its own]")  # fmt: skip
@click.option(
    "--reference", metavar="DIR", help="Model to compare with.  [default: MODEL as it is]"
)
@click.option("--experts-per-token", metavar="KS", callback=_listed(_experts),
              help="Numbers of routed experts to try, such as native,4,2,1.")  # fmt: skip
@click.option("--bits", metavar="NS", callback=_listed(_bits),
              help="Bits to convert MODEL to; native is as it is.")  # fmt: skip
@click.option("--kv-dtype", metavar="NAMES", callback=_listed(_kv),
              help="Numbers in the KV cache to try: f32, f16, bf16.")  # fmt: skip
@click.option("--convert-option", metavar="NAME=VALUES", callback=_options,
              multiple=True,
              help="Other arguments of convert to try, such as group_size=32,64.")  # fmt: skip
@click.option("--work", type=click.Path(file_okay=False, path_type=Path),
              help="Where converted models go.  [default: a temporary directory]")  # fmt: skip
@click.option("--keep", is_flag=True, help="Leave converted models in --work for the next sweep.")
@click.option("--window", type=click.IntRange(min=2),
              help="Most tokens read from an empty state.  [default: 1024]")  # fmt: skip
@click.option("--context", type=click.IntRange(min=1),
              help="Tokens before those that are scored.  [default: half the window]")  # fmt: skip
@click.option("-n", "--max-tokens", type=click.IntRange(min=1), default=300, show_default=True,
              help="Longest answer to a prompt.")  # fmt: skip
@click.option("--memory", metavar="SIZE", help="Most memory to hold, of both models together.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads that compute.")
@click.option("--device", type=click.Choice(["auto", "cpu", "metal"]), default="auto",
              show_default=True, help="What computes.")  # fmt: skip
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path),
              help="Write every figure and answer.")  # fmt: skip
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path),
              help="Draw the figures, .png or .svg.")  # fmt: skip
def command(
    model: str,
    text: Path | None,
    prompts: Path | None,
    reference: str | None,
    experts_per_token: list[int | None],
    bits: list[int | None],
    kv_dtype: list[str | None],
    convert_option: Mapping[str, Sequence[Any]],
    work: Path | None,
    keep: bool,
    window: int | None,
    context: int | None,
    max_tokens: int,
    json_path: Path | None,
    plot: Path | None,
    **options: Any,
) -> None:
    """Measure what MODEL says: perplexity, distance from a reference, valid tool calls."""
    import sys

    from flashmoe.evaluation import sweep
    from flashmoe.evaluation.calls import read_prompts
    from flashmoe.hub import resolve

    if text is None and prompts is None:
        if model != "demo":
            raise click.UsageError("give --text FILE, --prompts FILE or both; demo has its own")
        here = Path(sweep.__file__).parent / "demo"
        text, prompts = here / "text.txt", here / "prompts.jsonl"
    if reference and text is None:
        raise click.UsageError("--reference is compared on a text; give --text FILE")
    if keep and work is None:
        raise click.UsageError("--keep needs --work DIR")
    sweep.check_options(convert_option)
    if plot:
        from flashmoe.bench import plots

        plots.check(plot)
    lines = sweep.settings(bits, experts_per_token, kv_dtype, convert_option)
    task = sweep.Task(
        text=text,
        prompts=read_prompts(prompts) if prompts else None,
        reference=resolve(find_model(reference)) if reference else None,
        compare=reference is not None or lines != [sweep.Setting()],
        window=window,
        context=context,
        max_tokens=max_tokens,
        options=options,
    )
    source = resolve(find_model(model))
    store = sweep.Work(source, work, keep, progress=sys.stderr.isatty())
    with _Progress(len(lines)) as bar:
        seen = sweep.sweep(store, lines, task, progress=bar.of, on_line=bar.step)
    click.echo(_report(seen))
    if json_path:
        written = sweep.document(source, seen, task)
        json_path.write_text(json.dumps(written, indent=1) + "\n")
    if plot and any(line.result for line in seen):
        from flashmoe.evaluation.plots import draw

        show.note(f"drew {draw(sweep.document(source, seen, task), plot)}")
    if any(line.error for line in seen):
        raise click.exceptions.Exit(1)


class _Progress:
    """A bar of the settings, and one of what is going on in the present one."""

    def __init__(self, settings: int) -> None:
        from tqdm import tqdm

        self._outer = tqdm(total=settings, unit="setting", leave=False, disable=None)
        self._inner = tqdm(position=1, leave=False, disable=None)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._inner.close()
        self._outer.close()

    def of(self, setting: Setting) -> Callable[[str, int, int], object]:
        """What shows the progress of a setting.

        Args:
            setting: Which begins.
        """
        self._outer.set_postfix_str(_name(setting))
        what = ""

        def update(now: str, done: int, total: int) -> None:
            nonlocal what
            if now != what:
                what = now
                self._inner.reset(total=total)
                self._inner.set_description_str(now)
            self._inner.update(done - self._inner.n)

        return update

    def step(self, _line: Line) -> None:
        """A setting has ended.

        Args:
            _line: What came of it.
        """
        self._outer.update()


def _name(setting: Setting) -> str:
    parts = [setting.weights.name]
    if setting.experts_per_token is not None:
        parts.append(f"K={setting.experts_per_token}")
    if setting.kv_dtype is not None:
        parts.append(f"KV {setting.kv_dtype}")
    return ", ".join(parts)


def _report(seen: Sequence[Line]) -> str:
    """The table, and under it how much was measured and what failed."""
    done = [line for line in seen if line.result]
    columns: dict[str, list[str]] = {"setting": [_name(line.setting) for line in done]}
    notes = [f"{_name(line.setting)}: {line.error}" for line in seen if line.error]
    columns["K"] = [str(line.result.experts_per_token) for line in done if line.result]
    texts = [line.result.text for line in done if line.result and line.result.text]
    if texts:
        columns["perplexity"] = [f"{t.perplexity:.4g}" for t in texts]
        columns["±"] = [f"{t.perplexity_stderr:.2g}" for t in texts]
        notes.append(f"{texts[0].tokens:,} tokens of text scored")
    apart = [line.result.divergence for line in done if line.result and line.result.divergence]
    if apart:
        columns["KL mean"] = [f"{d.kl_mean:.3g}" for d in apart]
        columns["KL p99"] = [f"{d.kl_p99:.3g}" for d in apart]
        columns["KL max"] = [f"{d.kl_max:.3g}" for d in apart]
        columns["top-1"] = [f"{100 * d.agreement:.2f}%" for d in apart]
        notes.append(f"reference: perplexity {apart[0].reference_perplexity:.4g}")
    calls = [line.result.calls for line in done if line.result and line.result.calls]
    if calls:
        columns["valid"] = [f"{c.valid}/{c.prompts}" for c in calls]
        columns["fits"] = [f"{c.fits}/{c.prompts}" for c in calls]
        if any(c.expected for c in calls):
            columns["exact"] = [f"{c.exact}/{c.expected}" for c in calls]
    rows = list(zip(*columns.values(), strict=True))
    return "\n".join([*([show.table(list(columns), rows), ""] if rows else []), *notes])
