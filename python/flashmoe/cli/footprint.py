"""What a model takes of memory and disk, by its manifest alone, and how fast that lets it be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashmoe.manifest import Manifest

BUDGETS_GB = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
KV_TOKENS = 4096
"""Length of the conversation that the tables count with."""

_PAGE = 4096
_SCRATCH_ROWS = 64
_SCRATCH_WIDTH = 40
"""Activations of a step take about so many rows of so many hidden sizes, in float32."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Sizes in bytes.

    Attributes:
        experts: Routed experts of all layers.
        expert_bytes: The largest expert.
        total_expert_bytes: All routed experts.
        experts_per_token: Experts that one token uses in all layers together.
        most_per_layer: Experts that one token uses in one layer.
        read_per_token: Expert bytes that one token uses.
        resident_bytes: Everything but routed experts.
        kv_bytes_per_token: KV cache in 16-bit numbers.
        state_bytes: Recurrent states of one conversation.
        scratch_bytes: Activations of a step, about.
        embedding_bytes: Part of the resident bytes of which a token reads one row.
    """

    experts: int
    expert_bytes: int
    total_expert_bytes: int
    experts_per_token: int
    most_per_layer: int
    read_per_token: int
    resident_bytes: int
    kv_bytes_per_token: int
    state_bytes: int
    scratch_bytes: int
    embedding_bytes: int

    @property
    def fixed_bytes(self) -> int:
        """What is held beside experts, with a conversation of :data:`KV_TOKENS` tokens."""
        session = self.state_bytes + KV_TOKENS * self.kv_bytes_per_token
        return self.resident_bytes + session + self.scratch_bytes

    @property
    def least_memory(self) -> int:
        """The smallest budget that the model runs in, about."""
        return self.fixed_bytes + self.most_per_layer * self.expert_bytes

    def share_in_memory(self, budget: int) -> float | None:
        """Share of the experts that a budget holds, or None if the model does not run in it.

        Args:
            budget: Bytes.
        """
        if budget < self.least_memory:
            return None
        if not self.experts:
            return 1.0
        return min(1.0, (budget - self.fixed_bytes) // self.expert_bytes / self.experts)

    def tokens_per_second(self, budget: int, disk: float, memory: float) -> float | None:
        """A ceiling for decoding, if every expert is picked equally often.

        Args:
            budget: Bytes of memory to hold.
            disk: Bytes a second that the disk gives.
            memory: Bytes a second that the memory gives.
        """
        share = self.share_in_memory(budget)
        if share is None:
            return None
        missing = self.read_per_token * (1 - share)
        touched = self.read_per_token + self.resident_bytes - self.embedding_bytes
        return 1 / (missing / disk + touched / memory)


def scratch_bytes(hidden_size: int) -> int:
    """Activations of the smallest step, about; what remains goes to threads.

    Args:
        hidden_size: Of the model.
    """
    return _SCRATCH_ROWS * _SCRATCH_WIDTH * hidden_size * 4


def measure(manifest: Manifest, experts_per_token: int | None = None) -> Footprint:
    """The footprint of a model.

    Args:
        manifest: Of the model.
        experts_per_token: Routed experts per token; the model's own number if None.
    """
    from flashmoe.spec import Attention, Delta, MoE

    experts = used = most = read = largest = kv = state = 0
    for index, layer in enumerate(manifest.spec.layers):
        if isinstance(layer.ffn, MoE):
            picks = min(
                experts_per_token or layer.ffn.experts_per_token, layer.ffn.experts_per_token
            )
            nbytes = manifest.expert_bytes(index)
            experts += layer.ffn.experts
            used += picks
            read += picks * nbytes
            most = max(most, picks)
            largest = max(largest, nbytes)
        if isinstance(layer.mixer, Attention):
            kv += 2 * 2 * layer.mixer.kv_heads * layer.mixer.head_dim
        elif isinstance(layer.mixer, Delta):
            d = layer.mixer
            rolling = (d.conv_taps - 1) * d.channels
            state += 2 * 4 * (rolling + d.value_heads * d.key_dim * d.value_dim)
    return Footprint(
        experts=experts,
        expert_bytes=-(-largest // _PAGE) * _PAGE,
        total_expert_bytes=manifest.total_expert_bytes,
        experts_per_token=used,
        most_per_layer=most,
        read_per_token=read,
        resident_bytes=manifest.resident_bytes,
        kv_bytes_per_token=kv,
        state_bytes=state,
        scratch_bytes=scratch_bytes(manifest.spec.hidden_size),
        embedding_bytes=0 if manifest.spec.tied else _embedding_bytes(manifest),
    )


def _embedding_bytes(manifest: Manifest) -> int:
    table = manifest.tensors["embed"]
    return sum(table.quant.part_bytes(p, table.rows, table.cols) for p in table.quant.parts)


def memory_bandwidth(nbytes: int = 32 << 20) -> float:
    """Bytes a second that all cores together move; a rough measure of the memory.

    Args:
        nbytes: Bytes that each core copies.
    """
    import time
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from flashmoe import _core

    cores = _core.cores()
    pairs = [(np.ones(nbytes, np.uint8), np.ones(nbytes, np.uint8)) for _ in range(cores)]
    best = float("inf")
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(4):
            start = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(*pair), pairs))
            best = min(best, time.perf_counter() - start)
    # A copy moves each byte three times: it reads the source, and fetches and writes the target.
    return 3 * nbytes * cores / best
