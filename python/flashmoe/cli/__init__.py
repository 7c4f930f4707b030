"""The ``flashmoe`` command: one entry point, one file a verb."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit: 0 done, 1 failed, 2 called wrongly, 130 interrupted.

    Interrupted while a module is imported, ``python -m flashmoe`` may end by the signal itself,
    by Python's own doing; shells show 130 for that too.

    Args:
        arguments: Words after the program's name; those of this process if None.
    """
    try:
        code = run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe has gone, as with `| head`. What Python flushes at exit goes nowhere.
        import os

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: As for :func:`main`.

    Returns:
        The exit code.
    """
    import click

    from flashmoe.cli.app import app
    from flashmoe.errors import FlashMoEError

    try:
        code = app.main(
            args=None if arguments is None else list(arguments),
            prog_name="flashmoe",
            standalone_mode=False,
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("\ninterrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (FlashMoEError, OSError) as error:
        print(f"flashmoe: {' '.join(str(error).split())}{_hint(error)}", file=sys.stderr)
        return 1
    return int(code or 0)


def _hint(error: Exception) -> str:
    """What to do next, where the error itself does not know that it came from a command line."""
    from flashmoe import errors

    if isinstance(error, errors.BudgetError):
        return "; give more with --memory (flashmoe info MODEL lists what fits)"
    if isinstance(error, errors.IntegrityError):
        return "; flashmoe verify MODEL checks all of it, flashmoe convert makes it anew"
    if isinstance(error, errors.ContextLengthError):
        return "; shorten the prompt"
    return ""
