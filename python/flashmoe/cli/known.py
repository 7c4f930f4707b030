"""Published models that flashmoe runs, at 4 bits in groups of 64, for ``flashmoe doctor``.

Computed from their configs: the router at 8 bits, norms in bf16, KV cache in f16.
"""

from __future__ import annotations

from dataclasses import dataclass

from flashmoe.cli.footprint import Footprint, scratch_bytes


@dataclass(frozen=True, slots=True)
class Known:
    """A published model.

    Attributes:
        name: As people call it.
        repository: Of the original weights on the hub.
        footprint: What it takes at 4 bits.
    """

    name: str
    repository: str
    footprint: Footprint

    @property
    def disk_bytes(self) -> int:
        """Bytes of the packed model."""
        return self.footprint.total_expert_bytes + self.footprint.resident_bytes


def _model(
    repository: str,
    *,
    layers: int,
    experts: int,
    k: int,
    expert_bytes: int,
    resident: int,
    kv: int,
    hidden: int,
    vocab: int,
    delta_layers: int = 0,
    value_heads: int = 0,
) -> Known:
    channels = (2 * 16 + value_heads) * 128
    state = delta_layers * 2 * 4 * (3 * channels + value_heads * 128 * 128)
    return Known(
        repository.split("/")[1],
        repository,
        Footprint(
            experts=layers * experts,
            expert_bytes=expert_bytes,
            total_expert_bytes=layers * experts * expert_bytes,
            experts_per_token=layers * k,
            most_per_layer=k,
            read_per_token=layers * k * expert_bytes,
            resident_bytes=resident,
            kv_bytes_per_token=kv,
            state_bytes=state,
            scratch_bytes=scratch_bytes(hidden),
            embedding_bytes=vocab * hidden * 9 // 16,
        ),
    )


KNOWN = (
    _model(
        "Qwen/Qwen3-30B-A3B",
        layers=48,
        experts=128,
        k=8,
        expert_bytes=2_654_208,
        resident=870_000_000,
        kv=98_304,
        hidden=2048,
        vocab=151936,
    ),
    _model(
        "Qwen/Qwen3.6-35B-A3B",
        layers=40,
        experts=256,
        k=8,
        expert_bytes=1_769_472,
        resident=1_390_000_000,
        kv=20_480,
        hidden=2048,
        vocab=248320,
        delta_layers=30,
        value_heads=32,
    ),
    _model(
        "Qwen/Qwen3-Next-80B-A3B-Instruct",
        layers=48,
        experts=512,
        k=10,
        expert_bytes=1_769_472,
        resident=1_360_000_000,
        kv=24_576,
        hidden=2048,
        vocab=151936,
        delta_layers=36,
        value_heads=32,
    ),
    _model(
        "Qwen/Qwen3.5-122B-A10B",
        layers=48,
        experts=256,
        k=8,
        expert_bytes=5_308_416,
        resident=3_480_000_000,
        kv=24_576,
        hidden=3072,
        vocab=248320,
        delta_layers=36,
        value_heads=64,
    ),
    _model(
        "Qwen/Qwen3-235B-A22B",
        layers=94,
        experts=128,
        k=8,
        expert_bytes=10_616_832,
        resident=4_520_000_000,
        kv=192_512,
        hidden=4096,
        vocab=151936,
    ),
    _model(
        "Qwen/Qwen3.5-397B-A17B",
        layers=60,
        experts=512,
        k=10,
        expert_bytes=7_077_888,
        resident=5_580_000_000,
        kv=30_720,
        hidden=4096,
        vocab=248320,
        delta_layers=45,
        value_heads=64,
    ),
)
