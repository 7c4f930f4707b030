"""Replay recorded expert picks with every eviction policy, and with Belady's.

    python benchmarks/evict_traces.py record MODEL TRACE.npy [--tokens 200]
    python benchmarks/evict_traces.py replay TRACE.npy

A policy sees what the engine sees: the experts of one layer of one step at a time, none of which
may push out another one of them.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

Group = list[tuple[int, int]]
"""(layer, expert) of one layer of one step, ascending."""


def groups(lines: np.ndarray) -> list[Group]:
    """The fetches of a trace as :meth:`flashmoe.Model.routes` gives it, in order."""
    out = []
    for (_, layer), part in groupby(lines, key=lambda line: (int(line[0]), int(line[2]))):
        ids = {int(e) for line in part for e in line[3:] if e >= 0}
        out.append([(layer, e) for e in sorted(ids)])
    return out


def lru(trace: Sequence[Group], slots: int) -> int:
    """Hits when the least recently used expert goes."""
    held: OrderedDict[tuple[int, int], None] = OrderedDict()
    hits = 0
    for group in trace:
        found = [key for key in group if key in held]
        hits += len(found)
        for key in found:
            held.move_to_end(key)
        for key in group:
            if key not in found and len(held) >= slots:
                held.popitem(last=False)
            held[key] = None
            held.move_to_end(key)
    return hits


def lfu(trace: Sequence[Group], slots: int) -> int:
    """Hits when the expert picked least often so far goes, of equals the least recently used."""
    held: dict[tuple[int, int], int] = {}
    uses: Counter[tuple[int, int]] = Counter()
    hits = clock = 0
    for group in trace:
        found = {key for key in group if key in held}
        hits += len(found)
        for key in group:
            uses[key] += 1
            clock += 1
            if key not in found and len(held) >= slots:
                del held[min((k for k in held if k not in group), key=lambda k: (uses[k], held[k]))]
            held[key] = clock
    return hits


def slru(trace: Sequence[Group], slots: int) -> int:
    """Hits of segmented LRU: what was used twice is protected, four fifths of the slots at most."""
    once: OrderedDict[tuple[int, int], None] = OrderedDict()
    twice: OrderedDict[tuple[int, int], None] = OrderedDict()
    hits = 0
    for group in trace:
        found = {key for key in group if key in once or key in twice}
        hits += len(found)
        for key in group:
            if key in found:
                once.pop(key, None)
                twice.pop(key, None)
                twice[key] = None
                if len(twice) > slots - slots // 5:
                    once[twice.popitem(last=False)[0]] = None
                continue
            if len(once) + len(twice) >= slots:
                victim = next(k for part in (once, twice) for k in part if k not in group)
                once.pop(victim, None)
                twice.pop(victim, None)
            once[key] = None
    return hits


def static(trace: Sequence[Group], slots: int) -> int:
    """Hits when the experts picked most in the whole trace stay: the best fixed set."""
    uses = Counter(key for group in trace for key in group)
    best = {key for key, _ in uses.most_common(slots)}
    return sum(key in best for group in trace for key in group) - len(best)  # first reads


def belady(trace: Sequence[Group], slots: int) -> int:
    """Hits when the expert goes that is needed last: no policy finds more."""
    next_use: dict[tuple[int, int], list[int]] = {}
    for at, group in reversed(list(enumerate(trace))):
        for key in group:
            next_use.setdefault(key, []).append(at)
    held: set[tuple[int, int]] = set()
    hits = 0
    for group in trace:
        hits += sum(key in held for key in group)
        for key in group:
            next_use[key].pop()
        held.update(group)
        later = {key: (next_use[key] or [sys.maxsize])[-1] for key in held - set(group)}
        free = sorted(later, key=lambda key: (later[key], key))
        while len(held) > slots:
            held.remove(free.pop())
    return hits


POLICIES = {"lru": lru, "lfu": lfu, "slru": slru, "static": static, "belady": belady}


def table(trace: Sequence[Group]) -> Iterator[str]:
    """Hit rates for several sizes of the cache, as lines of a Markdown table."""
    needed = sum(map(len, trace))
    distinct = len({key for group in trace for key in group})
    fewest = max(map(len, trace))
    yield f"{needed} experts needed, {distinct} distinct, {len(trace)} fetches"
    yield "| slots | " + " | ".join(POLICIES) + " |"
    yield "|---" * (len(POLICIES) + 1) + "|"
    for percent in (5, 10, 20, 30, 50, 75):
        slots = max(fewest, distinct * percent // 100)
        rates = [f"{policy(trace, slots) / needed:.3f}" for policy in POLICIES.values()]
        yield f"| {slots} ({percent} %) | " + " | ".join(rates) + " |"


def record(path: str, out: Path, tokens: int) -> None:
    """Let a model write, and keep its picks."""
    import flashmoe

    name = flashmoe.demo_model_path() if path == "demo" else path
    with flashmoe.Model(name) as model:
        model.record_routes()
        generator = flashmoe.Generator(model, flashmoe.Sampler(temperature=0.8, seed=1))
        generator.generate("The experts are read when", max_tokens=tokens)
        np.save(out, model.routes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="write a trace")
    recording.add_argument("model", help="a directory, or demo")
    recording.add_argument("trace", type=Path)
    recording.add_argument("--tokens", type=int, default=200)
    replaying = commands.add_parser("replay", help="hit rates of a trace")
    replaying.add_argument("trace", type=Path)
    given = parser.parse_args()
    if given.command == "record":
        record(given.model, given.trace, given.tokens)
    else:
        print("\n".join(table(groups(np.load(given.trace)))))


if __name__ == "__main__":
    main()
