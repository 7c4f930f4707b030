"""``flashmoe verify``: check every checksum of a model."""

from __future__ import annotations

from dataclasses import asdict

import click

from flashmoe.cli import show
from flashmoe.cli.options import JSON_OPTION, find_model

EPILOG = """\b
Examples:
  flashmoe verify ~/models/qwen3.6-35b
  flashmoe verify demo --json
"""


@click.command(epilog=EPILOG)
@click.argument("model")
@JSON_OPTION
def command(model: str, as_json: bool) -> int:
    """Read a whole model and compare it with its checksums.

    Packed models carry checksums of every file and expert. Of a checkpoint that is opened in place
    the sizes, headers and shapes are checked. Exit code 1 if anything differs.
    """
    import sys

    import flashmoe

    report = flashmoe.verify(find_model(model), progress=sys.stderr.isatty())
    if as_json:
        show.print_json({"ok": report.ok, "message": report.message, **asdict(report)})
    else:
        click.echo(report.message, err=not report.ok)
    return 0 if report.ok else 1
