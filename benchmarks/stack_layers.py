"""Make a packed random-weight model deeper: layers beyond the first ones are the same files again.

A 397B model does not fit most disks, but what it costs to run can be measured with a few distinct
layers: the others get hard links to their experts, and read their resident weights from the same
place. Reads around the page cache do not notice. The answers mean nothing.

    python benchmarks/synth_checkpoint.py S --layers 4 --hidden 4096 --experts 512 ...
    flashmoe convert S P && python benchmarks/stack_layers.py P DEEP --layers 60 --distinct 8
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from pathlib import Path


def sections(text: str) -> dict[str, list[list[str]]]:
    """The manifest's lines by first word; what belongs to a tensor or to experts stays with it."""
    out: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        word = line.split(" ", 1)[0]
        if word in ("weight", "scales", "biases"):
            out["tensor"][-1].append(line)
        elif word in ("extent", "checksum"):
            out["experts"][-1].append(line)
        else:
            out.setdefault(word, []).append([line])
    return out


def value(line: str, key: str) -> str:
    """The value of a key of a line."""
    found = re.search(rf" {key}=(\S+)", line)
    if found is None:
        raise SystemExit(f"no {key} in the manifest's line {line[:80]!r}")
    return found[1]


def put(line: str, **values: object) -> str:
    """The line with other values."""
    for key, new in values.items():
        line = re.sub(rf" {key}=\S+", f" {key}={new}", line, count=1)
    return line


def deepen(text: str, layers: int) -> tuple[str, list[tuple[str, str]]]:
    """The manifest of a deeper model, and which file is linked from which.

    Args:
        text: Of the packed model.
        layers: How many the deeper one has.
    """
    old = sections(text)
    few = len(old["layer"])
    files = {value(f[0], "index"): f[0] for f in old["file"]}
    experts = {int(value(e[0], "layer")): e for e in old["experts"]}
    shared = [f for f in files.values() if not value(f, "path").startswith("experts-")]
    head = [line for word in ("flashmoe", "rope") for part in old.get(word, []) for line in part]
    lines = [head[0], put(old["model"][0][0], layers=layers)]
    lines += [put(f, index=i) for i, f in enumerate(shared)]
    body: list[str] = []
    links = []
    for layer in range(layers):
        source = experts[layer % few]
        file = files[value(source[1], "file")]
        name = f"experts-{layer:02d}.bin"
        links.append((value(file, "path"), name))
        index = len(shared) + layer
        lines.append(put(file, index=index, path=name))
        for line in source:
            body.append(put(line, layer=layer, file=index))
    lines += head[1:]
    lines += [put(old["layer"][layer % few][0], index=layer) for layer in range(layers)]
    for tensor in old["tensor"]:
        found = re.match(r"layers\.(\d+)\.", value(tensor[0], "name"))
        if found is None:
            lines += tensor
            continue
        for layer in range(int(found[1]), layers, few):
            name = value(tensor[0], "name").replace(found[0], f"layers.{layer}.", 1)
            lines += [put(tensor[0], name=name), *tensor[1:]]
    return "\n".join(lines + body) + "\n", links


def deepen_config(config: dict[str, object], layers: int) -> dict[str, object]:
    """A config with so many layers; what is listed by layer goes on as it began."""
    out = {}
    for key, old in config.items():
        if isinstance(old, dict):
            out[key] = deepen_config(old, layers)
        elif key == "num_hidden_layers":
            out[key] = layers
        elif key == "layer_types" and isinstance(old, list):
            out[key] = [old[i % len(old)] for i in range(layers)]
        else:
            out[key] = old
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("source", type=Path, help="a packed model of a few layers")
    p.add_argument("out", type=Path, help="a directory on the same disk")
    p.add_argument("--layers", type=int, default=60)
    p.add_argument("--distinct", type=int, help="copy files so that so many layers have their own")
    a = p.parse_args()

    few = len(list(a.source.glob("experts-*.bin")))
    if a.distinct is not None and (a.distinct % few or not few <= a.distinct <= a.layers):
        raise SystemExit(f"--distinct must be a multiple of the {few} layers there are")
    text, links = deepen((a.source / "manifest.fm").read_text(), a.layers)
    distinct = range(a.distinct or few)
    a.out.mkdir(parents=True)
    sums = dict(
        reversed(line.split("  ", 1)) for line in (a.source / "SHA256SUMS").read_text().splitlines()
    )
    kept = [f for f in a.source.iterdir() if f.name not in ("manifest.fm", "SHA256SUMS")]
    for file in kept:
        if file.name == "config.json":
            config = deepen_config(json.loads(file.read_text()), a.layers)
            config["note"] = "random weights; deep layers repeat the first ones: for measuring only"
            (a.out / file.name).write_text(json.dumps(config, indent=1))
        elif file.name.startswith("experts-"):
            continue
        elif file.suffix == ".bin":
            os.link(file, a.out / file.name)
        else:
            shutil.copy(file, a.out / file.name)
    for layer, (source, name) in enumerate(links):
        if layer < len(distinct):
            place = os.link if layer < few else shutil.copyfile
            place(a.source / source, a.out / name)
        else:
            os.link(a.out / links[layer % len(distinct)][1], a.out / name)
    (a.out / "manifest.fm").write_text(text)
    listed = {name: sums[source] for source, name in links}
    listed |= {name: digest for name, digest in sums.items() if name.endswith("resident.bin")}
    (a.out / "SHA256SUMS").write_text("".join(f"{d}  {n}\n" for n, d in sorted(listed.items())))
    print(f"{a.out}: {a.layers} layers, {len(distinct)} with files of their own")


if __name__ == "__main__":
    main()
