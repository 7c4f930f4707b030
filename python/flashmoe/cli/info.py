"""``flashmoe info``: a model's shapes, and what it needs of memory and disk."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashmoe.cli import footprint, show
from flashmoe.cli.options import JSON_OPTION, find_model

if TYPE_CHECKING:
    from flashmoe.cli.footprint import Footprint
    from flashmoe.manifest import Manifest, Quant
    from flashmoe.reading import Choice

EPILOG = """\b
Examples:
  flashmoe info demo
  flashmoe info ~/models/qwen3.6-35b-a3b-4bit
  flashmoe info ~/models/qwen3.6-35b-a3b-4bit --experts-per-token 4
  flashmoe info ~/models/qwen3.6-35b-a3b-4bit --memory 6GB
  flashmoe info Qwen/Qwen3-30B-A3B --disk 3GB --json     (reads the hub's headers only)
"""


@click.command(epilog=EPILOG)
@click.argument("model")
@click.option("--revision", help="Branch, tag or commit of a repository of the hub.")
@click.option("--experts-per-token", type=click.IntRange(min=1), metavar="K", help="Count with K.")
@click.option(
    "--memory",
    metavar="SIZE",
    help="Say how experts would be read with this budget.  [default: 75% of what is available]",
)
@click.option("--disk", metavar="SIZE", help="Bytes a second of the disk, instead of measuring it.")
@JSON_OPTION
def command(
    model: str,
    revision: str | None,
    experts_per_token: int | None,
    memory: str | None,
    disk: str | None,
    as_json: bool,
) -> None:
    """Show a model's shapes, bytes per expert and token, and what fits into which memory.

    Only headers are read, and a few experts where the disk has to be measured; that takes up to two
    seconds. A repository of the hub is not downloaded.
    """
    from flashmoe.hub import is_local
    from flashmoe.machine import parse_size

    name = find_model(model)
    where, manifest, facts = _open(name, revision)
    native = footprint.measure(manifest).most_per_layer
    if experts_per_token is not None and experts_per_token > native:
        raise click.UsageError(f"--experts-per-token: the model's own number is {native}")
    print_ = footprint.measure(manifest, experts_per_token)
    choice = _choose_reading(where, manifest, memory) if is_local(name) else None
    best = choice.probe.best if choice and choice.probe else None
    if disk:
        speed = float(parse_size(disk))
    else:
        speed = best.bytes_per_second if best else _disk_speed(where, print_)
    bandwidth = footprint.memory_bandwidth()
    facts |= _shapes(manifest)
    facts["experts_per_token"] = print_.most_per_layer
    facts["native_experts_per_token"] = native
    budgets = _budgets(print_, speed, bandwidth)
    if as_json:
        show.print_json(
            facts
            | asdict(print_)
            | {
                "least_memory": print_.least_memory,
                "disk_bytes_per_second": round(speed),
                "reading": asdict(choice) if choice else None,
                "budgets": budgets,
            }
        )
        return
    _print(facts, print_, speed, budgets, choice, measured=disk is None)


def _open(
    name: str | os.PathLike[str], revision: str | None
) -> tuple[Path, Manifest, dict[str, Any]]:
    """Where experts would be read, the manifest, and what the model is."""
    from flashmoe.checkpoint import open_checkpoint
    from flashmoe.hub import RemoteCheckpoint, is_local

    if is_local(name):
        found = open_checkpoint(Path(name))
        facts = {"model": str(name), "kind": found.kind}
        return Path(name), found.manifest, facts | {"model_type": found.config.get("model_type")}
    remote = RemoteCheckpoint(str(name), revision)
    facts = {"model": str(name), "kind": f"hub, commit {remote.commit}"}
    return Path.cwd(), remote.manifest, facts | {"model_type": remote.config.get("model_type")}


def _choose_reading(where: Path, manifest: Manifest, memory: str | None) -> Choice:
    from flashmoe.machine import available_memory, parse_size
    from flashmoe.reading import choose

    available = available_memory()
    budget = parse_size(memory) if memory else int(0.75 * available)
    return choose(
        "auto", None, None, manifest=manifest, directory=where, budget=budget, available=available
    )


def _disk_speed(where: Path, print_: Footprint) -> float:
    from flashmoe.machine import probe_disk

    block = min(max(print_.expert_bytes, 64 << 10), 32 << 20)
    return probe_disk(
        where, block_bytes=block, most_bytes=max(64 << 20, 4 * block)
    ).bytes_per_second


def _shapes(manifest: Manifest) -> dict[str, Any]:
    from flashmoe.spec import MoE

    spec = manifest.spec
    moes = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, MoE)]
    first = moes[0] if moes else None
    formats = Counter(
        _format(q) for e in manifest.experts for q in dict.fromkeys((e.gate, e.up, e.down))
    )
    return {
        "num_hidden_layers": len(spec.layers),
        "mixers": dict(Counter(type(layer.mixer).__name__.lower() for layer in spec.layers)),
        "moe_layers": len(moes),
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "context_length": spec.max_positions,
        "num_experts": first.experts if first else 0,
        "moe_intermediate_size": first.intermediate_size if first else 0,
        "shared_intermediate_size": first.shared_intermediate_size if first else 0,
        "expert_formats": dict(formats),
        "bits_per_weight": _bits_per_weight(manifest),
    }


def _bits_per_weight(manifest: Manifest) -> float:
    """The mean over all matrices, scales and biases included."""
    from flashmoe.places import PROJECTIONS
    from flashmoe.spec import MoE

    numbers = nbytes = 0
    for tensor in manifest.tensors.values():
        numbers += tensor.rows * tensor.cols
        nbytes += tensor.quant.matrix_bytes(tensor.rows, tensor.cols)
    for experts in manifest.experts:
        ffn = manifest.spec.layers[experts.layer].ffn
        assert isinstance(ffn, MoE)
        for projection in PROJECTIONS:
            rows, cols = manifest.expert_shapes(experts.layer)[projection]
            numbers += ffn.experts * rows * cols
            nbytes += ffn.experts * experts.quant(projection).matrix_bytes(rows, cols)
    return round(8 * nbytes / numbers, 2)


def _format(quant: Quant) -> str:
    return f"{quant.bits} bits in groups of {quant.group}" if quant.bits else quant.kind


def _budgets(print_: Footprint, disk: float, memory: float) -> list[dict[str, Any]]:
    rows = []
    for gigabytes in footprint.BUDGETS_GB:
        budget = gigabytes * 10**9
        share = print_.share_in_memory(budget)
        ceiling = print_.tokens_per_second(budget, disk, memory)
        rows.append(
            {
                "memory_bytes": budget,
                "fits": share is not None,
                "share_of_experts_in_memory": share,
                "read_per_token": None if share is None else print_.read_per_token * (1 - share),
                "tokens_per_second_at_most": ceiling,
            }
        )
        if share == 1.0:
            break
    return rows


def _print(
    facts: dict[str, Any],
    print_: Footprint,
    disk: float,
    budgets: list[dict[str, Any]],
    choice: Choice | None,
    *,
    measured: bool,
) -> None:
    mixers = ", ".join(f"{n} {kind}" for kind, n in facts["mixers"].items())
    running, native = facts["experts_per_token"], facts["native_experts_per_token"]
    shared = facts["shared_intermediate_size"]
    lines = {
        "model": facts["model"],
        "kind": f"{facts['model_type']}, {facts['kind']}",
        "layers": f"{facts['num_hidden_layers']} ({mixers}), {facts['moe_layers']} with experts",
        "hidden size": f"{facts['hidden_size']:,}, vocabulary {facts['vocab_size']:,}",
        "context": f"{facts['context_length']:,} tokens",
        "experts": f"{facts['num_experts']} a layer, {running} per token, width "
        f"{facts['moe_intermediate_size']}" + (f", shared {shared}" if shared else ""),
        "formats": ", ".join(facts["expert_formats"])
        + f"; {facts['bits_per_weight']} bits a weight, all in all",
        "bytes per expert": f"{show.size(print_.expert_bytes)}, all {print_.experts:,}: "
        f"{show.size(print_.total_expert_bytes)}",
        "read per token": f"{show.size(print_.read_per_token)} if nothing is in memory",
        "resident": f"{show.size(print_.resident_bytes)} always in memory",
        "KV cache": f"{show.size(print_.kv_bytes_per_token)} a token (f16), recurrent state "
        f"{show.size(print_.state_bytes)}",
        "least memory": f"about {show.size(print_.least_memory)}",
        "disk": f"{show.size(disk)}/s " + ("(measured)" if measured else "(as given)"),
    }
    if choice is not None:
        figures = choice.probe.figures if choice.probe else ()
        lines["reads"] = (
            f"{choice.read}, {choice.threads} in flight, records in {choice.split} piece"
        )
        lines["reads"] += "s" if choice.split > 1 else ""
        lines["because"] = choice.reason
        lines |= {f"  way {i}": figure.describe() for i, figure in enumerate(figures, 1)}
    click.echo(show.pairs(lines))
    notice = show.fewer_experts(running, native)
    if notice:
        click.echo(f"\n{notice}")
    click.echo(f"\nWith a conversation of {footprint.KV_TOKENS:,} tokens:\n")
    rows = [
        (
            show.size(row["memory_bytes"]),
            f"{row['share_of_experts_in_memory']:.0%}" if row["fits"] else "does not fit",
            show.size(row["read_per_token"]) if row["fits"] else "",
            show.rate(row["tokens_per_second_at_most"]) if row["fits"] else "",
        )
        for row in budgets
    ]
    head = ("memory", "experts in memory", "read per token", "tok/s at most")
    click.echo(show.table(head, rows))
    click.echo(
        "\nThe last column is a ceiling set by disk and memory, for experts picked equally often;"
        "\na page cache beside the budget makes it better, computing makes it worse."
    )
