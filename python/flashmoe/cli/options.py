"""Options that several verbs share, and the model and sampler they describe."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flashmoe.reading import MOST_THREADS, SPLITS, WAYS

if TYPE_CHECKING:
    from flashmoe.model import Model
    from flashmoe.sampler import Sampler

F = TypeVar("F", bound=Callable[..., Any])

MODEL_OPTIONS = (
    click.option("--revision", help="Branch, tag or commit of a repository of the hub."),
    click.option(
        "--memory",
        metavar="SIZE",
        help="Most memory to hold: 6GB, 512MiB or 50%.  [default: 75% of what is available]",
    ),
    click.option(
        "--experts-per-token",
        type=click.IntRange(min=1),
        metavar="K",
        help="Fewer routed experts than the model's own: faster, and another, weaker model.",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="Threads that compute."),
    click.option(
        "--kv-dtype", type=click.Choice(["f16", "bf16", "f32"]), help="Numbers in the KV cache."
    ),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "metal"]),
        default="auto",
        help="What computes.  [default: auto, Metal where it passes a selftest]",
    ),
    click.option(
        "--read",
        type=click.Choice(["auto", *WAYS]),
        default="auto",
        help="Read experts through the page cache, around it or out of a mapping.",
    ),
    click.option("--read-threads", type=click.IntRange(1, MOST_THREADS), help="Reads in flight."),
    click.option(
        "--read-split",
        type=click.Choice([str(n) for n in SPLITS]),
        callback=lambda _context, _option, value: int(value) if value else None,
        help="Pieces that an expert's record is read in.",
    ),
    click.option(
        "--read-timeout",
        type=click.FloatRange(0.1, 86_400),
        default=30.0,
        metavar="SECONDS",
        help="Give up when the disk gives no expert for so long.  [default: 30]",
    ),
    click.option(
        "--overlap/--no-overlap",
        default=None,
        help="Compute while experts are read, or read, then compute.",
    ),
    click.option("--guess/--no-guess", default=True, help="Read ahead for the next layer."),
    click.option(
        "--eviction",
        type=click.Choice(["auto", "lru", "lfu", "slru", "static"]),
        default="auto",
        help="Which experts stay in memory.",
    ),
    click.option(
        "--verify",
        type=click.Choice(["first", "always", "off"]),
        default="first",
        help="Check an expert's checksum the first time it is read, each time, or never.",
    ),
)
MODEL_NAMES = (
    "revision",
    "memory",
    "experts_per_token",
    "threads",
    "kv_dtype",
    "device",
    "read",
    "read_threads",
    "read_split",
    "read_timeout",
    "overlap",
    "guess",
    "eviction",
    "verify",
)

SAMPLER_OPTIONS = (
    click.option("-t", "--temperature", type=float, help="0 takes the most likely token."),
    click.option("--top-k", type=int, help="Keep this many likely tokens; 0 keeps all."),
    click.option("--top-p", type=float, help="Keep tokens up to this probability together."),
    click.option("--min-p", type=float, help="Drop tokens below this share of the likeliest."),
    click.option("--repetition-penalty", type=float, help="Above 1: fewer repeated tokens."),
    click.option("--presence-penalty", type=float, help="Taken from tokens the answer has."),
    click.option("--frequency-penalty", type=float, help="Taken for each time it has them."),
    click.option("--seed", type=int, help="The same seed gives the same answer."),
)
SAMPLER_NAMES = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)

THINK_OPTION = click.option(
    "--think/--no-think", default=None, help="Ask the model to think first, or not to."
)
MAX_TOKENS_OPTION = click.option(
    "-n", "--max-tokens", type=click.IntRange(min=1), default=512, show_default=True
)
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def model_options(function: F) -> F:
    """Give a command the options that open a model."""
    return _with(MODEL_OPTIONS, function)


def sampler_options(function: F) -> F:
    """Give a command the options of sampling; left out, they are the checkpoint's own."""
    return _with(SAMPLER_OPTIONS, function)


def _with(options: tuple[Callable[[F], F], ...], function: F) -> F:
    for option in reversed(options):
        function = option(function)
    return function


def find_model(name: str) -> str | os.PathLike[str]:
    """What a MODEL argument means.

    Args:
        name: A directory, a repository, or ``demo`` where there is no such directory.
    """
    if name == "demo" and not os.path.isdir(name):
        import flashmoe

        return flashmoe.demo_model_path()
    return os.path.expanduser(name)


def open_model(name: str, options: Mapping[str, Any]) -> Model:
    """Open the model of a command line.

    Args:
        name: The MODEL argument.
        options: All options of the command; those of the model are picked out.
    """
    import flashmoe
    from flashmoe.cli import show

    with show.elapsed(f"opening {name}"):
        return flashmoe.Model(find_model(name), **{k: options[k] for k in MODEL_NAMES})


def make_sampler(options: Mapping[str, Any]) -> Sampler:
    """The sampler of a command line.

    Args:
        options: All options of the command; those of sampling are picked out.
    """
    import flashmoe

    return flashmoe.Sampler(**{k: options[k] for k in SAMPLER_NAMES})
