"""``flashmoe doctor``: what this machine has, what it can run, and the next command to type."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashmoe.cli import show
from flashmoe.cli.options import JSON_OPTION

if TYPE_CHECKING:
    from flashmoe.cli.known import Known

EPILOG = """\b
Examples:
  flashmoe doctor
  flashmoe doctor --dir /mnt/nvme        (the disk that models will be on)
  flashmoe doctor --memory 6GB --json
"""

_PROBE_BYTES = 128 << 20
_BLOCK_BYTES = 2 << 20


@click.command(epilog=EPILOG)
@click.option(
    "--dir",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=".",
    help="A directory on the disk that models will be on.  [default: here]",
)
@click.option("--memory", metavar="SIZE", help="Memory to count with.  [default: 75% of available]")
@JSON_OPTION
def command(directory: Path, memory: str | None, as_json: bool) -> None:
    """Look at this machine: memory and its limits, kernels, disk; and say what fits.

    Writes a temporary file of 128 MiB to measure the disk, and removes it.
    """
    from flashmoe import _core, machine
    from flashmoe.cli import footprint

    available = machine.available_memory()
    budget = machine.parse_size(memory) if memory else int(0.75 * available)
    probe = machine.probe_disk(directory, block_bytes=_BLOCK_BYTES, most_bytes=_PROBE_BYTES)
    copied = footprint.memory_bandwidth()
    free = shutil.disk_usage(directory).free
    rows = _models(budget, probe.bytes_per_second, copied, free)
    facts: dict[str, Any] = {
        "flashmoe": _version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": _core.cores(),
        "kernels": _core.kernels(),
        "memory_limits": {limit.name: limit.nbytes for limit in machine.memory_limits()},
        "available_memory": available,
        "budget": budget,
        "directory": str(directory.resolve()),
        "disk_free": free,
        "disk_bytes_per_second": round(probe.bytes_per_second),
        "disk_by_threads": {str(n): round(rate) for n, rate in probe.by_threads.items()},
        "disk_direct": probe.direct,
        "models": rows,
        "next": _next_command(rows),
    }
    if as_json:
        show.print_json(facts)
    else:
        _print(facts)


def _version() -> str:
    import flashmoe

    return flashmoe.__version__


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _models(budget: int, disk: float, memory: float, free: int) -> list[dict[str, Any]]:
    from flashmoe.cli.known import KNOWN

    return [_model(known, budget, disk, memory, free) for known in KNOWN]


def _model(known: Known, budget: int, disk: float, memory: float, free: int) -> dict[str, Any]:
    cost = known.footprint
    return {
        "name": known.name,
        "repository": known.repository,
        "disk_bytes": known.disk_bytes,
        "least_memory": cost.least_memory,
        "fits_memory": cost.share_in_memory(budget) is not None,
        "fits_disk": known.disk_bytes < free,
        "share_of_experts_in_memory": cost.share_in_memory(budget),
        "tokens_per_second_at_most": cost.tokens_per_second(budget, disk, memory),
    }


def _next_command(rows: list[dict[str, Any]]) -> str:
    """The fastest of the models that fit, or the demo."""
    fitting = [row for row in rows if row["fits_memory"] and row["fits_disk"]]
    if not fitting:
        return "flashmoe demo"
    best = max(fitting, key=lambda row: float(row["tokens_per_second_at_most"]))
    folder = str(best["name"]).lower()
    return f"flashmoe convert {best['repository']} {folder} --bits 4 && flashmoe chat {folder}"


def _print(facts: dict[str, Any]) -> None:
    limits = ", ".join(f"{name} {show.size(n)}" for name, n in facts["memory_limits"].items())
    by_threads = ", ".join(
        f"{show.size(rate)}/s with {n} threads" for n, rate in facts["disk_by_threads"].items()
    )
    cached = "" if facts["disk_direct"] else " (through the page cache: the real disk is slower)"
    forced = os.environ.get("FLASHMOE_KERNELS")
    lines = {
        "flashmoe": f"{facts['flashmoe']}, Python {facts['python']}",
        "system": facts["system"],
        "cpu": f"{facts['cpu']}, {facts['cores']} cores",
        "kernels": ", ".join(facts["kernels"])
        + (f" (FLASHMOE_KERNELS={forced})" if forced else ""),
        "memory": limits,
        "available": f"{show.size(facts['available_memory'])}; counting with "
        f"{show.size(facts['budget'])}",
        "disk": f"{facts['directory']}: {show.size(facts['disk_free'])} free",
        "disk speed": f"{by_threads}, random reads of {_BLOCK_BYTES >> 20} MiB{cached}",
    }
    click.echo(show.pairs(lines))
    click.echo("\nModels at 4 bits, with that memory (computed):\n")
    click.echo(show.table(("model", "disk", "experts in memory", "tok/s at most"), _cells(facts)))
    click.echo(f"\nNext: {facts['next']}")


def _cells(facts: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    cells = []
    for row in facts["models"]:
        if not row["fits_memory"]:
            verdict, speed = f"needs {show.size(row['least_memory'])} of memory", ""
        else:
            verdict = f"{row['share_of_experts_in_memory']:.0%}"
            speed = show.rate(row["tokens_per_second_at_most"])
            if not row["fits_disk"]:
                verdict, speed = "needs more disk", ""
        cells.append((row["name"], show.size(row["disk_bytes"]), verdict, speed))
    return cells
