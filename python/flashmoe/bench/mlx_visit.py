"""One visit of mlx-lm: load a model in a process of its own, measure one setting.

``python -m flashmoe.bench.mlx_visit`` reads a request from standard input, as JSON, and prints
the answer as JSON on its last line. Tokens are random, and generated the way mlx-lm does.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any


def measure(path: str, setting: dict[str, Any], samples: int) -> dict[str, Any]:
    """Tokens a second.

    Args:
        path: Directory of the model.
        setting: As :meth:`flashmoe.bench.setting.Setting.as_dict` has it.
        samples: How often.
    """
    from mlx_lm.generate import wired_limit
    from mlx_lm.utils import load_model

    start = time.perf_counter()
    model, config = load_model(Path(path))
    open_seconds = time.perf_counter() - start
    vocabulary = config.get("vocab_size") or config["text_config"]["vocab_size"]
    prefill, tokens = setting["kind"] == "prefill", int(setting["tokens"])
    n = int(setting["prompt"]) if prefill else max(1, int(setting["context"]))
    answer = 1 if prefill else tokens + 1
    rng = random.Random(0)

    def once() -> float:
        first, last = _timed(model, [rng.randrange(vocabulary) for _ in range(n)], answer)
        return n / first if prefill else tokens / (last - first)

    with wired_limit(model):
        if not setting["cold"]:
            once()
        return {"samples": [once() for _ in range(samples)], "open_seconds": open_seconds}


def _timed(model: Any, prompt: list[int], tokens: int) -> tuple[float, float]:
    """Seconds to the first token of an answer, and to the last."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    start = time.perf_counter()
    times = [
        time.perf_counter() - start
        for _ in generate_step(mx.array(prompt), model, max_tokens=tokens)
    ]
    return times[0], times[-1]


def main() -> None:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    sys.stdout.write(json.dumps(measure(**request)) + "\n")


if __name__ == "__main__":
    main()
