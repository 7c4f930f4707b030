"""Time to open, prefill and decode speed of a checkpoint, optionally under a cgroup memory cap.

Each repeat runs in a process of its own. Printed beside every speed: bytes read, hit rate, peak
anonymous memory. Token ids are random, which is the worst case for any expert cache.

    python benchmarks/bench_tokens.py MODEL --memory 2GB --cap 4GB --prompt 512 --decode 32
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")


def anonymous_bytes() -> int:
    """Anonymous memory of this process now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


def drop_from_page_cache(model: Path) -> None:
    """Forget the model's pages, so that the run is cold."""
    for file in model.iterdir():
        if file.is_file():
            with open(file, "rb") as f:
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def capped(limit: int | None):
    """A cgroup of this limit to start processes in; yields its procs file, or None."""
    if limit is None:
        yield None
        return
    v1 = (V1 / "memory.limit_in_bytes").exists()
    group = (V1 if v1 else V2) / f"flashmoe_bench_{os.getpid()}"
    group.mkdir()
    (group / ("memory.limit_in_bytes" if v1 else "memory.max")).write_text(str(limit))
    try:
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def one_run(a: argparse.Namespace) -> dict[str, object]:
    """Open, prefill, decode; in this process."""
    import numpy as np

    import flashmoe

    start = time.perf_counter()
    model = flashmoe.Model(
        a.model,
        memory=a.memory,
        threads=a.threads,
        experts_per_token=a.experts_per_token,
        read=a.read,
    )
    opened = time.perf_counter() - start
    info = model.info()
    rng = np.random.RandomState(a.seed)
    ids = rng.randint(0, info["vocab_size"], a.prompt).astype(np.int32)
    logits = np.empty((1, model.vocab_size), np.float32)
    session = model.new_session()
    peak = anonymous_bytes()

    start = time.perf_counter()
    for first, last in model.prefill_steps(0, a.prompt):
        session.eval(ids[first:last], logits[: last == a.prompt])
        peak = max(peak, anonymous_bytes())
    prefill = time.perf_counter() - start
    middle = session.stats()

    times = []
    for _ in range(a.decode):
        step = np.array([rng.randint(0, info["vocab_size"])], np.int32)
        start = time.perf_counter()
        session.eval(step, logits)
        times.append(time.perf_counter() - start)
        peak = max(peak, anonymous_bytes())
    end = session.stats()
    used = max(1, end["experts_used"] - middle["experts_used"])
    warm = times[a.skip :] or times
    return {
        "open_seconds": opened,
        "prefill_tokens_per_second": a.prompt / prefill,
        "prefill_bytes_read": middle["bytes_read"],
        "decode_tokens_per_second": len(warm) / sum(warm),
        "decode_bytes_read_per_token": (end["bytes_read"] - middle["bytes_read"])
        / max(1, a.decode),
        "decode_hit_rate": (end["experts_hit"] - middle["experts_hit"]) / used,
        "decode_read_wait_share": (end["read_wait_ns"] - middle["read_wait_ns"])
        / 1e9
        / max(1e-9, sum(times)),
        "peak_anonymous_bytes": peak,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "read": info["read"],
        "kernels": info["kernels"],
        "prefill_rows": info["prefill_rows"],
        "expert_slots": info["expert_slots"],
        "experts_per_token": info["experts_per_token"],
    }


def size(text: str | None) -> int | None:
    from flashmoe.machine import parse_size

    return None if text is None else parse_size(text)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("--memory", help="the model's budget")
    p.add_argument("--cap", help="cgroup limit for the whole process, page cache included")
    p.add_argument("--prompt", type=int, default=512)
    p.add_argument("--decode", type=int, default=32)
    p.add_argument("--skip", type=int, default=2, help="decode steps left out of the median")
    p.add_argument("--repeat", type=int, default=3)
    p.add_argument("--threads", type=int)
    p.add_argument("--experts-per-token", type=int)
    p.add_argument("--read", default="auto")
    p.add_argument("--cold", action="store_true", help="drop the model from the page cache first")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", type=Path, help="append the results to this file")
    p.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        print(json.dumps(one_run(a)))
        return

    runs = []
    with capped(size(a.cap)) as procs:
        for i in range(a.repeat):
            if a.cold:
                drop_from_page_cache(a.model)

            def enter() -> None:
                if procs is not None:
                    procs.write_text(str(os.getpid()))

            done = subprocess.run(
                [sys.executable, __file__, *sys.argv[1:], "--child"],
                stdout=subprocess.PIPE, text=True, preexec_fn=enter, check=True,
            )  # fmt: skip
            runs.append(json.loads(done.stdout))
            print(
                f"run {i + 1}: "
                + ", ".join(
                    f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
                    for k, v in runs[-1].items()
                )
            )
    print("\nmedian (min .. max)")
    for key, value in runs[0].items():
        if isinstance(value, (int, float)):
            values = [r[key] for r in runs]
            spread = f"({min(values):.4f} .. {max(values):.4f})"
            print(f"  {key:32} {statistics.median(values):14.4f}  {spread}")
    if a.json:
        record = {"machine": platform.platform(), "argv": sys.argv[1:], "runs": runs}
        with open(a.json, "a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
