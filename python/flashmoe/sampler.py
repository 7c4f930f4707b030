"""Drawing the next token from logits."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from flashmoe.errors import ArgumentError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]

TokenChooser = Callable[["Logits"], int]
"""Anything that maps logits, float32 ``[vocab_size]``, to a token id."""

_NEUTRAL = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
_RANGES = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-6, 1e6),
    "presence_penalty": (-100.0, 100.0),
    "frequency_penalty": (-100.0, 100.0),
}


@dataclass(frozen=True)
class Sampler:
    """Draws tokens from logits; the same seed draws the same tokens.

    Applied in this order: penalties and bias, temperature, top-k, top-p, min-p, draw
    (the order of Hugging Face transformers). A value left ``None`` comes from the
    checkpoint's ``generation_config.json``; where that is silent, it changes nothing
    (temperature 1, the rest off).

    Attributes:
        temperature: 0 takes the most likely token and ignores top-k, top-p and min-p.
        top_k: Keep at most this many tokens; 0 keeps all.
        top_p: Keep the likeliest tokens that together reach this probability.
        min_p: Drop tokens below this share of the likeliest one's probability.
        repetition_penalty: Divides positive and multiplies negative logits of tokens
            seen in prompt or answer (Keskar et al., 2019); 1 is off.
        presence_penalty: Subtracted once from tokens that the answer already has.
        frequency_penalty: Subtracted for each time the answer has a token.
        logit_bias: Added to the logits of single token ids.
        seed: Start of the random sequence; ``None`` takes a new one for each answer.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not low <= value <= high
            ):
                raise ArgumentError(f"{name} must be a number in [{low}, {high}], not {value!r}")
        if self.top_p == 0:
            raise ArgumentError("top_p must be above 0; use temperature=0 for the likeliest token")
        if self.top_k is not None and self.top_k != int(self.top_k):
            raise ArgumentError(f"top_k must be a whole number, not {self.top_k!r}")

    def with_defaults(self, defaults: Mapping[str, Any]) -> Sampler:
        """This sampler with every ``None`` filled in.

        Args:
            defaults: Values of the checkpoint, by attribute name.
        """
        known = {name: value for name, value in defaults.items() if name in _NEUTRAL}
        filled = {
            f.name: known.get(f.name, _NEUTRAL[f.name])
            for f in fields(self)
            if f.name in _NEUTRAL and getattr(self, f.name) is None
        }
        if "top_k" in filled:
            filled["top_k"] = max(0, int(filled["top_k"]))  # some checkpoints write -1 for "off"
        return replace(self, **filled)

    def start(self, prompt: Sequence[int] = ()) -> Draw:
        """Begin one answer.

        Args:
            prompt: Token ids of the prompt, for the repetition penalty.
        """
        return Draw(self.with_defaults({}), prompt)

    def __call__(self, logits: Logits) -> int:
        """Draw one token without any history.

        Args:
            logits: float32 ``[vocab_size]``.
        """
        return self.start()(logits)


class Draw:
    """The tokens of one answer: a sampler, its random state and what was drawn so far."""

    def __init__(self, sampler: Sampler, prompt: Sequence[int]) -> None:
        """Begin an answer.

        Args:
            sampler: With every value filled in.
            prompt: Token ids of the prompt.
        """
        self.seed = secrets.randbits(64) if sampler.seed is None else sampler.seed & (2**64 - 1)
        self._values: dict[str, float] = {name: getattr(sampler, name) for name in _NEUTRAL}
        self._bias = dict(sampler.logit_bias)
        self._rng = self.seed
        self._repetition = self._values["repetition_penalty"]
        self._seen = set(prompt) if self._repetition != 1.0 else set()
        self._counts: dict[int, int] = {}

    def __call__(self, logits: Logits) -> int:
        """Draw the next token.

        Args:
            logits: float32 ``[vocab_size]``; not changed.

        Raises:
            NumericalError: A logit is NaN, or every token is forbidden.
        """
        from flashmoe import _core

        v = self._values
        token, self._rng = _core.sample(
            self._adjusted(logits),
            temperature=v["temperature"],
            top_p=v["top_p"],
            min_p=v["min_p"],
            top_k=int(v["top_k"]),
            rng=self._rng,
        )
        if self._repetition != 1.0:
            self._seen.add(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _adjusted(self, logits: Logits) -> Logits:
        """The logits after penalties and bias, a copy if there are any."""
        import numpy as np

        presence, frequency = self._values["presence_penalty"], self._values["frequency_penalty"]
        penalised = bool(self._counts) and (presence or frequency)
        if not (self._seen or penalised or self._bias):
            return logits
        out = logits.copy()
        if self._seen:
            ids = np.fromiter(self._seen, np.int64)
            seen = out[ids]
            out[ids] = np.where(seen > 0, seen / self._repetition, seen * self._repetition)
        if penalised:
            ids = np.fromiter(self._counts, np.int64)
            counts = np.fromiter(self._counts.values(), np.float32)
            out[ids] -= np.float32(presence) + np.float32(frequency) * counts
        for token, bias in self._bias.items():
            if not 0 <= token < out.size:
                raise ArgumentError(
                    f"logit_bias names token {token}; the model has 0 .. {out.size - 1}"
                )
            out[token] += bias
        return out
