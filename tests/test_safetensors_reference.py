"""Safetensors headers against the format's own reader: what is taken is the same there."""

from __future__ import annotations

import random

import safetensors as reference

from flashmoe.errors import ModelFormatError
from flashmoe.safetensors import parse_header
from fuzz.files import TARGETS

CASES = 25_000

STRICTER = (
    "printable bytes",  # names: 1 to 512 of them, no control characters
    "dimensions are above",  # 8
    "is in the header twice",
    "header is not JSON",  # NaN where a field is not looked at; integers and nesting beyond Python
    "is unknown",  # a dtype that no model has
    "is not a list of sizes",  # 2**63 and more, beside a size of 0
    "overflows 64 bits",  # likewise, as a product
)
"""What we refuse and the reference takes; in these words."""

DEEP = "deep"
"""The reference reads no more than 128 levels, in fields that nobody looks at, too."""


def verdicts(data: bytes) -> tuple[object, str]:
    """Tensors, or None and why not: the reference's, ours."""
    try:
        header = parse_header(data, len(data), "x")
        start = header.file_size - sum(t.nbytes for t in header.tensors.values())
        ours: object = {
            name: (t.dtype, list(t.shape), t.at - start, t.nbytes)
            for name, t in header.tensors.items()
        }
        return ours, ""
    except ModelFormatError as error:
        return None, str(error)


def theirs(data: bytes) -> object:
    try:
        found = reference.deserialize(data)
    except reference.SafetensorError as error:
        return DEEP if "recursion limit" in str(error) else None
    return {name: (t["dtype"], list(t["shape"]), len(t["data"])) for name, t in found}


def compare(data: bytes) -> str:
    """Which of the two took it; fails where they must not differ."""
    ours, why = verdicts(data)
    reference_says = theirs(data)
    if reference_says is DEEP:
        return "neither"
    if ours is None:
        if reference_says is None:
            return "neither"
        assert any(words in why for words in STRICTER), (why, data[:400])
        return "stricter"
    assert reference_says is not None, ("only we take", data[:400])
    mine = {name: (dtype, shape, nbytes) for name, (dtype, shape, _, nbytes) in ours.items()}  # type: ignore[attr-defined]
    assert mine == reference_says, data[:400]
    return "both"


def run(cases: int, seed: int) -> dict[str, int]:
    target = next(t for t in TARGETS if t.name == "safetensors")
    rng = random.Random(seed)
    pool = target.seeds()
    counts = {"neither": 0, "stricter": 0, "both": 0}
    for _ in range(cases):
        data = target.mutate(rng, rng.choice(pool), pool)
        kind = compare(data)
        counts[kind] += 1
        if kind != "neither" and len(pool) < 500:
            pool.append(data)
    return counts


def test_same_verdicts() -> None:
    counts = run(CASES, seed=3)
    assert counts["both"] > 300 and counts["neither"] > 1000, counts
