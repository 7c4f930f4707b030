"""Time to the first token of a follow-up turn: cold, with a prefix cache, and after a restart.

python benchmarks/follow_up.py [MODEL] [--tokens 4000] [--memory 6GB]
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np

from flashmoe import Generator, Model, Sampler
from flashmoe.prefix_cache import PrefixCache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--tokens", type=int, default=4000, help="of the history")
    parser.add_argument("--new", type=int, default=30, help="tokens of the follow-up turn")
    parser.add_argument("--memory", default="6GB")
    parser.add_argument("--exact", action="store_true")
    options = parser.parse_args()
    path = options.model
    if not path:
        from flashmoe.demo import demo_model_path

        path = str(demo_model_path())
    random = np.random.RandomState(1)
    with (
        tempfile.TemporaryDirectory() as directory,
        Model(path, memory=options.memory) as model,
    ):
        history = random.randint(0, model.vocab_size // 2, options.tokens)
        sampler = Sampler(temperature=0)
        room = {"memory": 4 << 30, "directory": directory, "disk": 4 << 30}

        def follow(generator: Generator, prompt: np.ndarray) -> float:
            stats = generator.generate(prompt, max_tokens=2).stats
            print(f"  {stats.cached_tokens} of {stats.prompt_tokens} tokens restored")
            return stats.time_to_first_token

        cache = PrefixCache(model, **room, exact=options.exact)
        generator = Generator(model, sampler, prefix_cache=cache)
        first = generator.generate(history, max_tokens=8)
        prompt = np.concatenate([history, first.token_ids[:-1], history[: options.new]])
        plain = Generator(model, sampler)
        plain.generate(history[:64], max_tokens=2)  # experts of all layers have been asked for
        cold = follow(plain, prompt)
        warm = follow(generator, prompt)
        cache.close()
        prompt[-options.new :] = history[-options.new :]  # not what the turn before has kept
        again = PrefixCache(model, **room, exact=options.exact)
        restarted = follow(Generator(model, sampler, prefix_cache=again), prompt)
        again.close()
        for name, seconds in (("cold", cold), ("warm", warm), ("after a restart", restarted)):
            print(f"{name:16s} {seconds * 1000:9.1f} ms {seconds / cold:7.1%}")


if __name__ == "__main__":
    main()
