"""Many requests of one generator: what they leave behind in memory, descriptors and threads.

python tests/reliability/long_run.py --requests 10000
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import time
from pathlib import Path

from tqdm import tqdm

import flashmoe


def held() -> tuple[int, int, int]:
    """Bytes that are this process's own, its descriptors and its threads."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    anonymous = int(status["RssAnon"].split()[0]) << 10
    return anonymous, len(os.listdir("/proc/self/fd")), int(status["Threads"])


def main() -> int:
    """Run them; 1 if a later answer differs from the first of its prompt, or something grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    options = parser.parse_args()
    tqdm.monitor_interval = 0  # or it starts a thread
    rng = random.Random(0)
    wrong, start = 0, time.monotonic()
    with flashmoe.Model(flashmoe.demo_model_path()) as model:
        ids = model.tokenizer.encode(
            "The routed experts stay on the disk and are read when needed. " * 4
        )
        prompts = [ids[: rng.randrange(1, len(ids))] for _ in range(50)]
        generator = flashmoe.Generator(model, flashmoe.Sampler(temperature=0))
        want = [generator.generate(p, max_tokens=options.tokens).token_ids for p in prompts]
        for i in range(200):  # what is only made once is there
            generator.generate(prompts[i % 50], max_tokens=options.tokens)
        before = held()
        for _ in tqdm(range(options.requests), mininterval=1):
            i = rng.randrange(50)
            got = generator.generate(prompts[i], max_tokens=options.tokens).token_ids
            wrong += got != want[i]
        after = held()
    memory, descriptors, threads = (b - a for a, b in zip(before, after, strict=True))
    print(
        f"{options.requests} requests in {time.monotonic() - start:.0f} s: {wrong} wrong, "
        f"{memory / 1e6:+.2f} MB of {before[0] / 1e6:.0f}, {descriptors:+d} descriptors, "
        f"{threads:+d} threads"
    )
    return int(wrong > 0 or memory > 1_000_000 or descriptors != 0 or threads != 0)


if __name__ == "__main__":
    sys.exit(main())
