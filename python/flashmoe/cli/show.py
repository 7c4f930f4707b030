"""How answers, figures and tables look in a terminal."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from flashmoe.answer import Chunk, Stats

SHOW_AFTER_SECONDS = 2.0


def size(nbytes: float) -> str:
    """Bytes for people: ``5.9 GB`` (decimal units)."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return (
                f"{nbytes / scale:.3g} {unit}"
                if nbytes < 1000 * scale
                else f"{nbytes / scale:,.0f} {unit}"
            )
    return f"{nbytes:.0f} B"


def rate(per_second: float) -> str:
    """Tokens or anything else a second: three figures."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def print_json(value: object) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text, the first flush left and the others flush right.

    Args:
        head: Names of the columns.
        rows: Cells.
    """
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def pairs(values: Mapping[str, str]) -> str:
    """Names and values, one pair a line."""
    width = max(map(len, values))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in values.items())


def stats_line(stats: Stats) -> str:
    """What an answer cost, in one line.

    Args:
        stats: Of a finished answer.
    """
    parts = [
        f"{stats.completion_tokens} tokens at {rate(stats.decode_tokens_per_second)} tok/s",
        f"prompt {stats.prompt_tokens} at {rate(stats.prefill_tokens_per_second)} tok/s",
        f"first token {stats.time_to_first_token:.2f} s",
        f"experts {size(stats.expert_bytes_read)} read, {stats.expert_hit_rate:.0%} in memory",
        f"waited {stats.read_wait:.2f} s for the disk",
        f"peak memory {size(stats.peak_memory)}",
    ]
    return " · ".join(parts)


def short_stats(stats: Stats) -> str:
    """What an answer cost, in half a line.

    Args:
        stats: Of a finished answer.
    """
    kept = f" ({stats.cached_tokens} of the prompt kept)" if stats.cached_tokens else ""
    return (
        f"{stats.completion_tokens} tokens, {rate(stats.decode_tokens_per_second)} tok/s · first "
        f"after {stats.time_to_first_token:.2f} s{kept} · experts {stats.expert_hit_rate:.0%} in "
        f"memory, {size(stats.expert_bytes_read)} read"
    )


def fewer_experts(running: int, native: int) -> str | None:
    """A notice if not the model's own number of experts runs, else None.

    Args:
        running: Routed experts per token.
        native: The model's own number.
    """
    if running == native:
        return None
    return f"{running} experts per token; the model was made for {native}: expect weaker answers"


def stats_dict(stats: Stats) -> dict[str, Any]:
    """The figures of an answer for JSON."""
    return asdict(stats)


def note(text: str) -> None:
    """A line for people, beside the answer: on stderr, dim."""
    click.echo(click.style(text, dim=True), err=True)


def print_stream(chunks: Iterable[Chunk]) -> str:
    """Print an answer while it is made, and return it whole.

    Args:
        chunks: From a generator's ``stream``.
    """
    texts = []
    for chunk in chunks:
        texts.append(chunk.text)
        click.echo(chunk.text, nl=False)
        sys.stdout.flush()
    click.echo()
    return "".join(texts)


@contextmanager
def elapsed(what: str) -> Iterator[None]:
    """The time that passes, on stderr, while something takes longer than two seconds.

    Args:
        what: What is being done.
    """
    from tqdm import tqdm

    done = threading.Event()
    bar = tqdm(
        desc=what,
        bar_format="{desc}: {elapsed}",
        delay=SHOW_AFTER_SECONDS,
        leave=False,
        disable=not sys.stderr.isatty(),
    )

    def tick() -> None:
        wait = SHOW_AFTER_SECONDS
        while not done.wait(wait):
            bar.refresh()
            wait = 0.5

    clock = threading.Thread(target=tick, daemon=True)
    clock.start()
    try:
        yield
    finally:
        done.set()
        clock.join()
        bar.close()


@contextmanager
def prompt_progress() -> Iterator[Callable[[int, int], object]]:
    """A bar on stderr while a prompt takes longer than two seconds to read."""
    from tqdm import tqdm

    bar = tqdm(
        desc="reading the prompt",
        unit="tok",
        delay=SHOW_AFTER_SECONDS,
        leave=False,
        disable=not sys.stderr.isatty(),
    )

    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    try:
        yield update
    finally:
        bar.close()
