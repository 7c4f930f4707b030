"""A hub that drops connections, lies and sends wrong bits: the right model, or an error.

    python tests/reliability/downloads.py                        1000 drops, 1000 lies
    python tests/reliability/downloads.py --drops 8 --lies 24    what the tests do

Streams the same repository shard by shard again and again, until so many connections were dropped,
and then, also whole into the cache, until there were so many answers with a wrong length, with 416
for a part, or with a page of something else. A run that gives up is begun again. Ends with 1 if a
model had other bytes than one made from files that lie here, a download other bytes than the
repository, a run that had not succeeded left a manifest, or an error was none of the library's.
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
from flashmoe import convert, hub
from flashmoe.errors import ConversionError, FlashMoEError, ReadError
from hub_server import LIES
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


def lied_to(
    repo: Path, golden: dict[str, str], folder: Path, draw: random.Random, found: Counter[str]
) -> None:
    """One model and one download from a hub that lies, each begun again until it ends well."""
    out = folder / "out"
    often = draw.choice((0.02, 0.1, 0.5))

    def lie(path: str, part: bool) -> str:
        possible = [what for what in LIES if part or what != "416"]
        told = draw.choice(possible) if draw.random() < often else ""
        if told:
            found["lies"] += 1
            found[f"lies: {told}, of {'the list' if '/api/' in path else 'a file'}"] += 1
        return told

    def pull() -> None:
        there = hub.resolve("acme/tiny")
        found["downloads"] += 1
        names = {p.name for p in there.iterdir()} | {p.name for p in repo.iterdir()}
        whole = all((there / n).read_bytes() == (repo / n).read_bytes() for n in names)
        found["other bytes"] += not whole

    def pack() -> None:
        convert("acme/tiny", out, bits=4, progress=False)
        found["models"] += 1
        found["other bytes"] += digest(out) != golden

    with pytest.MonkeyPatch.context() as patch, served(repo, folder, patch) as server:
        server.lie = lie
        for run in (pack, pull):
            for number in range(100):
                server.drops = draw.randrange(4)
                server.spoilt = {draw.choice(SHARDS): draw.randrange(5)}
                server.spoilt[draw.choice(("config.json", "tokenizer.json"))] = draw.randrange(2)
                if number == 50:
                    often = 0  # for once, the truth
                try:
                    run()
                except (FlashMoEError, OSError) as error:
                    found["runs that gave up"] += 1
                    found["false manifests"] += (out / "manifest.fm").exists() and run is pack
                    found[f"  {type(error).__name__}"] += 1
                    found["other errors"] += not isinstance(error, FlashMoEError)
                    continue
                break
            else:
                found["runs that never ended well"] += 1


BAD = (
    "other errors",
    "runs that never ended well",
    "other bytes",
    "false manifests",
)


def main() -> int:
    """Print what was found; 1 if there is something bad."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--drops", type=int, default=1000, help="0 to leave out")
    parser.add_argument("--lies", type=int, default=1000, help="0 to leave out")
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
        while found["lies"] < a.lies:
            with tempfile.TemporaryDirectory(dir=top) as folder:
                lied_to(repo, golden, Path(folder), draw, found)
    for what in sorted({*found, *BAD}):
        print(f"{found[what]:8} {what}")
    return any(found[what] for what in BAD)


if __name__ == "__main__":
    sys.exit(main())
