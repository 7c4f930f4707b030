"""check_wheel.py WHEEL: whether a macosx_14_0_arm64 wheel can be one, judged without a Mac.

Names and tags, RECORD, the library's target and install names, who brings every undefined symbol,
what is exported, the pages' signature, and the shaders inside. Wants the ziglang package, for its
list of what macOS has in libSystem, and the sources around it, for the shaders. Whether it loads,
only a Mac can say.
"""

from __future__ import annotations

import base64
import csv
import ctypes
import hashlib
import re
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import macho

HERE = Path(__file__).parent
MACOS = 1  # the platform, not iOS and the others
LINKER = {"___dso_handle", "__mh_dylib_header"}  # zig's linker adds these


def stubs() -> dict[str, set[str]]:
    """Symbols of every library that the module may use."""
    zig = find_spec("ziglang")
    if zig is None or zig.origin is None:
        raise SystemExit("check_wheel.py wants the ziglang package")
    files = [*HERE.glob("stubs/**/*.tbd"), *Path(zig.origin).parent.glob("lib/libc/darwin/*.tbd")]
    return dict(macho.stub_symbols(file) for file in files)


def check_names(wheel: Path, archive: zipfile.ZipFile) -> list[str]:
    """The file name, its tags, and the module's suffix."""
    name = re.fullmatch(
        r"flashmoe-[\d.]+-(cp3\d+)-(cp3\d+|abi3)-macosx_14_0_arm64\.whl", wheel.name
    )
    if not name:
        return [f"{wheel.name} is no name of a wheel for macosx_14_0_arm64"]
    suffix = ".abi3.so" if name[2] == "abi3" else f".cpython-{name[2][2:]}-darwin.so"
    modules = [n for n in archive.namelist() if n.endswith((".so", ".dylib"))]
    wrong = []
    if modules != [f"flashmoe/_core{suffix}"]:
        wrong.append(f"its modules are {modules}, not flashmoe/_core{suffix}")
    about = next(n for n in archive.namelist() if n.endswith(".dist-info/WHEEL"))
    tag = f"Tag: {name[1]}-{name[2]}-macosx_14_0_arm64"
    if tag not in archive.read(about).decode().split("\n"):
        wrong.append(f"{about} lacks '{tag}'")
    return wrong


def check_record(archive: zipfile.ZipFile) -> list[str]:
    """Every file has its hash in RECORD."""
    record = next(n for n in archive.namelist() if n.endswith(".dist-info/RECORD"))
    rows = {row[0]: row[1] for row in csv.reader(archive.read(record).decode().splitlines())}
    wrong = []
    for name in archive.namelist():
        digest = base64.urlsafe_b64encode(hashlib.sha256(archive.read(name)).digest())
        if name != record and rows.get(name) != f"sha256={digest.rstrip(b'=').decode()}":
            wrong.append(f"RECORD has not the hash of {name}")
    return wrong


def check_library(library: macho.MachO, brought: dict[str, set[str]]) -> list[str]:
    """Where it runs, what it loads, who brings its symbols, what it shows."""
    wrong = []
    if (library.platform, library.least) != (MACOS, (14, 0)):
        wrong.append(f"it is for platform {library.platform} from {library.least}, not macOS 14.0")
    if not re.fullmatch(r"@rpath/_core\.[\w-]+(\.so|\.dylib)?", library.name):
        wrong.append(f"its install name is {library.name}")
    wrong += [f"no stub stands for {name}" for name in library.libraries if name not in brought]
    for symbol, home in sorted(library.bound):
        if home and symbol not in brought.get(home, set()):
            wrong.append(f"{symbol} is not in {home}")
        elif not home and not hasattr(ctypes.pythonapi, symbol.removeprefix("_")):
            wrong.append(f"{symbol} is in no library and not in Python")
    if strange := {symbol for symbol in library.weak if not symbol.startswith("__Z")}:
        wrong.append(f"weak symbols that are not of C++: {' '.join(sorted(strange))}")
    shown = library.exported - LINKER
    if shown != {"_PyInit__core"}:
        wrong.append(f"it exports {' '.join(sorted(shown))}, not _PyInit__core alone")
    return wrong


def check_signature(data: bytes, library: macho.MachO) -> list[str]:
    """An arm64 Mac ends what has pages other than those that were signed."""
    bad = macho.bad_pages(data, library)
    if bad is None:
        return ["it has no signature of all its pages"]
    return [f"page {n} is not what was signed" for n in bad]


def check_shaders(data: bytes) -> list[str]:
    """The text of every shader is inside, for the first start compiles it."""
    wrong = []
    for file in sorted((HERE.parents[1] / "shaders").glob("*.metal")):
        text = re.sub(r'#include "[^\n]*\n', "\n", file.read_text())
        if text.encode() not in data:
            wrong.append(f"shaders/{file.name} is not inside")
    return wrong


def check(wheel: Path) -> list[str]:
    """All that is wrong with a wheel, a line each."""
    with zipfile.ZipFile(wheel) as archive:
        wrong = check_names(wheel, archive)
        if wrong:
            return wrong
        wrong = check_record(archive)
        module = next(n for n in archive.namelist() if n.endswith(".so"))
        data = archive.read(module)
    library = macho.read(data)
    found = check_library(library, stubs()) + check_signature(data, library) + check_shaders(data)
    return wrong + [f"{module}: {line}" for line in found]


if __name__ == "__main__":
    said = check(Path(sys.argv[1]))
    print("\n".join(said) or f"{Path(sys.argv[1]).name}: nothing wrong that can be seen here")
    sys.exit(bool(said))
