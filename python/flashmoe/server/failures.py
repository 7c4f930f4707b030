"""What goes wrong, as HTTP status and as the bodies that clients of both kinds expect."""

from __future__ import annotations

import logging
from typing import Any

from flashmoe import errors

_log = logging.getLogger(__name__)

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
}


class Failure(Exception):
    """A request that ends without an answer.

    Attributes:
        status: Of HTTP.
        message: For people.
        param: The field of the request that is at fault.
        code: For programs, such as ``"context_length_exceeded"``.
        retry_after: Seconds after which it may go well.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Beside the body."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def openai(self) -> dict[str, Any]:
        """The body as OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 503:
            kind = "unavailable_error"
        fields = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": fields}

    def anthropic(self) -> dict[str, Any]:
        """The body as Anthropic's clients read it."""
        kind = _ANTHROPIC_TYPES.get(self.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}


def failure_of(error: BaseException) -> Failure:
    """The failure that an error of the library is for a client.

    Args:
        error: Of :mod:`flashmoe.errors`; anything else is an internal error.
    """
    text = str(error)
    match error:
        case Failure():
            return error
        case errors.QueueFullError():
            return Failure(503, text, code="queue_full", retry_after=5)
        case errors.ContextLengthError():
            return Failure(400, text, param="messages", code="context_length_exceeded")
        case errors.CancelledError() | errors.ClosedError():
            return Failure(503, "the server is stopping", code="stopping", retry_after=10)
        case (
            errors.ArgumentError()
            | errors.PromptError()
            | errors.TemplateError()
            | errors.TokenizerError()
        ):
            return Failure(400, text)
        case errors.BudgetError() | errors.OutOfMemoryError():
            return Failure(503, text, code="out_of_memory", retry_after=30)
        case errors.FlashMoEError():  # whose text may name files
            _log.error("a request failed: %s: %s", type(error).__name__, text)
            message = f"{type(error).__name__}; the server's log has the details"
            return Failure(500, message, code=type(error).__name__)
    return Failure(500, "an internal error; the server's log has the details")
