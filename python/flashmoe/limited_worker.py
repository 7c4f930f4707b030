"""A Python process that answers lines of JSON, with limits on time and memory.

What comes from a checkpoint or a client may never end, fill the memory or overflow the stack; there
it ends that process, and not this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from flashmoe.errors import FlashMoEError

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from flashmoe.{module} import work; work(int(sys.argv[2]))"
)
_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ", "LANG", "LC_ALL")
_START_SECONDS = 60.0
_LONGEST_LINE = 1 << 30


class LimitedWorker:
    """Asks the process; may be called from any thread.

    The process starts when it is first needed, again after it had to be ended, and ends with
    this one.

    Attributes:
        module: Of flashmoe; its function ``work`` runs in the process and calls :func:`serve`.
        error: What is raised if there can be no such process.
    """

    module: ClassVar[str]
    error: ClassVar[type[FlashMoEError]]

    def __init__(self, seconds: float, memory: int) -> None:
        """Prepare; nothing is started yet.

        Args:
            seconds: Longest time of one answer.
            memory: Bytes that the process may have (not enforced by macOS).
        """
        self.seconds = seconds
        self.memory = memory
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def possible() -> bool:
        """Whether there is a Python to start; a frozen application has none but itself."""
        return bool(sys.executable) and not getattr(sys, "frozen", False)

    def opening(self) -> Any:
        """What a new process is told first; plain values."""
        return None

    def ask(self, question: Any) -> Any | None:
        """What the process answers; ``None`` if it reached a limit, and then it has ended.

        Args:
            question: Plain values.
        """
        line = json.dumps(question).encode()
        with self._lock:
            if self._process is None:
                self._process = self._start()
            answer = self._ask(self._process, line, self.seconds)
            if answer is None:
                self._end()
            return answer

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        start = _START.format(module=self.module)
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", start, json.dumps(sys.path), str(self.memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
            start_new_session=True,  # Ctrl-C is for this process
        )
        if self._ask(process, json.dumps(self.opening()).encode(), _START_SECONDS) is None:
            _stop(process)
            raise self.error(f"{sys.executable} cannot run a process for {self.module}")
        return process

    def _ask(self, process: subprocess.Popen[bytes], line: bytes, seconds: float) -> Any | None:
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
            _stop(process)
            self._process = None
            raise
        finally:
            timer.cancel()
        return json.loads(answer) if answer.endswith(b"\n") else None

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


def serve(prepare: Callable[[Any], Callable[[Any], Any]], memory: int) -> None:
    """Answer what standard input asks, one line each, until it ends.

    Args:
        prepare: Given the opening, returns what answers questions; not limited.
        memory: Bytes that this process may have from then on.
    """
    answers = os.fdopen(os.dup(1), "wb")
    answer: Callable[[Any], Any] | None = None
    for line in sys.stdin.buffer:
        if answer is None:
            answer, told = prepare(json.loads(line)), {}
            _limit(memory)
        else:
            told = answer(json.loads(line))
        answers.write(json.dumps(told).encode() + b"\n")
        answers.flush()


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
