"""``flashmoe selftest``: every computation of this machine's devices, checked."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from flashmoe.cli import show
from flashmoe.cli.options import JSON_OPTION

if TYPE_CHECKING:
    from flashmoe.selftesting import Check

EPILOG = """\b
Examples:
  flashmoe selftest
  flashmoe selftest --device metal
  flashmoe selftest --quick --json

The scalar kernels of the CPU define what is right; everything else is compared with them on random
numbers of odd shapes. Errors are squared, over the energy of what is right. Then the demo model
writes on every device, and all must write the same. The last line is made to be pasted into an
issue; the exit code is 1 if anything is wrong.
"""


@click.command(epilog=EPILOG)
@click.option(
    "--device",
    type=click.Choice(["all", "cpu", "metal"]),
    default="all",
    show_default=True,
    help="Which device; the CPU is always tested.",
)
@click.option("--quick", is_flag=True, help="Fewer cases of each verb.")
@JSON_OPTION
def command(device: str, quick: bool, as_json: bool) -> None:
    """Check every computation of this machine's devices."""
    from flashmoe.selftesting import selftest

    with show.elapsed("checking"):
        report = selftest(device, quick=quick)
    if as_json:
        devices = [asdict(d) | {"ok": d.ok} for d in report.devices]
        fields = {"ok": report.ok, "same_text": report.same_text, "line": report.line}
        click.echo(json.dumps({**fields, "system": report.system, "devices": devices}, indent=2))
    else:
        for tested in report.devices:
            click.echo(f"{tested.device} {tested.kernels}".strip())
            for name, checks in _by_verb(tested.checks).items():
                worst = max(c.error / c.bound if c.bound else c.error for c in checks)
                bad = sum(not c.ok for c in checks)
                state = f"{bad} WRONG" if bad else "ok"
                click.echo(
                    f"  {name:<14}{len(checks):>5} cases  {worst:8.1e} of what it may be  {state}"
                )
            for check in tested.failed[:10]:
                why = check.message or f"error {check.error:.1e}, at most {check.bound:.0e}"
                click.echo(f"  {check.verb}, {check.case}: {why}")
        click.echo()
        click.echo(report.line)
    if not report.ok:
        raise click.exceptions.Exit(1)


def _by_verb(checks: list[Check]) -> dict[str, list[Check]]:
    found: dict[str, list[Check]] = {}
    for check in checks:
        found.setdefault(check.verb, []).append(check)
    return found
