"""The wheel for Apple silicon, built without a Mac, and what its checker refuses."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parent.parent / "tools" / "macos"
pytestmark = pytest.mark.skipif(
    not (sys.platform == "linux" and TOOLS.is_dir() and shutil.which("bash")),
    reason="needs Linux with bash, and the sources beside the tests",
)

NO_TOOLS = 3  # build_wheel.sh ends with it where pip has no ziglang


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as build_wheel.sh made and checked it."""
    out = tmp_path_factory.mktemp("macos")
    done = subprocess.run(
        ["bash", TOOLS / "build_wheel.sh", out],
        env={**os.environ, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode == NO_TOOLS:
        pytest.skip(done.stdout[-300:])
    assert done.returncode == 0, done.stdout[-6000:]
    assert "nothing wrong that can be seen here" in done.stdout
    return next(out.glob("*.whl"))


@pytest.fixture(scope="session")
def checker() -> ModuleType:
    sys.path.insert(0, str(TOOLS))
    try:
        return importlib.import_module("check_wheel")
    finally:
        sys.path.remove(str(TOOLS))


@pytest.fixture(scope="session")
def module(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(next(n for n in archive.namelist() if n.endswith(".so")))


def look(checker: ModuleType, module: bytes, right: bytes) -> str:
    """What the checker says of a module; of libSystem it knows what the right one takes from it."""
    brought = dict(checker.macho.stub_symbols(stub) for stub in TOOLS.glob("stubs/**/*.tbd"))
    for symbol, home in checker.macho.read(right).bound:
        if home and home not in brought:
            assert home == "/usr/lib/libSystem.B.dylib"
            brought.setdefault("", set()).add(symbol)
    brought["/usr/lib/libSystem.B.dylib"] = brought.pop("")
    library = checker.macho.read(module)
    return "\n".join(
        checker.check_library(library, brought)
        + checker.check_signature(module, library)
        + checker.check_shaders(module)
    )


XCRUN = """#!/bin/sh
case "$*" in
*--version) exit 0 ;;
"-sdk macosx metal -std=metal3.0 "*" -o "*) for to; do :; done; echo made >"$to" ;;
*) exit 1 ;;
esac
"""


def test_what_apples_compiler_makes_goes_into_the_wheel(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    xcrun = tmp_path / "bin/xcrun"
    xcrun.write_text(XCRUN)
    xcrun.chmod(0o755)
    path = f"{xcrun.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", TOOLS / "build_wheel.sh", tmp_path / "out"],
        env={**os.environ, "PYTHON": sys.executable, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode == NO_TOOLS:
        pytest.skip(done.stdout[-300:])
    assert done.returncode == 0, done.stdout[-6000:]
    with zipfile.ZipFile(next((tmp_path / "out").glob("*.whl"))) as archive:
        assert archive.read("flashmoe/flashmoe.metallib") == b"made\n"


def test_the_right_module_passes(checker: ModuleType, module: bytes) -> None:
    library = checker.macho.read(module)
    assert look(checker, module, module) == ""
    assert any(symbol == "_MTLCreateSystemDefaultDevice" for symbol, _ in library.bound)
    assert any(symbol == "_PyModuleDef_Init" and not home for symbol, home in library.bound)


MISTAKES = {
    "least": (
        b"\x32\0\0\0\x20\0\0\0\1\0\0\0\0\0\x0e\0",
        b"\x32\0\0\0\x20\0\0\0\1\0\0\0\0\0\x0f\0",
        "from (15, 0), not macOS 14.0",
    ),
    "name": (b"@rpath/_core", b"/build/_core", "its install name is /build/_core"),
    "library": (b"libobjc.A.dylib", b"libobjc.B.dylib", "no stub stands for /usr/lib/libobjc.B"),
    "class": (b"_$_MTLCompileOptions\0", b"_$_MTLCompileOption2\0", "MTLCompileOption2 is not in"),
    "message": (b"_objc_msgSend\0", b"_objc_msgSent\0", "_objc_msgSent is not in /usr/lib/libobjc"),
    "function": (b"_pread\0", b"_preaf\0", "_preaf is not in /usr/lib/libSystem.B.dylib"),
    "Python": (b"_PyList_New\0", b"_PyList_Neu\0", "_PyList_Neu is in no library and not in Py"),
    "export": (b"PyInit__core\0", b"PyInit__cora\0", "_PyInit__cora, not _PyInit__core alone"),
    "page": (b"no Metal device", b"no metal device", "is not what was signed"),
    "shader": (b"\nkernel void ", b"\nkernel  oid ", "is not inside"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_module_is_refused(checker: ModuleType, module: bytes, mistake: str) -> None:
    right, wrong, said = MISTAKES[mistake]
    assert right in module and len(right) == len(wrong)
    assert said in look(checker, module.replace(right, wrong), module)


def test_a_module_without_signature_is_refused(checker: ModuleType, module: bytes) -> None:
    code_signature = (b"\x1d\0\0\0\x10\0\0\0", b"\x1e\0\0\0\x10\0\0\0")
    assert module.count(code_signature[0]) == 1
    said = look(checker, module.replace(*code_signature), module)
    assert said == "it has no signature of all its pages"


def repacked(wheel: Path, out: Path, changed: dict[str, str], text: bytes | None = None) -> Path:
    """A wheel with other names inside, or with other bytes in its first Python file."""
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if text is not None and name.endswith(".py"):
                data, text = text, None
            new.writestr(changed.get(name, name), data)
    return out


def test_a_wrong_wheel_is_refused(checker: ModuleType, wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        module = next(n for n in archive.namelist() if n.endswith(".so"))
    linux = tmp_path / wheel.name.replace("macosx_14_0_arm64", "linux_x86_64")
    assert "is no name of a wheel" in checker.check(repacked(wheel, linux, {}))[0]
    other = {module: "flashmoe/_core.cpython-311-x86_64-linux-gnu.so"}
    suffix = repacked(wheel, tmp_path / wheel.name, other)
    assert "its modules are" in checker.check(suffix)[0]
    with zipfile.ZipFile(repacked(wheel, tmp_path / wheel.name, {}, b"changed")) as archive:
        assert "RECORD has not the hash of" in checker.check_record(archive)[0]
