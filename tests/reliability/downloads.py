"""A hub that drops connections, ignores ranges and sends wrong bits: the same model in the end.

    python tests/reliability/downloads.py [--drops 1000]

Streams the same repository shard by shard again and again, until so many connections were dropped.
A run that gives up is begun again. Ends with 1 if a model had other bytes than one made from files
that lie here, or a run that had not succeeded left a manifest.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from huggingface_hub.utils import logging as hub_logging

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from flashmoe import convert
from flashmoe.errors import ConversionError, ReadError
from test_hub import SHARDS, digest, served


def download(
    repo: Path, golden: dict[str, str], folder: Path, draw: random.Random, found: Counter[str]
) -> None:
    """One model, from an empty directory and an empty cache."""
    out = folder / "out"
    with pytest.MonkeyPatch.context() as patch, served(repo, folder, patch) as server:
        for _ in range(100):
            drops = server.drops = draw.randrange(2, 40)
            server.ignores_ranges = draw.random() < 0.3
            server.spoilt = {draw.choice(SHARDS): draw.randrange(3)}
            try:
                convert("acme/tiny", out, bits=4, progress=False)
            except (ConversionError, ReadError) as error:
                found["runs that gave up"] += 1
                found["false manifests"] += (out / "manifest.fm").exists()
                found[f"  {type(error).__name__}"] += 1
                continue
            finally:
                found["dropped connections"] += drops - server.drops
            break
        found["models"] += 1
        found["other bytes"] += digest(out) != golden


BAD = ("other bytes", "false manifests")


def main() -> int:
    """Print what was found; 1 if there is something bad."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--drops", type=int, default=1000)
    a = parser.parse_args()
    hub_logging.set_verbosity_error()
    draw, found = random.Random(13), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        repo = top / "repo"
        tiny.write(repo, "qwen3_moe", seed=4, dtype="bf16", shards=4, vocab_size=300,
                   num_hidden_layers=3)  # fmt: skip
        tiny.tokenizer(repo, 300)
        golden = digest(convert(repo, top / "golden", bits=4, progress=False))
        while found["dropped connections"] < a.drops:
            with tempfile.TemporaryDirectory(dir=top) as folder:
                download(repo, golden, Path(folder), draw, found)
    for what in sorted({*found, *BAD}):
        print(f"{found[what]:8} {what}")
    return any(found[what] for what in BAD)


if __name__ == "__main__":
    sys.exit(main())
