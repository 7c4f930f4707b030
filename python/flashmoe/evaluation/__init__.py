"""What a model says, measured: perplexity, distance from a reference, tool calls; and sweeps."""

from __future__ import annotations

from flashmoe.evaluation.calls import CallScore, Prompt, read_prompts
from flashmoe.evaluation.measure import Evaluation, evaluate
from flashmoe.evaluation.scores import Divergence, TextScore

__all__ = [
    "CallScore",
    "Divergence",
    "Evaluation",
    "Prompt",
    "TextScore",
    "evaluate",
    "read_prompts",
]
