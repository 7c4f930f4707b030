"""Qwen3.5-MoE and Qwen3.6-MoE: gated delta nets, gated attention, experts in every layer."""

from __future__ import annotations

from flashmoe.families.family import COMMON_REQUIRED, UNREAD, Family

FAMILY = Family(
    model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
    delta_projections="split",
    gated_attention=True,
    zero_centred_norms=True,
    partial_rotary_factor=0.25,
    head_dim=256,
    renormalise=True,
    reads_norm_topk_prob=False,
    reads_dense_layers=False,
    shared_expert=True,
    required=COMMON_REQUIRED
    | {
        "attn_output_gate": (True,),
        "output_gate_type": ("silu", "swish"),
        "norm_topk_prob": (True,),
        "mlp_only_layers": ([],),
        "decoder_sparse_step": (1,),
    },
    ignored=UNREAD,
)
