"""What a family of models may differ in, and how its config becomes a spec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from flashmoe.errors import ModelFormatError, UnsupportedModelError
from flashmoe.families.fields import BOOKKEEPING, NEUTRAL, Fields
from flashmoe.spec import ROPE_KEYS, Attention, Delta, Dense, Layer, ModelSpec, MoE, read_rope

COMMON_REQUIRED: dict[str, Sequence[Any]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,),
    "qkv_bias": (False,),
    "mlp_bias": (False,),
    "use_qk_norm": (True,),
    "use_sliding_window": (False,),
}
"""Fields that every family here must have at these values, or not at all."""

UNREAD = frozenset({"intermediate_size", "sliding_window", "max_window_layers"})
"""Fields that no family here reads: of dense layers it may not have, of windows that are off."""


@dataclass(frozen=True, slots=True)
class Family:
    """A family of models, as values.

    Attributes:
        model_types: The ``model_type`` it goes by.
        delta_projections: How delta layers store their inputs: ``split`` into four matrices, or
            ``grouped`` by key head in two; None: the family has no delta layers.
        gated_attention: Whether ``q_proj`` yields, by head, a query and its output gate.
        zero_centred_norms: Whether norm weights are stored minus one (not in MLX's files).
        partial_rotary_factor: Share of a head that turns, where the config gives none.
        head_dim: Where the config gives none; None: hidden size by heads.
        renormalise: Whether picked shares are divided by their sum, where the config is silent.
        reads_norm_topk_prob: Whether the config may say otherwise.
        reads_dense_layers: Whether ``mlp_only_layers`` and ``decoder_sparse_step`` are heeded.
        shared_expert: Whether MoE layers have an always-on expert.
        required: Fields that must have one of these values where they are given.
        ignored: Fields of this family that change nothing.
    """

    model_types: tuple[str, ...]
    delta_projections: Literal["split", "grouped"] | None
    gated_attention: bool
    zero_centred_norms: bool
    partial_rotary_factor: float
    head_dim: int | None
    renormalise: bool
    reads_norm_topk_prob: bool
    reads_dense_layers: bool
    shared_expert: bool
    required: Mapping[str, Sequence[Any]]
    ignored: frozenset[str]

    def spec(self, config: Mapping[str, Any], tied: bool) -> ModelSpec:
        """Read the text part of a config.

        Raises:
            UnsupportedModelError: A field that this version does not run exactly.
            ModelFormatError: A field that is missing or cannot be.
        """
        fields = Fields(config)
        fields.require(self.required)
        fields.require(NEUTRAL)
        layers = fields.integer("num_hidden_layers", high=65536)
        attention = self._attention(fields)
        rope, max_positions = read_rope(
            config,
            attention.head_dim,
            fields.integer("max_position_embeddings", high=1 << 30),
            self.partial_rotary_factor,
        )
        full = self._full_attention(fields, layers)
        delta = None if all(full) else self._delta(fields)
        moe = self._moe(fields)
        dense = self._dense(fields, layers)
        spec = ModelSpec(
            hidden_size=fields.integer("hidden_size"),
            vocab_size=fields.integer("vocab_size"),
            norm_eps=fields.number("rms_norm_eps"),
            max_positions=max_positions,
            tied=tied,
            ropes=(rope,) if any(full) else (),
            layers=tuple(
                Layer(attention if delta is None or full[i] else delta, dense.get(i, moe))
                for i in range(layers)
            ),
        )
        fields.ignore(BOOKKEEPING | ROPE_KEYS | self.ignored | {"tie_word_embeddings"})
        if self.delta_projections is not None:
            fields.ignore(_DELTA_FIELDS)
        fields.finish()
        spec.validate()
        return spec

    def _attention(self, fields: Fields) -> Attention:
        heads = fields.integer("num_attention_heads", high=65536)
        kv_heads = fields.integer("num_key_value_heads", high=65536)
        if heads % kv_heads:
            raise ModelFormatError(
                f"config.json: num_attention_heads {heads} is no multiple of "
                f"num_key_value_heads {kv_heads}"
            )
        head_dim = fields.integer(
            "head_dim",
            high=4096,
            default=self.head_dim or max(1, fields.integer("hidden_size") // heads),
        )
        return Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope=0,
            scale=float(head_dim) ** -0.5,
            gated=self.gated_attention,
            qk_norm=True,
        )

    def _full_attention(self, fields: Fields, layers: int) -> list[bool]:
        """For each layer, whether its mixer is attention."""
        types = fields.get("layer_types")
        if types is None:
            if self.delta_projections is None:
                return [True] * layers
            interval = fields.integer("full_attention_interval", default=4)
            return [(i + 1) % interval == 0 for i in range(layers)]
        fields.ignore({"full_attention_interval"})
        if not isinstance(types, list) or len(types) != layers:
            raise ModelFormatError(
                f"config.json: layer_types must be a list of num_hidden_layers = {layers} words"
            )
        allowed = {"full_attention"}
        if self.delta_projections is not None:
            allowed.add("linear_attention")
        for index, kind in enumerate(types):
            if not isinstance(kind, str) or kind not in allowed:
                raise UnsupportedModelError(
                    f"config.json: layer_types[{index}] is {kind!r}; "
                    f"flashmoe supports {' and '.join(sorted(allowed))} here"
                )
        return [kind == "full_attention" for kind in types]

    def _delta(self, fields: Fields) -> Delta:
        delta = Delta(
            key_heads=fields.integer("linear_num_key_heads", high=65536),
            value_heads=fields.integer("linear_num_value_heads", high=65536),
            key_dim=fields.integer("linear_key_head_dim", high=1024),
            value_dim=fields.integer("linear_value_head_dim", high=1024),
            conv_taps=fields.integer("linear_conv_kernel_dim", high=64),
        )
        if delta.value_heads % delta.key_heads:
            raise ModelFormatError(
                f"config.json: linear_num_value_heads {delta.value_heads} is no multiple of "
                f"linear_num_key_heads {delta.key_heads}"
            )
        return delta

    def _moe(self, fields: Fields) -> MoE:
        experts = fields.integer("num_experts", "num_local_experts", high=65536)
        picked = fields.integer("num_experts_per_tok", high=2**31 - 1)
        if picked > experts:
            raise ModelFormatError(
                f"config.json: num_experts_per_tok {picked} is more than num_experts {experts}"
            )
        renormalise = self.renormalise
        if self.reads_norm_topk_prob:
            renormalise = fields.flag("norm_topk_prob", renormalise)
        shared = 0
        if self.shared_expert:
            shared = fields.integer("shared_expert_intermediate_size")
        return MoE(
            experts=experts,
            experts_per_token=picked,
            renormalise=renormalise,
            intermediate_size=fields.integer("moe_intermediate_size"),
            shared_intermediate_size=shared,
        )

    def _dense(self, fields: Fields, layers: int) -> dict[int, Dense]:
        """The layers without experts."""
        if not self.reads_dense_layers:
            return {}
        only = fields.indices("mlp_only_layers", layers)
        step = fields.integer("decoder_sparse_step", default=1)
        chosen = [i for i in range(layers) if i in only or (i + 1) % step]
        if not chosen:
            return {}
        dense = Dense(fields.integer("intermediate_size"))
        return dict.fromkeys(chosen, dense)


_DELTA_FIELDS = frozenset(
    {
        "linear_num_key_heads",
        "linear_num_value_heads",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "linear_conv_kernel_dim",
    }
)
"""May also be given where every layer is attention."""
