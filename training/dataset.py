"""Turns seeds into packed rows of token ids and loss weights."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from corpus.conversation import document
from numpy.typing import NDArray
from rendering import render
from tokenizers import Tokenizer

OTHER_WEIGHT = 0.1
OPEN_ROWS = 64
CHUNK = 2000


@dataclass(frozen=True)
class Rows:
    """Packed rows: token ids and the weight of predicting each of them, both [rows, length]."""

    ids: NDArray[np.uint16]
    weights: NDArray[np.float16]

    def tokens(self) -> int:
        """Returns how many tokens are not padding."""
        return int((self.weights > 0).sum())


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Returns the id of a token.

    Raises:
        ValueError: The tokenizer has no such token.
    """
    found: int | None = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no {token}; train it with tokenizer.py")
    return found


def loss_weights(
    ids: list[int], start: int, end: int, role: list[int], think: int
) -> NDArray[np.float16]:
    """Returns the weight of each token: 1 inside the assistant's turns, little elsewhere.

    ``<think>`` at the start of a turn weighs nothing: the prompt writes it, never the model.

    Args:
        ids: The tokens of a conversation.
        start: Id of ``<|im_start|>``.
        end: Id of ``<|im_end|>``.
        role: Ids of ``assistant`` and the newline after it.
        think: Id of ``<think>``.
    """
    weights = np.full(len(ids), OTHER_WEIGHT, dtype=np.float16)
    at = 0
    while at < len(ids):
        if ids[at] == start and ids[at + 1 : at + 1 + len(role)] == role:
            first = at + 1 + len(role)
            stop = ids.index(end, first) + 1
            weights[first:stop] = 1
            if ids[first] == think:
                weights[first] = 0
            at = stop
        else:
            at += 1
    return weights


def encode(seeds: range, prefix: str, held_out: bool, tokenizer_file: str) -> list[Rows]:
    """Returns the documents of ``seeds`` on one side of the split, each as one row of its own."""
    tokenizer = Tokenizer.from_file(tokenizer_file)
    stop = token_id(tokenizer, "<|endoftext|>")
    start, end = token_id(tokenizer, "<|im_start|>"), token_id(tokenizer, "<|im_end|>")
    think = token_id(tokenizer, "<think>")
    role = tokenizer.encode("assistant\n").ids
    rows = []
    for seed in seeds:
        drawn = document(f"{prefix}-{seed}")
        if drawn.held_out() != held_out:
            continue
        ids: list[int] = [*tokenizer.encode(render(drawn)).ids, stop]
        weights = loss_weights(ids, start, end, role, think)
        if not drawn.messages:
            weights[:] = 1
        weights[-1] = 1
        rows.append(Rows(np.array(ids, dtype=np.uint16), weights))
    return rows


def pack(documents: list[Rows], length: int, padding: int) -> Rows:
    """Packs documents into rows of ``length`` tokens; every row begins with a document.

    A document longer than a row is dropped. The space left in a row has weight zero.
    """
    open_rows: list[list[Rows]] = []
    space: list[int] = []
    closed: list[list[Rows]] = []
    for item in documents:
        size = len(item.ids)
        if size > length:
            continue
        fits = next((i for i, free in enumerate(space) if free >= size), None)
        if fits is None:
            if len(open_rows) == OPEN_ROWS:
                fullest = min(range(OPEN_ROWS), key=space.__getitem__)
                closed.append(open_rows.pop(fullest))
                space.pop(fullest)
            open_rows.append([])
            space.append(length)
            fits = len(space) - 1
        open_rows[fits].append(item)
        space[fits] -= size
    closed += open_rows
    ids = np.full((len(closed), length), padding, dtype=np.uint16)
    weights = np.zeros((len(closed), length), dtype=np.float16)
    for row, items in enumerate(closed):
        at = 0
        for item in items:
            ids[row, at : at + len(item.ids)] = item.ids
            weights[row, at : at + len(item.ids)] = item.weights
            at += len(item.ids)
    return Rows(ids, weights)


def build(
    folder: Path, prefix: str, documents: int, length: int, held_out: bool, workers: int
) -> Rows:
    """Draws ``documents`` seeds and packs those on one side of the split.

    Args:
        folder: The folder of ``tokenizer.json``.
        prefix: Names the stream of seeds.
        documents: How many seeds to draw.
        length: Tokens in a row.
        held_out: Whether to keep the held-out documents or all the others.
        workers: Processes that draw and encode.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    file = str(folder / "tokenizer.json")
    chunks = [range(at, min(at + CHUNK, documents)) for at in range(0, documents, CHUNK)]
    work = partial(encode, prefix=prefix, held_out=held_out, tokenizer_file=file)
    with ProcessPoolExecutor(workers) as pool:
        encoded = [row for rows in pool.map(work, chunks) for row in rows]
    return pack(encoded, length, token_id(Tokenizer.from_file(file), "<|endoftext|>"))
