"""``flashmoe convert``: pack a checkpoint, quantised if asked for."""

from __future__ import annotations

import click

EPILOG = """\b
Examples:
  flashmoe convert ~/models/qwen3-30b-a3b-4bit ~/models/qwen3-30b-a3b-packed
  flashmoe convert ~/models/Qwen3.6-35B-A3B ~/models/qwen3.6-35b --bits 4
  flashmoe convert ~/models/Qwen3.6-35B-A3B ~/models/qwen3.6-35b-2bit --bits 2 --method search
  flashmoe convert ~/models/Qwen3.6-35B-A3B ~/models/small --bits 2 --bits-for resident=4
  flashmoe convert Qwen/Qwen3.6-35B-A3B ~/models/qwen3.6-35b --bits 4 --group-size 64

The last one fetches a shard at a time and drops it when it is packed, so the disk holds the result
and one shard. A run that was stopped, however roughly, goes on when the command is repeated.
"""


@click.command(epilog=EPILOG)
@click.argument("src")
@click.argument("dst")
@click.option(
    "--bits",
    type=click.Choice(["2", "3", "4", "5", "6", "8"]),
    help="Quantise to so many bits.  [default: keep the source's numbers]",
)
@click.option(
    "--group-size",
    type=click.Choice(["32", "64", "128"]),
    default="64",
    show_default=True,
    help="Numbers that share a scale.",
)
@click.option(
    "--method",
    type=click.Choice(["rtn", "search"]),
    default="rtn",
    show_default=True,
    help="rtn: to the nearest, as MLX does; search: for the least error, best at 2 and 3 bits.",
)
@click.option(
    "--bits-for",
    metavar="ROLE=BITS",
    multiple=True,
    help="Other bits for some matrices, such as resident=4 or down=3; may be repeated.",
)
@click.option("--revision", help="Branch, tag or commit of a repository of the hub.")
def command(
    src: str,
    dst: str,
    bits: str | None,
    group_size: str,
    method: str,
    bits_for: tuple[str, ...],
    revision: str | None,
) -> None:
    """Pack the checkpoint SRC into the directory DST, one aligned record an expert.

    Packed models open faster, are read in one piece an expert, and carry checksums. SRC, a
    directory or a repository of the hub, is never written to.
    """
    import os
    import sys

    import flashmoe

    packed = flashmoe.convert(
        os.path.expanduser(src),
        os.path.expanduser(dst),
        bits=int(bits) if bits else None,
        group_size=int(group_size),
        method=method,
        bits_for="+".join(bits_for),
        revision=revision,
        progress=sys.stderr.isatty(),
    )
    click.echo(f"{packed} is ready. Next: flashmoe chat {packed}")
