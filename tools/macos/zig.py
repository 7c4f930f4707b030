"""zig.py {cc|c++|ar|ranlib} ARGUMENTS: compile for macOS on Apple silicon as CMake asks for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

STUBS = Path(__file__).parent / "stubs"
TARGET = ["-target", "aarch64-macos.14.0"]
NAMED = {  # zig's words for ARM features
    "-march=armv8-a": ["-mcpu=generic"],
    "-march=armv8.2-a+dotprod": ["-mcpu=generic+v8_2a+dotprod"],
    "-march=armv8.2-a+dotprod+i8mm": ["-mcpu=generic+v8_2a+dotprod+i8mm"],
    "-bundle": ["-shared"],  # Python loads either; zig cannot link the first
}
FOLLOWED = {"-arch", "-isysroot"}  # the target says it
COMPILES = {"-c", "-E", "-S", "-M", "-v", "--version"}

# zig would link its own libc++ and builtins into the module; a Mac has both. Its headers then must
# keep to what macOS 14 has in its libc++.
SYSTEM = ["-nodefaultlibs", f"-L{STUBS}", f"-F{STUBS}", "-lcxx", "-lSystem"]
AVAILABLE = "_LIBCPP_HAS_VENDOR_AVAILABILITY_ANNOTATIONS"


def translated(arguments: list[str]) -> list[str]:
    """The same for zig: nanobind's list of Python's symbols becomes a rule for all of them."""
    out: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word in FOLLOWED:
            next(rest)
        elif word.startswith("-Wl,@"):
            out += ["-undefined", "dynamic_lookup"]
        elif not word.startswith("-mmacosx-version-min="):
            out += NAMED.get(word, [word])
    return out


def command(tool: str, arguments: list[str]) -> list[str]:
    """zig's command line for one of CMake's."""
    if tool not in ("cc", "c++"):
        return [tool, *arguments]
    words = translated(arguments)
    if not COMPILES.isdisjoint(words):
        older = [f"-U{AVAILABLE}", f"-D{AVAILABLE}=1"] if tool == "c++" else []
        return [tool, *TARGET, *older, *words]
    if "-shared" in words:  # no path of this machine in it
        words += ["-install_name", f"@rpath/{Path(words[words.index('-o') + 1]).name}"]
    return ["cc", *TARGET, *words, *SYSTEM]


if __name__ == "__main__":
    os.execv(sys.executable, [sys.executable, "-m", "ziglang", *command(sys.argv[1], sys.argv[2:])])
