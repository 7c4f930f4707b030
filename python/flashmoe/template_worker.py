"""Runs chat templates in a process of their own, with limits on time and memory.

A template is code of whoever made the checkpoint. In the process of a server one that never ends
would hold a thread for good, and one that builds a huge text would take the model's memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import Any

from flashmoe.errors import TemplateError
from flashmoe.template_rendering import TemplateRenderer

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from flashmoe.template_worker import work; work(int(sys.argv[2]))"
)
_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ", "LANG", "LC_ALL")
_START_SECONDS = 60.0
_LONGEST_LINE = 1 << 30


class TemplateWorker:
    """Takes the place of a :class:`TemplateRenderer`; may be called from any thread.

    The process starts when it is first needed, again after it had to be ended, and ends with
    this one.
    """

    def __init__(self, seconds: float = 1.5, memory: int = 512 << 20) -> None:
        """Prepare; nothing is started yet.

        Args:
            seconds: Longest time of one rendering.
            memory: Bytes that the process may have (not enforced by macOS).
        """
        self.seconds = seconds
        self.memory = memory
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, source: str, variables: dict[str, Any]) -> str:
        """Render.

        Args:
            source: Text of the template.
            variables: Plain values.

        Raises:
            TemplateError: As of :class:`TemplateRenderer`; or a limit is reached.
        """
        try:
            line = json.dumps([source, variables]).encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise TemplateError(f"the chat template cannot be given its input: {error}") from error
        with self._lock:
            if self._process is None:
                self._process = self._start()
            answer = self._ask(self._process, line, self.seconds)
            if answer is None:
                self._end()
                raise TemplateError(
                    f"the chat template took more than {self.seconds:g} s or "
                    f"{self.memory >> 20} MB; it does not fit this conversation or never ends"
                )
        if "error" in answer:
            raise TemplateError(answer["error"])
        return str(answer["text"])

    @staticmethod
    def possible() -> bool:
        """Whether there is a Python to start; a frozen application has none but itself."""
        return bool(sys.executable) and not getattr(sys, "frozen", False)

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, json.dumps(sys.path), str(self.memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
            start_new_session=True,  # Ctrl-C is for this process
        )
        if self._ask(process, b"", _START_SECONDS) is None:
            _stop(process)
            raise TemplateError(f"{sys.executable} cannot run a process for chat templates")
        return process

    def _ask(
        self, process: subprocess.Popen[bytes], line: bytes, seconds: float
    ) -> dict[str, Any] | None:
        """What the process answers; ``None`` if it does not, and then it has ended."""
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(line + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline(_LONGEST_LINE)
        except BrokenPipeError:
            return None
        except BaseException:  # Ctrl-C: the answer would be taken for the next one's
            self._end()
            raise
        finally:
            timer.cancel()
        if not answer.endswith(b"\n"):
            return None
        found: dict[str, Any] = json.loads(answer)
        return found

    def _end(self) -> None:
        if self._process is not None:
            _stop(self._process)
            self._process = None


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except BrokenPipeError:
            continue  # what was not written is lost with its reader


def work(memory: int) -> None:
    """Render what standard input asks for, one line each, until it ends.

    Args:
        memory: Bytes that this process may have.
    """
    render = TemplateRenderer()
    render("", {})  # everything is imported before there are limits
    _limit(memory)
    answers = os.fdopen(os.dup(1), "wb")
    for line in sys.stdin.buffer:
        answers.write(_answer(render, line))
        answers.flush()


def _answer(render: TemplateRenderer, line: bytes) -> bytes:
    try:
        if line == b"\n":  # asks whether there is anyone
            return b"{}\n"
        source, variables = json.loads(line)
        return json.dumps({"text": render(source, variables)}).encode() + b"\n"
    except TemplateError as error:
        if isinstance(error.__cause__, MemoryError):
            raise  # ends the process: what was built may still be held
        return json.dumps({"error": str(error)}).encode() + b"\n"


def _limit(memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has none; the time is limited all the same
        return
    for name, most in (("RLIMIT_AS", memory), ("RLIMIT_CORE", 0), ("RLIMIT_FSIZE", 0)):
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        if hard == resource.RLIM_INFINITY or most < hard:
            resource.setrlimit(which, (most, most))
