"""Damage to inputs: to bytes, to JSON as a tree, and by splicing two inputs; a seed gives the same damage again."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

Mutator = Callable[[random.Random, bytes, Sequence[bytes]], bytes]
"""Takes a source of randomness, an input, and others to splice with."""

LONGEST = 1 << 16

NUMBERS = (
    -1, 0, 1, 2, 3, 4, 7, 8, 32, 64, 127, 128, 255, 256, 1000, 4096, 65535, 65536, 65537, 1 << 20,
    1 << 24, (1 << 24) + 1, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 46,
    (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 10**30, 10**400, -(1 << 31),
    -(1 << 63), 0.0, -0.0, 0.5, 1.5, 1e-300, 1e-45, 1e38, 1e299, 1e308, -1e308,
    float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
TEXTS = (
    "", " ", "\n", "a", "text", "0", "-1", "1e5", "true", "null", "None", "../a", "/etc/passwd",
    "\x00", "\x1b[2J", "\u202e", "é", "😀", "\ud800", "\udfff", "\ufeff", "﷽", "a" * 600, "A" * 5000,
    "{{ 7 * 7 }}", "{% for", "<tool_call>", "</tool_call>", "<think>", "</think>", "<|im_end|>",
    "<function=f>", "<parameter=a>", "</parameter>", "[DONE]", "__class__", "\\u0000", "\r\n",
)  # fmt: skip
BYTES = (
    *(json.dumps(n).encode() for n in NUMBERS),
    b"{", b"}", b"[", b"]", b'"', b"\\", b":", b",", b"\n", b"=", b" ", b"#", b"\x00", b"\xff",
    b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf4\x90\x80\x80", b"null", b"true", b"{}", b"[]", b'""',
    b'"\\ud800"', b"[" * 200, b"(" * 300, b"-" * 300, b"'" * 3, b"0x", b"1_0", b"{" * 50,
    bytes(8), b"\xff" * 8, (1 << 31).to_bytes(8, "little"), (100_000_000).to_bytes(8, "little"),
)  # fmt: skip


_NUMBER = re.compile(rb"\d{1,40}")
_WHOLE = tuple(n for n in NUMBERS if type(n) is int and n.bit_length() < 200)


def damage_bytes(
    rng: random.Random, data: bytes, others: Sequence[bytes], words: Sequence[bytes] = ()
) -> bytes:
    """One to a few edits of bytes, words of the format among them."""
    for _ in range(1 + int(rng.random() ** 3 * 8)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(11):
            case 0 if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
            case 1:
                data = data[:at] + rng.randbytes(1 + rng.randrange(4)) + data[at:]
            case 2:
                data = data[:at] + data[at + 1 + int(rng.random() ** 3 * 64) :]
            case 3:
                data = data[:at]
            case 4:
                end = at + 1 + int(rng.random() ** 2 * 100)
                data = data[:at] + data[at:end] * (1 + rng.randrange(3)) + data[at:]
            case 5 if others:
                other = rng.choice(others)
                cut = rng.randrange(len(other) + 1)
                data = data[:at] + other[cut:]
            case 6 | 7:
                word = rng.choice(words) if words and rng.random() < 0.7 else rng.choice(BYTES)
                data = data[:at] + word + data[at + rng.choice((0, 0, len(word))) :]
            case 8 | 9 if (number := _NUMBER.search(data, at)) is not None:
                value = int(number[0]) if rng.random() < 0.6 else rng.choice(_WHOLE)
                value += rng.choice((-1, 1, 0, value))
                data = data[: number.start()] + str(value).encode() + data[number.end() :]
            case _ if at < len(data):
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    return data[:LONGEST]


def _copy(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except RecursionError:
        return None


def _value(rng: random.Random) -> Any:
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 7:
        return rng.choice(TEXTS)
    deep = _copy(
        rng.choice((None, True, False, [], {}, [None], {"a": 1}, [[]], [1, "a"], {"": {}}))
    )
    if kind == 9 and rng.random() < 0.05:
        for _ in range(rng.choice((10, 300, 2000))):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return deep


def _nodes(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every container and key (or index) in a tree."""
    stack = [value]
    while stack:
        node = stack.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], (dict, list)):
                stack.append(node[key])
    return found


def damage_tree(rng: random.Random, tree: Any, keys: Sequence[str] = ()) -> Any:
    """One to a few edits of a JSON value, which is changed.

    Args:
        rng: Randomness.
        tree: An object or a list.
        keys: Names that the format has.
    """
    for _ in range(1 + int(rng.random() ** 3 * 5)):
        if not isinstance(tree, (dict, list)):
            return tree
        nodes = _nodes(tree, [])
        if not nodes:
            return {rng.choice(keys or TEXTS): _value(rng)}
        node, key = rng.choice(nodes)
        match rng.randrange(8):
            case 0 | 1 | 2:
                node[key] = _value(rng)
            case 3:
                del node[key]
            case 4 if isinstance(node, dict):
                node[rng.choice(keys or TEXTS)] = node.pop(key)
            case 5:
                other, place = rng.choice(nodes)
                if other is not node and place in (
                    other if isinstance(other, dict) else range(len(other))
                ):
                    node[key] = _copy(other[place])
            case 6:
                value = node[key]
                if isinstance(value, list) and value:
                    value.append(_copy(rng.choice(value)))
                elif type(value) is int:
                    node[key] = value + rng.choice((-1, 1, 7, 1 << 31))
                else:
                    node[key] = [value] if rng.random() < 0.5 else {"a": value}
            case _:
                if isinstance(node, dict):
                    node[rng.choice(keys or TEXTS)] = _value(rng)
                else:
                    node.insert(rng.randrange(len(node) + 1), _value(rng))
    return tree


def dumped(rng: random.Random, tree: Any) -> bytes:
    """A tree as JSON, its surrogates as escapes or as bytes that are no UTF-8."""
    plain = rng.random() < 0.5
    try:
        return json.dumps(tree, ensure_ascii=plain).encode(errors="surrogatepass")
    except (ValueError, RecursionError):  # an integer that Python does not print; too deep
        return b"[" * 3000


def json_mutator(keys: Sequence[str] = ()) -> Mutator:
    """Damage to JSON text: mostly to its tree, then perhaps to its bytes."""
    words = [json.dumps(key).encode() for key in keys]

    def mutate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
        kind = rng.random()
        if kind < 0.85:
            try:
                tree = json.loads(data)
            except (ValueError, RecursionError):
                tree = None
            if isinstance(tree, (dict, list)):
                data = dumped(rng, damage_tree(rng, tree, keys))[:LONGEST]
        if kind > 0.8:
            data = damage_bytes(rng, data, others, words)
        return data

    return mutate


def text_mutator(words: Sequence[str]) -> Mutator:
    """Damage to text that is made of some words."""
    known = [word.encode(errors="surrogatepass") for word in words]

    def mutate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
        return damage_bytes(rng, data, others, known)

    return mutate
