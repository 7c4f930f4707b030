"""The families of models that flashmoe knows, by ``model_type``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashmoe.errors import ModelFormatError, UnsupportedModelError
from flashmoe.families import qwen3_5_moe, qwen3_moe, qwen3_next
from flashmoe.families.family import Family
from flashmoe.families.fields import BOOKKEEPING, NEUTRAL, Fields
from flashmoe.spec import ModelSpec

__all__ = ["FAMILIES", "Family", "read_config", "text_config"]

FAMILIES: dict[str, Family] = {
    model_type: module.FAMILY
    for module in (qwen3_5_moe, qwen3_next, qwen3_moe)
    for model_type in module.FAMILY.model_types
}


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model: ``text_config``, or all of it.

    Raises:
        ModelFormatError: ``text_config`` is no object.
    """
    text = config.get("text_config")
    if text is None:
        return config
    if not isinstance(text, Mapping):
        raise ModelFormatError("config.json: text_config is not an object")
    return text


def read_config(config: Mapping[str, Any]) -> tuple[Family, ModelSpec]:
    """Which family a config belongs to, and the model it describes.

    Raises:
        UnsupportedModelError: A family, layer or field that flashmoe does not run exactly.
        ModelFormatError: A field that is missing or cannot be.
    """
    text = text_config(config)
    family = _family(config.get("model_type"))
    if text is config:
        tied = Fields(config).flag("tie_word_embeddings", False)
        return family, family.spec(config, tied)
    inner = text.get("model_type")
    if inner is not None and _family(inner) is not family:
        raise UnsupportedModelError(
            f"config.json: text_config.model_type {inner!r} inside model_type "
            f"{config.get('model_type')!r} is not supported"
        )
    outer = Fields(config)
    tied = outer.flag("tie_word_embeddings", Fields(text).flag("tie_word_embeddings", False))
    outer.require(NEUTRAL)
    outer.ignore(BOOKKEEPING | {"text_config"})
    outer.finish(same=text)
    return family, family.spec(text, tied)


def _family(model_type: Any) -> Family:
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    raise UnsupportedModelError(
        f"config.json: model_type {model_type!r} is not supported; "
        f"flashmoe runs {', '.join(FAMILIES)}"
    )
