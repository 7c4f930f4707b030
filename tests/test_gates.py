"""What must never be in the library: code that runs text, calls without bounds, a bare module."""

from __future__ import annotations

import ast
import os
import re
import struct
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import flashmoe
from flashmoe import _core

PACKAGE = Path(flashmoe.__file__).parent
ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    Path(folder) / name
    for folder, _, names in os.walk(PACKAGE, followlinks=True)
    for name in names
    if name.endswith(".py")
)

BANNED_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp",
    "os.spawnv", "yaml.load", "tempfile.mktemp", "importlib.import_module", "ctypes.CDLL",
    "jinja2.Environment", "jinja2.Template", "ssl._create_unverified_context", "shelve.open",
}  # fmt: skip
BANNED_IMPORTS = {
    "pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "joblib",
    "yaml",
    "telnetlib",
    "ctypes",
}
BANNED_ARGUMENTS = {"shell": True, "verify": False, "trust_remote_code": True, "allow_pickle": True}

ALLOWED = {
    ("cli/app.py", "importlib.import_module"),  # its own verbs, by a table
}


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def findings(name: str, source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = _dotted(node.func)
            if called in BANNED_CALLS and (name, called) not in ALLOWED:
                yield f"{name}:{node.lineno}: {called}()"
            for word in node.keywords:
                value = word.value.value if isinstance(word.value, ast.Constant) else None
                if word.arg in BANNED_ARGUMENTS and value is BANNED_ARGUMENTS[word.arg]:
                    yield f"{name}:{node.lineno}: {word.arg}={value}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in BANNED_IMPORTS:
                    yield f"{name}:{node.lineno}: import {alias.name}"
        elif (
            isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in BANNED_IMPORTS
        ):
            yield f"{name}:{node.lineno}: from {node.module}"


def test_no_source_runs_text() -> None:
    assert len(SOURCES) > 80
    wrong = [
        found
        for path in SOURCES
        for found in findings(path.relative_to(PACKAGE).as_posix(), path.read_text())
    ]
    assert not wrong, wrong


@pytest.mark.parametrize(
    "source",
    ["eval(x)", "import pickle", "from pickle import load", "run(x, shell=True)", "os.system(x)",
     "yaml.load(x)", "np.load(x, allow_pickle=True)", "jinja2.Environment()",
     "get(x, verify=False)"],
)  # fmt: skip
def test_the_gate_sees(source: str) -> None:
    assert list(findings("x.py", source))


def test_oldest_dependencies_have_no_known_hole() -> None:
    """The lower bounds keep out versions with published ways to run code, read files or get in."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("the sources are not beside the tests")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        *project["dependencies"],
        *(x for e in project["optional-dependencies"].values() for x in e),
    ]
    bounds = {
        m[1].lower(): tuple(map(int, m[2].split(".")))
        for m in (re.match(r"([\w-]+)>=([\d.]+)", line) for line in lines)
        if m
    }
    for name, oldest in {"jinja2": (3, 1, 6), "starlette": (1, 3), "llguidance": (1, 6)}.items():
        assert bounds[name] >= oldest, name


# the extension module ---------------------------------------------------------------------


class Elf:
    """Of a 64-bit little-endian ELF file, what says how it is guarded."""

    def __init__(self, data: bytes) -> None:
        assert data[:6] == b"\x7fELF\x02\x01"
        self.data = data
        at, size, count = (
            struct.unpack_from("<Q14xHH", data, 32)[0],
            *struct.unpack_from("<HH", data, 54),
        )
        self.segments = [struct.unpack_from("<IIQQQQQQ", data, at + i * size) for i in range(count)]
        _, _, offset, _, _, nbytes, _, _ = next(s for s in self.segments if s[0] == 2)
        self.dynamic = list(struct.iter_unpack("<qQ", data[offset : offset + nbytes]))

    @property
    def names(self) -> set[bytes]:
        """Of all functions that come from or go to other libraries."""
        at, size = self.flags(5), self.flags(10)
        _, _, offset, start, *_ = next(
            s for s in self.segments if s[0] == 1 and s[3] <= at < s[3] + s[5]
        )
        return set(self.data[at - start + offset :][:size].split(b"\0"))

    def flags(self, tag: int) -> int:
        return next((value for key, value in self.dynamic if key == tag), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF; a Mac's linker guards by itself")
def test_the_module_is_hardened() -> None:
    data = Path(_core.__file__).read_bytes()
    elf = Elf(data)
    assert any(s[0] == 0x6474E552 for s in elf.segments), "no PT_GNU_RELRO: -Wl,-z,relro"
    assert elf.flags(30) & 8 or elf.flags(0x6FFFFFFB) & 1, "addresses are bound late: -Wl,-z,now"
    stack = [s for s in elf.segments if s[0] == 0x6474E551]
    assert stack and not stack[0][1] & 1, "the stack may be executed: -Wl,-z,noexecstack"
    assert not any(s[0] == 1 and s[1] & 3 == 3 for s in elf.segments), "writable code"
    assert b"__stack_chk_fail" in elf.names, "no -fstack-protector-strong"
    checked = [n for n in elf.names if n.endswith(b"_chk")]
    assert checked, "no _FORTIFY_SOURCE"
    banned = {b"system", b"popen", b"strcpy", b"strcat", b"sprintf", b"gets", b"execv", b"dlopen"}
    assert not elf.names & banned
