"""Every exception the library raises on purpose.

All derive from :class:`FlashMoEError`; where a builtin exception says the same
thing (``ValueError``, ``OSError``, ``MemoryError``) the class derives from it
too, so existing ``except`` clauses keep working.
"""

from __future__ import annotations


class FlashMoEError(Exception):
    """Base of everything flashmoe raises on purpose."""


class ModelFormatError(FlashMoEError, ValueError):
    """A model directory's contents are not what they must be."""


class UnsupportedModelError(ModelFormatError):
    """A well-formed model that this version does not know how to run exactly."""


class IntegrityError(FlashMoEError, OSError):
    """Bytes on disk do not match the checksum recorded for them."""


class ExpertReadError(FlashMoEError, OSError):
    """An expert could not be read whole; no expert is ever skipped."""


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


class ClosedError(FlashMoEError, RuntimeError):
    """The model or generator was closed."""
