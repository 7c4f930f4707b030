"""Runs huge Mixture-of-Experts language models on small machines.

The experts stay on the SSD and are read when the router picks them. Start with
:class:`Model` and :class:`Generator`; each name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashmoe.answer import Chunk, Generation, Stats
    from flashmoe.async_generator import AsyncGenerator
    from flashmoe.conversion import convert
    from flashmoe.demo import demo_model_path
    from flashmoe.errors import (
        ArgumentError,
        BudgetError,
        CancelledError,
        ClosedError,
        ContextLengthError,
        ConversionError,
        DeviceError,
        ExpertReadError,
        FlashMoEError,
        ForkedProcessError,
        IntegrityError,
        LockedError,
        ModelFormatError,
        NumericalError,
        OutOfMemoryError,
        PromptError,
        QueueFullError,
        ReadError,
        TemplateError,
        TokenizerError,
        ToolLoopError,
        UnsupportedModelError,
    )
    from flashmoe.evaluation import evaluate
    from flashmoe.generator import Generator
    from flashmoe.model import Model
    from flashmoe.prefix_cache import PrefixCache
    from flashmoe.reply import ToolCall
    from flashmoe.sampler import Sampler
    from flashmoe.tool_loop import run_tools
    from flashmoe.verification import verify

    __version__: str

__all__ = [
    "ArgumentError",
    "AsyncGenerator",
    "BudgetError",
    "CancelledError",
    "Chunk",
    "ClosedError",
    "ContextLengthError",
    "ConversionError",
    "DeviceError",
    "ExpertReadError",
    "FlashMoEError",
    "ForkedProcessError",
    "Generation",
    "Generator",
    "IntegrityError",
    "LockedError",
    "Model",
    "ModelFormatError",
    "NumericalError",
    "OutOfMemoryError",
    "PrefixCache",
    "PromptError",
    "QueueFullError",
    "ReadError",
    "Sampler",
    "Stats",
    "TemplateError",
    "TokenizerError",
    "ToolCall",
    "ToolLoopError",
    "UnsupportedModelError",
    "__version__",
    "convert",
    "demo_model_path",
    "evaluate",
    "run_tools",
    "selftest",
    "verify",
]

_PLACES = {
    "AsyncGenerator": "async_generator",
    "Chunk": "answer",
    "Generation": "answer",
    "Generator": "generator",
    "Model": "model",
    "PrefixCache": "prefix_cache",
    "Sampler": "sampler",
    "Stats": "answer",
    "ToolCall": "reply",
    "convert": "conversion",
    "run_tools": "tool_loop",
    "selftest": "selftesting",
    "demo_model_path": "demo",
    "evaluate": "evaluation",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("flashmoe")
    if name not in __all__:
        raise AttributeError(f"module 'flashmoe' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"flashmoe.{_PLACES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
