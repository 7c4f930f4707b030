"""Eight threads that share a model until it is closed under them: answers, and how calls end.

``python tests/reliability/threads.py --calls 1000`` prints what was seen; tests run it with fewer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny
from flashmoe import Generator, Model, Sampler
from flashmoe.errors import CancelledError, ClosedError

THREADS = 8


@dataclass
class Seen:
    """What became of it.

    Attributes:
        calls: That gave an answer, of each thread.
        wrong: Answers that are not those of one thread alone.
        ends: What the call that was under way raised, and the one after it.
    """

    calls: list[int] = field(default_factory=lambda: [0] * THREADS)
    wrong: int = 0
    ends: list[tuple[str, str]] = field(default_factory=list)


def campaign(path: Path, calls: int, seconds: float = 1e9) -> Seen:
    """Run until each thread has had its calls, then close the model while all of them go on.

    Args:
        path: A model.
        calls: Of each thread, at least.
        seconds: Close it then at the latest.
    """
    greedy, seen = Sampler(temperature=0), Seen()
    prompts = [[(i * 7 + j) % 190 for j in range(5 + i)] for i in range(THREADS)]
    with Model(path, kv_dtype="f32", threads=2) as model:
        want = [Generator(model, greedy).generate(p, max_tokens=6).token_ids for p in prompts]

        def work(i: int) -> tuple[str, str]:
            generator = Generator(model, greedy)
            try:
                while True:
                    got = generator.generate(prompts[i], max_tokens=6).token_ids
                    seen.wrong += got != want[i]
                    seen.calls[i] += 1
                    model.info()
                    model.expert_uses()
            except (ClosedError, CancelledError) as error:
                first = type(error).__name__
            try:
                generator.generate(prompts[i])
            except ClosedError as error:
                return first, type(error).__name__
            return first, "an answer"

        with ThreadPoolExecutor(THREADS) as pool:
            running = [pool.submit(work, i) for i in range(THREADS)]
            deadline = time.monotonic() + seconds
            while min(seen.calls) < calls and time.monotonic() < deadline:
                time.sleep(0.01)
            model.close()
            seen.ends = [future.result(timeout=60) for future in running]
    return seen


def main() -> int:
    """Print a campaign; 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000, help="of each thread")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        tiny.write(path, "qwen3_5_moe", seed=31, vocab_size=320)
        tiny.tokenizer(path, 320)
        started = time.monotonic()
        seen = campaign(path, args.calls)
    late = sum(after != "ClosedError" for _, after in seen.ends)
    print(
        f"{sum(seen.calls):,} calls of {THREADS} threads in {time.monotonic() - started:.0f} s, at "
        f"least {min(seen.calls):,} of each; {seen.wrong} wrong answers; closed meanwhile: "
        f"{sorted(first for first, _ in seen.ends)}, then {late} not ClosedError"
    )
    return 1 if seen.wrong or late else 0


if __name__ == "__main__":
    sys.exit(main())
