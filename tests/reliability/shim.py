"""The library that makes calls of the C library fail, and how a campaign runs under it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "fault_shim.c"
ALWAYS = 10**9
"""As often as it is called."""


class How(IntEnum):
    """What happens instead; the numbers are those of ``fault_shim.c``."""

    NOTHING = 0
    IO_ERROR = 1
    END_OF_FILE = 2
    NO_MEMORY = 3
    INTERRUPTED = 4
    SHORT = 5
    BIT_FLIP = 6
    NO_SPACE = 7
    KILLED = 8
    SLOW = 9
    QUOTA = 10
    READ_ONLY = 11


class Calls(IntEnum):
    """Which calls are counted together."""

    READS = 0
    CHANGES = 1
    ALLOCATIONS = 2
    PLAIN_READS = 3


class Shim:
    """The faults of this process, which runs under the library."""

    def __init__(self) -> None:
        self._c = ctypes.CDLL(None)
        self._c.fault_code.argtypes = [ctypes.c_size_t, ctypes.c_size_t]

    def fail(self, calls: Calls, how: How, at: int, times: int = 1) -> None:
        """Let calls ``at`` .. ``at + times - 1`` from now on go wrong."""
        self._c.fault_set_of(int(calls), at, times, int(how))

    def heal(self, calls: Calls) -> int:
        """Nothing fails any more; how many calls there were since the last change."""
        return int(self._c.fault_set_of(int(calls), 0, 0, 0))

    def fired(self, calls: Calls) -> int:
        """How many went wrong since this was asked."""
        return int(self._c.fault_fired(int(calls)))

    def allocations_of_the_core(self) -> None:
        """Count those of the core, not of the rest of the process."""
        from flashmoe import _core

        name = os.path.realpath(str(_core.__file__))
        lines = Path("/proc/self/maps").read_text().splitlines()
        ranges = [line.split()[0].split("-") for line in lines if line.endswith(name)]
        self._c.fault_code(min(int(r[0], 16) for r in ranges), max(int(r[1], 16) for r in ranges))


def held() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def run_under(script: str) -> int:
    """Run a campaign's own command again under the library; its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "shim.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
        return subprocess.run(
            [sys.executable, script, *sys.argv[1:], "--under-shim"],
            env={**os.environ, "LD_PRELOAD": str(library)},
        ).returncode
