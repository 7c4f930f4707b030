"""The build backend: scikit-build-core, and a C compiler from PyPI where the machine has none."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scikit_build_core import build as _scikit
from scikit_build_core.build import (
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = dict[str, Any] | None

ZIG = "ziglang>=0.15"

# zig names ARM features in its own way, and compiles for this very CPU unless told otherwise.
WRAPPER = """\
#!{python}
import os
import sys

named = {{"-march=armv8.2-a+dotprod": "-mcpu=generic+v8_2a+dotprod"}}
args = [named.get(a, a) for a in sys.argv[1:]]
if {compiles!r} and not any(a.startswith(("-mcpu=", "-march=")) for a in args):
    args.insert(0, "-mcpu=baseline")
os.execv(sys.executable, [sys.executable, "-m", "ziglang", {tool!r}, *args])
"""


def has_compiler() -> bool:
    """Whether CC and CXX are set, or a C and a C++ compiler are on PATH."""
    c = os.environ.get("CC") or any(map(shutil.which, ("cc", "gcc", "clang")))
    cxx = os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++")))
    return bool(c and cxx)


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """What a build needs: cmake, ninja and a compiler, those that are missing here."""
    return _with_zig(_scikit.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """The same for an editable install."""
    return _with_zig(_scikit.get_requires_for_build_editable(config_settings))


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """Build a wheel and return its file name."""
    with _compiler():
        return _scikit.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """Build an editable wheel and return its file name."""
    with _compiler():
        return _scikit.build_editable(wheel_directory, config_settings, metadata_directory)


def _with_zig(requires: list[str]) -> list[str]:
    return requires if has_compiler() else [*requires, ZIG]


def _need_headers() -> None:
    """Some distributions pack Python's C headers apart; say so before CMake does it at length."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        raise SystemExit(
            f"{header} is missing: this Python came without its C headers. Install them (Debian, "
            "Ubuntu: apt install python3-dev) or take a Python of python.org, uv, conda or docker."
        )


@contextmanager
def _compiler() -> Iterator[None]:
    """The machine's compiler, or zig's for the length of the block."""
    _need_headers()
    if has_compiler():
        yield
        return
    print("no C compiler found; building with the one of the ziglang package", file=sys.stderr)
    saved = {name: os.environ.get(name) for name in ("CC", "CXX", "CMAKE_ARGS")}
    with tempfile.TemporaryDirectory(prefix="flashmoe-zig-") as folder:
        paths = {tool: _wrapper(Path(folder), tool) for tool in ("cc", "c++", "ar", "ranlib")}
        os.environ["CC"], os.environ["CXX"] = str(paths["cc"]), str(paths["c++"])
        tools = f"-DCMAKE_AR={paths['ar']} -DCMAKE_RANLIB={paths['ranlib']} -DCMAKE_STRIP="
        os.environ["CMAKE_ARGS"] = f"{saved['CMAKE_ARGS'] or ''} {tools}".strip()
        try:
            yield
        finally:
            for name, value in saved.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _wrapper(folder: Path, tool: str) -> Path:
    path = folder / f"zig-{tool}"
    compiles = tool in ("cc", "c++")
    path.write_text(WRAPPER.format(python=sys.executable, tool=tool, compiles=compiles))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
