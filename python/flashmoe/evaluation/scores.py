"""Figures from logits, in float64 over the vocabulary that the tokenizer has."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashmoe.errors import NumericalError

_ROWS = 16
"""Rows widened to float64 at a time: what is held beside the logits stays small."""


@dataclass(frozen=True)
class TextScore:
    """How well a model expects a text.

    Attributes:
        tokens: Tokens scored.
        nll: Mean negative log-likelihood of a token, natural logarithm.
        nll_stderr: Standard error of that mean, taking tokens as independent.
        perplexity: ``exp(nll)``.
        perplexity_stderr: Its standard error, to first order.
    """

    tokens: int
    nll: float
    nll_stderr: float
    perplexity: float
    perplexity_stderr: float


@dataclass(frozen=True)
class Divergence:
    """How far a model's next-token distributions are from a reference's.

    Attributes:
        tokens: Positions compared.
        kl_mean: Mean of KL(reference || model), natural logarithm.
        kl_stderr: Standard error of that mean.
        kl_p99: Its 99th percentile.
        kl_max: Its maximum.
        agreement: Share of positions at which both think the same token likeliest.
        reference_perplexity: Of the reference on the same tokens.
    """

    tokens: int
    kl_mean: float
    kl_stderr: float
    kl_p99: float
    kl_max: float
    agreement: float
    reference_perplexity: float


def log_softmax(logits: NDArray[np.floating[Any]], vocab: int | None = None) -> NDArray[np.float64]:
    """Logarithms of probabilities in float64, over the first ``vocab`` columns.

    Args:
        logits: ``[n, columns]``.
        vocab: Columns that are tokens; those behind pad the matrix and count for nothing.

    Raises:
        NumericalError: A logit is NaN or infinite.
    """
    z = logits[:, :vocab].astype(np.float64)
    if not np.isfinite(z).all():
        raise NumericalError("a logit is not finite; run flashmoe verify on the model")
    z -= z.max(axis=1, keepdims=True)
    out: NDArray[np.float64] = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return out


@dataclass(slots=True)
class Tally:
    """Collects rows of logits; keeps a few numbers of each, never the row.

    Attributes:
        vocab: Columns that are tokens.
        nll: Of each target.
        reference_nll: Of each target under the reference.
        kl: Of each row from the reference's.
        agreed: Rows in which both think the same token likeliest.
    """

    vocab: int
    nll: list[NDArray[np.float64]] = field(default_factory=list)
    reference_nll: list[NDArray[np.float64]] = field(default_factory=list)
    kl: list[NDArray[np.float64]] = field(default_factory=list)
    agreed: int = 0

    def add(
        self,
        logits: NDArray[np.float32],
        targets: NDArray[np.int32],
        reference: NDArray[np.float32] | None = None,
    ) -> None:
        """Take some rows in.

        Args:
            logits: ``[n, columns]``.
            targets: The token that follows each, ``[n]``.
            reference: The reference's logits in the same places.

        Raises:
            NumericalError: A logit is NaN or infinite.
        """
        for at in range(0, len(logits), _ROWS):
            rows = slice(at, at + _ROWS)
            wanted = targets[rows, None]
            ours = log_softmax(logits[rows], self.vocab)
            self.nll.append(-np.take_along_axis(ours, wanted, axis=1)[:, 0])
            if reference is None:
                continue
            theirs = log_softmax(reference[rows], self.vocab)
            self.reference_nll.append(-np.take_along_axis(theirs, wanted, axis=1)[:, 0])
            kl = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
            self.kl.append(np.maximum(kl, 0))  # a sum of rounded terms may end just below 0
            self.agreed += int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())

    def text(self) -> TextScore:
        """What the rows come to."""
        nll = np.concatenate(self.nll)
        mean, error = float(nll.mean()), _stderr(nll)
        perplexity = math.exp(mean) if mean < 700 else math.inf
        return TextScore(nll.size, mean, error, perplexity, perplexity * error)

    def divergence(self) -> Divergence | None:
        """What the comparison comes to; None where there was none."""
        if not self.kl:
            return None
        kl = np.concatenate(self.kl)
        mean = float(np.concatenate(self.reference_nll).mean())
        return Divergence(
            tokens=kl.size,
            kl_mean=float(kl.mean()),
            kl_stderr=_stderr(kl),
            kl_p99=float(np.quantile(kl, 0.99)),
            kl_max=float(kl.max()),
            agreement=self.agreed / kl.size,
            reference_perplexity=math.exp(mean) if mean < 700 else math.inf,
        )


def _stderr(values: NDArray[np.float64]) -> float:
    if values.size < 2:
        return 0.0
    return float(values.std(ddof=1) / math.sqrt(values.size))
