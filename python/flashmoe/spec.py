"""A model as data: kinds of layer and their numbers, never the name of a model.

The twin of ``csrc/model/spec.h``; field names are those of the manifest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flashmoe.errors import ModelFormatError, UnsupportedModelError

LARGEST_WIDTH = 1 << 24
"""Of any width, so that the product of two stays far below 2**63."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention with grouped queries.

    Attributes:
        heads: Query heads.
        kv_heads: Key and value heads; each serves ``heads // kv_heads`` query heads.
        head_dim: Numbers per head.
        rope: Index into the model's rope tables.
        scale: Factor on query times key.
        gated: Whether the query projection also yields a sigmoid gate on the output.
        qk_norm: Whether queries and keys are RMS-normed by head.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: int
    scale: float
    gated: bool
    qk_norm: bool


@dataclass(frozen=True, slots=True)
class Delta:
    """A gated delta net; ``conv_taps`` counts the current token."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_taps: int

    @property
    def channels(self) -> int:
        """Width of queries, keys and values together."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


@dataclass(frozen=True, slots=True)
class Dense:
    """One SwiGLU for every token."""

    intermediate_size: int


@dataclass(frozen=True, slots=True)
class MoE:
    """Routed SwiGLU experts, and perhaps one that always works.

    Attributes:
        experts: Number of experts.
        experts_per_token: How many the router picks, by softmax over all of them.
        renormalise: Whether the picked shares are divided by their sum.
        intermediate_size: Width of one expert.
        shared_intermediate_size: Width of the always-on expert; 0 if there is none.
    """

    experts: int
    experts_per_token: int
    renormalise: bool
    intermediate_size: int
    shared_intermediate_size: int


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding of the first ``dims`` numbers of a head.

    Attributes:
        dims: Even; number j turns with number ``j + dims // 2``.
        scale: Factor on cosines and sines.
        inv_freq: ``dims // 2`` angles per position, in radians.
    """

    dims: int
    scale: float
    inv_freq: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """A mixer of positions, then a feed-forward network."""

    mixer: Attention | Delta
    ffn: Dense | MoE


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything about a model but its weights."""

    hidden_size: int
    vocab_size: int
    norm_eps: float
    max_positions: int
    tied: bool
    ropes: tuple[Rope, ...]
    layers: tuple[Layer, ...]

    def validate(self) -> None:
        """Check every number against every other.

        Raises:
            ModelFormatError: Naming the layer and the numbers.
        """
        _width("hidden_size", self.hidden_size)
        _width("vocab_size", self.vocab_size)
        _between("layers", len(self.layers), 1, 65536)
        _between("max_positions", self.max_positions, 1, 1 << 30)
        _positive("norm_eps", self.norm_eps)
        _between("ropes", len(self.ropes), 0, 65536)
        for index, rope in enumerate(self.ropes):
            _check_rope(f"rope {index}: ", rope)
        for index, layer in enumerate(self.layers):
            where = f"layer {index}: "
            if isinstance(layer.mixer, Attention):
                _check_attention(where, layer.mixer, self.ropes)
            else:
                _check_delta(where, layer.mixer)
            if isinstance(layer.ffn, MoE):
                _check_moe(where, layer.ffn)
            else:
                _width(f"{where}intermediate_size", layer.ffn.intermediate_size)


def _between(name: str, value: int, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ModelFormatError(f"{name} is {value!r}; it must be an integer in {low} .. {high}")


def _width(name: str, value: int) -> None:
    _between(name, value, 1, LARGEST_WIDTH)


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ModelFormatError(f"{name} is {value!r}; it must be positive and finite")


def _check_rope(where: str, rope: Rope) -> None:
    _between(f"{where}dims", rope.dims, 2, 4096)
    if rope.dims % 2 or len(rope.inv_freq) != rope.dims // 2:
        raise ModelFormatError(
            f"{where}dims is {rope.dims} with {len(rope.inv_freq)} frequencies; "
            "it must be even, with half as many frequencies"
        )
    _positive(f"{where}scale", rope.scale)
    for number in rope.inv_freq:
        _positive(f"{where}inv_freq", number)


def _check_attention(where: str, a: Attention, ropes: tuple[Rope, ...]) -> None:
    _between(f"{where}heads", a.heads, 1, 65536)
    _between(f"{where}kv_heads", a.kv_heads, 1, 65536)
    if a.heads % a.kv_heads:
        raise ModelFormatError(f"{where}{a.heads} heads cannot share {a.kv_heads} kv_heads")
    _between(f"{where}head_dim", a.head_dim, 1, 4096)
    _width(f"{where}heads * head_dim", a.heads * a.head_dim)
    _positive(f"{where}scale", a.scale)
    _between(f"{where}rope", a.rope, 0, len(ropes) - 1)
    if ropes[a.rope].dims > a.head_dim:
        raise ModelFormatError(
            f"{where}rope turns {ropes[a.rope].dims} numbers of a head of {a.head_dim}"
        )


def _check_delta(where: str, d: Delta) -> None:
    _between(f"{where}key_heads", d.key_heads, 1, 65536)
    _between(f"{where}value_heads", d.value_heads, 1, 65536)
    if d.value_heads % d.key_heads:
        raise ModelFormatError(
            f"{where}{d.value_heads} value_heads cannot share {d.key_heads} key_heads"
        )
    _between(f"{where}key_dim", d.key_dim, 1, 1024)
    _between(f"{where}value_dim", d.value_dim, 1, 1024)
    _between(f"{where}conv_taps", d.conv_taps, 1, 64)
    _width(f"{where}queries, keys and values", d.channels)


def _check_moe(where: str, m: MoE) -> None:
    _between(f"{where}experts", m.experts, 1, 65536)
    if type(m.experts_per_token) is not int or not 1 <= m.experts_per_token <= m.experts:
        raise ModelFormatError(
            f"{where}experts_per_token is {m.experts_per_token!r} of {m.experts} experts"
        )
    _width(f"{where}intermediate_size", m.intermediate_size)
    _between(f"{where}shared_intermediate_size", m.shared_intermediate_size, 0, LARGEST_WIDTH)


def default_inv_freq(dims: int, theta: float) -> list[float]:
    """Angles per position of plain rotary embedding, ``dims // 2`` of them."""
    return [theta ** (-2.0 * j / dims) for j in range(dims // 2)]


def yarn_inv_freq(
    dims: int,
    theta: float,
    factor: float,
    original_positions: float,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> list[float]:
    """Angles per position under YaRN, ``dims // 2`` of them.

    Fast-turning pairs keep their frequency, slow ones are divided by ``factor``, and a ramp
    between the pairs that turn ``beta_fast`` and ``beta_slow`` times in the original context
    joins the two.
    """

    def pair_turning(times: float) -> float:
        turn = original_positions / (times * 2 * math.pi)
        return dims * math.log(turn) / (2 * math.log(theta))

    low, high = pair_turning(beta_fast), pair_turning(beta_slow)
    if truncate:
        low, high = float(math.floor(low)), float(math.ceil(high))
    low, high = max(low, 0.0), min(high, dims - 1.0)
    if low == high:
        high += 0.001
    angles = []
    for j, plain in enumerate(default_inv_freq(dims, theta)):
        ramp = min(max((j - low) / (high - low), 0.0), 1.0)
        angles.append(plain / factor * ramp + plain * (1 - ramp))
    return angles


def yarn_attention_factor(
    factor: float, mscale: float | None = None, mscale_all_dim: float | None = None
) -> float:
    """Factor on cosines and sines under YaRN where the config gives none."""

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return magnitude(mscale) / magnitude(mscale_all_dim)
    return magnitude(1.0)


ROPE_KEYS = frozenset({"rope_theta", "partial_rotary_factor", "rope_scaling", "rope_parameters"})
"""The config fields that :func:`read_rope` reads."""

_HARMLESS_ROPE_KEYS = frozenset({"mrope_section", "mrope_interleaved"})  # text: three equal streams
_YARN_KEYS = (
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
)


def read_rope(
    config: Mapping[str, Any], head_dim: int, max_positions: int, partial_rotary_factor: float = 1.0
) -> tuple[Rope, int]:
    """Read the rotary embedding of a config in any of its spellings.

    ``rope_theta`` and ``partial_rotary_factor`` may stand at the top or inside
    ``rope_parameters`` or ``rope_scaling``, whose kind may be called ``rope_type`` or ``type``.

    Args:
        config: The text part of a ``config.json``.
        head_dim: Numbers per head.
        max_positions: ``max_position_embeddings``.
        partial_rotary_factor: The family's own, where the config gives none.

    Returns:
        The table, and the positions it is good for.

    Raises:
        UnsupportedModelError: Another kind of rope, or an unknown field of it.
        ModelFormatError: A number that cannot be, or two places that disagree.
    """
    given = _merge_rope(config)
    kind = given.pop("rope_type", "default")
    theta = _rope_number(given, "rope_theta")
    if theta is None:
        raise ModelFormatError("config.json: rope_theta is missing")
    if theta <= 1:
        raise ModelFormatError(f"config.json: rope_theta is {theta:g}; it must be above 1")
    share = _rope_number(given, "partial_rotary_factor") or partial_rotary_factor
    dims = int(head_dim * share)
    if share > 1 or dims < 2 or dims % 2:
        raise ModelFormatError(
            f"config.json: partial_rotary_factor {share:g} of head_dim {head_dim} turns {dims} "
            "numbers; that must be an even number of them"
        )
    if kind == "default":
        return Rope(dims, 1.0, tuple(default_inv_freq(dims, theta))), max_positions
    if kind != "yarn":
        raise UnsupportedModelError(
            f"config.json: rope_type {kind!r} is not supported; flashmoe knows 'default' and 'yarn'"
        )
    return _read_yarn(given, dims, theta, max_positions)


def _read_yarn(
    given: dict[str, Any], dims: int, theta: float, max_positions: int
) -> tuple[Rope, int]:
    number = {key: _rope_number(given, key) for key in _YARN_KEYS}
    original = number["original_max_position_embeddings"] or float(max_positions)
    factor = number["factor"] or max_positions / original
    truncate = given.get("truncate", True)
    if type(truncate) is not bool:
        raise ModelFormatError(f"config.json: rope truncate is {truncate!r}; it must be a boolean")
    try:
        inv_freq = yarn_inv_freq(
            dims,
            theta,
            factor,
            original,
            number["beta_fast"] or 32.0,
            number["beta_slow"] or 1.0,
            truncate,
        )
        scale = number["attention_factor"] or yarn_attention_factor(
            factor, number["mscale"], number["mscale_all_dim"]
        )
        positions = int(original * factor)
    except (ArithmeticError, ValueError) as error:  # numbers that are right alone, not together
        raise ModelFormatError(f"config.json: yarn rope {given} cannot be: {error}") from error
    return Rope(dims, scale, tuple(inv_freq)), max(max_positions, min(positions, 1 << 30))


def _merge_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """All that a config says of its rope, under one spelling."""
    merged: dict[str, Any] = {}
    for place in ("", "rope_scaling", "rope_parameters"):
        if place:
            source = config.get(place) or {}
            if not isinstance(source, Mapping):
                raise ModelFormatError(f"config.json: {place} is {source!r}; it must be an object")
        else:
            source = {k: config.get(k) for k in ("rope_theta", "partial_rotary_factor")}
        for key, value in source.items():
            if value is None or key in _HARMLESS_ROPE_KEYS:
                continue
            name = "rope_type" if key == "type" else key
            if name not in {"rope_type", "rope_theta", "partial_rotary_factor", "truncate"} and (
                name not in _YARN_KEYS
            ):
                raise UnsupportedModelError(
                    f"config.json: {place}.{key} is not known to flashmoe and may change the maths"
                )
            if merged.setdefault(name, value) != value:
                raise ModelFormatError(
                    f"config.json: {name} is given twice, {merged[name]!r} and {value!r}"
                )
    return merged


def _rope_number(given: Mapping[str, Any], key: str) -> float | None:
    value = given.get(key)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value < 1e300:
        raise ModelFormatError(f"config.json: {key} is {value!r}; it must be a positive number")
    return float(value)
