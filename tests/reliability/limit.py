"""A model larger than a control group's limit answers inside it.

    python tests/reliability/limit.py --limit 256MB       Linux, root

Writes a model of random weights of 730 MB, lets a process under the limit choose its memory
itself and decode 200 random tokens, and prints what it took. Ends with 1 if it was killed, or if
its anonymous memory grew by more than the budget and 5 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from flashmoe import Model
from flashmoe.bench.cap import V1, V2, capped
from flashmoe.machine import parse_size

ROOT = Path(__file__).parents[2]
SHAPE = (
    "--layers 8 --hidden 1024 --experts 96 --topk 8 --intermediate 512 --vocab 8192 "
    "--heads 8 --kv-heads 2 --head-dim 128 --key-heads 8 --value-heads 16"
)


def anonymous() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def group() -> Path:
    """The control group that limits this process."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        if "memory" in kinds.split(",") or (not kinds and not V1.is_dir()):
            return (V1 if kinds else V2) / path.lstrip("/")
    raise SystemExit("no control group limits the memory of this process")


def number(*names: str) -> int:
    """What the first of some files of the group says; v1 and v2 have other names."""
    for name in names:
        if (group() / name).exists():
            return int((group() / name).read_text())
    return 0


def decode(path: Path, tokens: int) -> dict[str, int]:
    """Under the limit: what it took, in bytes."""
    ids = np.random.default_rng(1).integers(0, 8000, tokens, dtype=np.int32)
    before = most = anonymous()
    with Model(path) as model:
        budget = int(model.info()["memory"])
        session = model.new_session()
        logits = np.empty((1, model.vocab_size), np.float32)
        for at in range(tokens):
            session.eval(ids[at : at + 1], logits)
            most = max(most, anonymous())
        read = int(session.stats()["bytes_read"])
        session.close()
    peak = number("memory.max_usage_in_bytes", "memory.peak")
    return {"budget": budget, "grown": most - before, "most": most, "peak": peak, "read": read}


def main() -> int:
    """Print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", default="256MB")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--under", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.under:
        print(json.dumps(decode(a.under, a.tokens)))
        return 0
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(folder) / "model"
        write = [sys.executable, ROOT / "benchmarks" / "synth_checkpoint.py", path, *SHAPE.split()]
        subprocess.run(write, check=True, capture_output=True)
        size = sum(file.stat().st_size for file in path.iterdir())
        with capped(parse_size(a.limit)) as prefix:
            again = [sys.executable, __file__, "--under", str(path), "--tokens", str(a.tokens)]
            done = subprocess.run([*prefix, *again], capture_output=True, text=True)
    if done.returncode:
        print(f"ended with {done.returncode}: {done.stderr[-500:]}")
        return 1
    found = json.loads(done.stdout)
    more = found["grown"] / found["budget"] - 1
    words = ", ".join(f"{name} {value / 1e6:.0f} MB" for name, value in found.items())
    print(f"model {size / 1e6:.0f} MB, limit {a.limit}: {words}; growth {more:+.1%} of the budget")
    return more > 0.05


if __name__ == "__main__":
    sys.exit(main())
