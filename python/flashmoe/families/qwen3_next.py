"""Qwen3-Next: as Qwen3.5-MoE, with its delta projections grouped by key head."""

from __future__ import annotations

from flashmoe.families.family import COMMON_REQUIRED, UNREAD, Family

FAMILY = Family(
    model_types=("qwen3_next",),
    delta_projections="grouped",
    gated_attention=True,
    zero_centred_norms=True,
    partial_rotary_factor=0.25,
    head_dim=256,
    renormalise=True,
    reads_norm_topk_prob=True,
    reads_dense_layers=True,
    shared_expert=True,
    required=COMMON_REQUIRED | {"attn_output_gate": (True,), "output_gate_type": ("silu", "swish")},
    ignored=UNREAD,
)
