"""Qwen3-MoE: plain attention with normed queries and keys, no shared expert."""

from __future__ import annotations

from flashmoe.families.family import COMMON_REQUIRED, UNREAD, Family

FAMILY = Family(
    model_types=("qwen3_moe",),
    delta_projections=None,
    gated_attention=False,
    zero_centred_norms=False,
    partial_rotary_factor=1.0,
    head_dim=None,
    renormalise=False,
    reads_norm_topk_prob=True,
    reads_dense_layers=True,
    shared_expert=False,
    required=COMMON_REQUIRED
    | {
        "attn_output_gate": (False,),
        "partial_rotary_factor": (1, 1.0),
        "shared_expert_intermediate_size": (0,),
    },
    ignored=UNREAD,
)
