"""Strict reading of a ``config.json``: every field is known, or the model is refused."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flashmoe.errors import ModelFormatError, UnsupportedModelError
from flashmoe.spec import LARGEST_WIDTH

_BOOKKEEPING = (
    # what wrote the file, and how to load it
    "model_type architectures transformers_version torch_dtype dtype use_bfloat16 _name_or_path",
    "name_or_path model_name unsloth_fixed unsloth_version _attn_implementation",
    "_attn_implementation_autoset attn_implementation _experts_implementation",
    "experts_implementation _commit_hash quantization quantization_config language_model_only",
    # training
    "initializer_range attention_dropout hidden_dropout dropout embd_pdrop resid_pdrop",
    "classifier_dropout router_aux_loss_coef output_router_logits gradient_checkpointing",
    # outputs and generation
    "use_cache return_dict output_hidden_states output_attentions torchscript tf_legacy_loss",
    "chunk_size_feed_forward max_length min_length do_sample early_stopping num_beams",
    "num_beam_groups diversity_penalty temperature top_k top_p min_p typical_p repetition_penalty",
    "length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids",
    "num_return_sequences output_scores return_dict_in_generate forced_bos_token_id",
    "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens",
    "begin_suppress_tokens finetuning_task id2label label2id problem_type task_specific_params",
    "prefix",
    # tokens
    "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id tokenizer_class",
    # images and sound
    "vision_config audio_config image_token_id image_token_index video_token_id",
    "video_token_index vision_start_token_id vision_end_token_id vision_token_id ignore_index",
    "audio_token_id",
    # multi-token prediction, which is not used; the recurrent state, which is always float32
    "num_nextn_predict_layers mamba_ssm_dtype",
)
BOOKKEEPING = frozenset(word for line in _BOOKKEEPING for word in line.split())
"""Fields that do not change what a forward pass computes."""

NEUTRAL: dict[str, Sequence[Any]] = {
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
}
"""Fields of every transformers config, and the values that change nothing."""


class Fields:
    """A config, and which of its fields have been asked for."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self._known: set[str] = set()

    def get(self, *names: str) -> Any:
        """The value of a field under any of its names; None if absent or null.

        Raises:
            ModelFormatError: Two of the names are given and disagree.
        """
        self._known.update(names)
        given = {n: self._config[n] for n in names if self._config.get(n) is not None}
        values = list(given.values())
        if any(value != values[0] for value in values):
            raise ModelFormatError(f"config.json: {given} disagree")
        return values[0] if values else None

    def integer(
        self, *names: str, low: int = 1, high: int = LARGEST_WIDTH, default: int | None = None
    ) -> int:
        """An integer field; ``low`` and ``high`` included.

        Raises:
            ModelFormatError: Absent without a default, no integer, or out of range.
        """
        value = self.get(*names)
        if value is None:
            if default is None:
                raise ModelFormatError(f"config.json: {names[0]} is missing")
            return default
        if type(value) is not int or not low <= value <= high:
            raise ModelFormatError(
                f"config.json: {names[0]} is {_shown(value)}; "
                f"it must be an integer in {low} .. {high}"
            )
        return value

    def number(self, name: str) -> float:
        """A positive finite field.

        Raises:
            ModelFormatError: Absent, or anything else.
        """
        value = self.get(name)
        if value is None:
            raise ModelFormatError(f"config.json: {name} is missing")
        return positive(name, value)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean field.

        Raises:
            ModelFormatError: Not a boolean.
        """
        value = self.get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise ModelFormatError(
                f"config.json: {name} is {_shown(value)}; it must be true or false"
            )
        return value

    def indices(self, name: str, count: int) -> frozenset[int]:
        """A list of integers below ``count``; empty if absent.

        Raises:
            ModelFormatError: Anything else.
        """
        value = self.get(name)
        if value is None:
            return frozenset()
        if not isinstance(value, list) or not all(type(i) is int and 0 <= i < count for i in value):
            raise ModelFormatError(
                f"config.json: {name} is {_shown(value)}; "
                f"it must be a list of integers in 0 .. {count - 1}"
            )
        return frozenset(value)

    def require(self, fields: Mapping[str, Sequence[Any]]) -> None:
        """Refuse a field that is given another value than the ones listed for it.

        Raises:
            UnsupportedModelError: Naming the field and its value.
        """
        for name, allowed in fields.items():
            value = self.get(name)
            if value is None or any(value == a and type(value) is type(a) for a in allowed):
                continue
            wanted = " or ".join(map(repr, allowed))
            raise UnsupportedModelError(
                f"config.json: {name} is {_shown(value)}; flashmoe supports only {wanted} here"
            )

    def ignore(self, names: Iterable[str]) -> None:
        """Allow fields whatever their values."""
        self._known.update(names)

    def finish(self, same: Mapping[str, Any] | None = None) -> None:
        """Refuse any field that nobody asked for, unless it is null or repeated in ``same``.

        Raises:
            UnsupportedModelError: Naming the fields.
        """
        unknown = sorted(
            name
            for name, value in self._config.items()
            if name not in self._known
            and not name.startswith("mtp_")
            and value is not None
            and not (same is not None and name in same and same[name] == value)
        )
        if unknown:
            raise UnsupportedModelError(
                f"config.json: flashmoe does not know the field {', '.join(unknown)}, "
                "which may change what the model computes"
            )


def positive(name: str, value: Any) -> float:
    """A positive finite number.

    Raises:
        ModelFormatError: Anything else, naming the field.
    """
    if type(value) in (int, float) and 0 < value < 1e300 and math.isfinite(value):
        return float(value)
    raise ModelFormatError(f"config.json: {name} is {_shown(value)}; it must be a positive number")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
