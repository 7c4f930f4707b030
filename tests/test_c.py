"""The C tests: plain, under the sanitizers, and the NEON kernels under an emulator."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    not (ROOT / "csrc").is_dir(), reason="the sources are not beside the tests"
)

ARM = """
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64;-L;/usr/aarch64-linux-gnu;-cpu;max)
"""


def run(*command: str, cwd: Path | None = None, **env: str) -> str:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PATH": tools, **env}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}"
    return done.stdout


def build_and_test(build: Path, *options: str, only: str = ".", **env: str) -> str:
    run("cmake", "-G", "Ninja", "-DFLASHMOE_TESTS=ON", *options, "-S", str(ROOT), "-B", str(build))
    run("cmake", "--build", str(build), "-j2")
    out = run("ctest", "--output-on-failure", "--no-tests=error", "-R", only, cwd=build, **env)
    assert "100% tests passed" in out
    return out


def test_plain(tmp_path: Path) -> None:
    build_and_test(tmp_path)


def test_address_and_undefined_behaviour(tmp_path: Path) -> None:
    build_and_test(
        tmp_path, "-DFLASHMOE_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        ASAN_OPTIONS="detect_leaks=1",
    )  # fmt: skip


def test_data_races(tmp_path: Path) -> None:
    build_and_test(
        tmp_path, "-DFLASHMOE_SANITIZE=thread", "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        only="threads|read|store|session",
    )  # fmt: skip


@pytest.mark.skipif(
    not (shutil.which("aarch64-linux-gnu-gcc") and shutil.which("qemu-aarch64")),
    reason="needs Debian's gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user",
)
def test_neon(tmp_path: Path) -> None:
    (tmp_path / "arm.cmake").write_text(ARM)
    out = build_and_test(
        tmp_path / "build",
        f"-DCMAKE_TOOLCHAIN_FILE={tmp_path / 'arm.cmake'}",
        only="kernels|quant|router|manifest",
    )
    said = run(
        "qemu-aarch64",
        "-L",
        "/usr/aarch64-linux-gnu",
        "-cpu",
        "max",
        str(next(tmp_path.rglob("test_kernels"))),
    )
    assert "test_kernels" in out
    for table in ("neon", "neon_dot", "neon_i8mm"):
        assert f"\n{table}: ok" in f"\n{said}"
