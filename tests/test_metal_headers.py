"""Our declarations of Foundation and Metal against metal-cpp and PyObjC's metadata, from PyPI."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

METAL = Path(__file__).parent / "metal"
pytestmark = pytest.mark.skipif(
    not (METAL / "headers").is_dir(), reason="the headers are not beside the tests"
)

# Wheels for macOS, of which only these files are read.
WHEELS = {
    "mlx-metal==0.32.4": ("macosx_14_0_arm64", "mlx/include/metal_cpp/"),
    "pyobjc-framework-Metal==12.2.2": ("macosx_11_0_universal2", "Metal/_metadata.py"),
}


@pytest.fixture(scope="session")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with metal-cpp and the metadata."""
    folder = tmp_path_factory.mktemp("public")
    for wanted, (platform, inside) in WHEELS.items():
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
             "--python-version=312", f"--platform={platform}", f"--dest={folder}", wanted],
            capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode != 0:
            pytest.skip(f"pip cannot download {wanted}: {done.stderr[-300:]}")
        wheel = next(folder.glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [n for n in archive.namelist() if n.startswith(inside)])
        wheel.unlink()
    return folder


@pytest.fixture(scope="session")
def checker() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "check_headers", METAL / "fake" / "check_headers.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def check(checker: ModuleType, headers: Path, public: Path) -> tuple[object, list[str]]:
    cpp = public / "mlx" / "include" / "metal_cpp"
    return checker.check(headers, cpp, public / "Metal" / "_metadata.py")


def test_our_headers_say_what_the_public_ones_say(checker: ModuleType, public: Path) -> None:
    declared, wrong = check(checker, METAL / "headers", public)
    text = "".join(file.read_text() for file in (METAL / "headers").rglob("*.h"))
    assert wrong == []
    # None was overlooked; a property that can be set has two methods.
    methods = re.findall(r"^(?:[-+] \(|@property\()", text, re.M)
    assert len(declared.methods) == len(methods) + text.count("@property(nonatomic")
    assert len(declared.values) == len(re.findall(r"^    MTL\w+ = .*,$", text, re.M))
    assert len(declared.classes) + len(declared.protocols) == text.count("@end")


MISTAKES = {
    "selector": ("dispatchThreadgroups:(MTLSize)", "dispatchThreadGroups:(MTLSize)"),
    "result": ("- (BOOL)supportsFamily", "- (int)supportsFamily"),
    "argument": ("(MTLBarrierScope)scope", "(NSUInteger)scope"),
    "order": (
        "setBuffer:(id<MTLBuffer>)buffer offset:(NSUInteger)offset",
        "setBuffer:(NSUInteger)buffer offset:(id<MTLBuffer>)offset",
    ),
    "pointer": ("ToURL:(NSURL *)url error:(NSError **)", "ToURL:(NSURL *)url error:(NSError *)"),
    "block": ("(void (^)(void *bytes, NSUInteger length))", "(void (^)(void *bytes))"),
    "handler": ("BufferHandler)(id<MTLCommandBuffer>)", "BufferHandler)(void)"),
    "property": ("uint64_t recommendedMaxWorkingSetSize", "uint32_t recommendedMaxWorkingSetSize"),
    "setter": ("BOOL fastMathEnabled", "BOOL fastMath"),
    "class method": ("+ (instancetype)fileURLWithPath", "- (instancetype)fileURLWithPath"),
    "protocol": ("@protocol MTLBinaryArchive <", "@protocol MTLArchive <"),
    "class": ("@interface MTLCompileOptions :", "@interface MTLCompilerOptions :"),
    "enum value": ("MTLDataTypeInt = 29", "MTLDataTypeInt = 28"),
    "enum name": ("MTLBarrierScopeBuffers = ", "MTLBarrierScopeBuffer = "),
    "enum type": ("typedef enum : NSInteger {", "typedef enum : NSUInteger {"),
    "struct": ("width, height, depth;\n} MTLSize", "width, depth, height;\n} MTLSize"),
    "function": ("MTLCreateSystemDefaultDevice(void)", "MTLCreateDefaultDevice(void)"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_seen(checker: ModuleType, public: Path, tmp_path: Path, mistake: str) -> None:
    shutil.copytree(METAL / "headers", tmp_path / "headers")
    right, wrong = MISTAKES[mistake]
    changed = 0
    for file in (tmp_path / "headers").rglob("*.h"):
        text = file.read_text()
        changed += text.count(right)
        file.write_text(text.replace(right, wrong))
    assert changed == 1
    assert check(checker, tmp_path / "headers", public)[1] != []
