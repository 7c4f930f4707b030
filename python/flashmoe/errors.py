"""Every exception the library raises on purpose.

All derive from :class:`FlashMoEError`; where a builtin exception says the same
thing (``ValueError``, ``OSError``, ``MemoryError``) the class derives from it
too, so existing ``except`` clauses keep working.
"""

from __future__ import annotations

from typing import Any


class FlashMoEError(Exception):
    """Base of everything flashmoe raises on purpose.

    Attributes:
        sequence: Which of several sequences failed, for ``Generator.generate_batch`` the index of
            the prompt; ``None`` where there was one, or it was none of them in particular.
    """

    sequence: int | None = None


class ModelFormatError(FlashMoEError, ValueError):
    """A model directory's contents are not what they must be."""


class UnsupportedModelError(ModelFormatError):
    """A well-formed model that this version does not know how to run exactly."""


class IntegrityError(FlashMoEError, OSError):
    """Bytes on disk do not match the checksum recorded for them."""


class ReadError(FlashMoEError, OSError):
    """A file of the model could not be opened or read whole."""


class ExpertReadError(ReadError):
    """An expert could not be read whole; no expert is ever skipped."""


class ArgumentError(FlashMoEError, ValueError):
    """An argument is out of range."""


class PromptError(FlashMoEError, ValueError):
    """The prompt is empty or holds ids that the model does not have."""


class OutOfMemoryError(FlashMoEError, MemoryError):
    """The system has no memory left."""


class CancelledError(FlashMoEError):
    """The generation was cancelled from another thread."""


class ContextLengthError(FlashMoEError, ValueError):
    """The prompt, or prompt and answer together, do not fit the context.

    Attributes:
        num_tokens: Tokens asked for.
        context_length: Tokens that fit.
    """

    def __init__(self, message: str, num_tokens: int = 0, context_length: int = 0) -> None:
        super().__init__(message)
        self.num_tokens = num_tokens
        self.context_length = context_length


class BudgetError(FlashMoEError, MemoryError):
    """The model cannot run inside the memory it was given.

    Attributes:
        needed: Bytes the smallest working setup needs.
        budget: Bytes that were allowed.
    """

    def __init__(self, message: str, needed: int = 0, budget: int = 0) -> None:
        super().__init__(message)
        self.needed = needed
        self.budget = budget


class DeviceError(FlashMoEError, RuntimeError):
    """The compute device reported a failure, or is not available."""


class NumericalError(FlashMoEError, ArithmeticError):
    """NaN or infinity where a finite number must be."""


class TokenizerError(FlashMoEError, ValueError):
    """The tokenizer is missing, broken, or does not match the model."""


class TemplateError(FlashMoEError, ValueError):
    """The chat template is missing or refuses the conversation."""


class ConversionError(FlashMoEError):
    """A conversion cannot go on; what is written so far stays resumable."""


class LockedError(ConversionError):
    """Another process is writing to the same directory."""


class QueueFullError(FlashMoEError):
    """As many requests as may wait are waiting already; try again later."""


class ToolLoopError(FlashMoEError):
    """A model calls functions and does not come to an answer.

    Attributes:
        messages: The conversation so far.
    """

    def __init__(self, message: str, messages: list[dict[str, Any]] | None = None) -> None:
        super().__init__(message)
        self.messages = messages or []


class ClosedError(FlashMoEError, RuntimeError):
    """The model or generator was closed."""


class ForkedProcessError(FlashMoEError, RuntimeError):
    """A model was used in a process that was forked after the model was opened.

    A forked process has a copy of the model's memory but none of its threads. Open the model
    there, or start processes by ``"spawn"`` or ``"forkserver"``.
    """


_BY_STATUS: dict[str, type[FlashMoEError]] = {
    "ARGUMENT": ArgumentError,
    "MEMORY": OutOfMemoryError,
    "IO": ReadError,
    "EXPERT_IO": ExpertReadError,
    "FORMAT": ModelFormatError,
    "UNSUPPORTED": UnsupportedModelError,
    "DEVICE": DeviceError,
    "FULL": ContextLengthError,
    "CANCELLED": CancelledError,
    "BUDGET": BudgetError,
    "INTEGRITY": IntegrityError,
    "NUMERIC": NumericalError,
    "CLOSED": ClosedError,
    "FORKED": ForkedProcessError,
}


def from_status(status: str, message: str, sequence: int | None = None) -> FlashMoEError:
    """The exception for a failure of the core; called by the core's Python module.

    Args:
        status: Name of the core's status, such as ``"IO"``.
        message: The core's one-sentence description.
        sequence: Which of several sequences failed.
    """
    error = _BY_STATUS.get(status, FlashMoEError)(message)
    error.sequence = sequence
    return error
