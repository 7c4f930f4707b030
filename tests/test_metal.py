"""The Metal device on an emulated GPU: its verbs, its life, and mistakes that must be found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEEDED = ("clang-19", "clang++-19")
pytestmark = [
    pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="the sources are not beside the tests"),
    pytest.mark.skipif(
        sys.platform != "linux" or not all(map(shutil.which, NEEDED)),
        reason="needs Linux with clang-19, libobjc-12-dev and libblocksruntime-dev",
    ),
]
SCHEDULES = ("", "lazy", "order=1,threads=1", "lazy,order=7,threads=2")
COPIED = ("CMakeLists.txt", "csrc", "shaders", "tests/metal", "third_party")


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja
    compilers = {"CC": "clang-19", "CXX": "clang++-19", "OBJC": "clang-19"}
    return subprocess.run(
        command, env={**os.environ, "PATH": tools, **compilers, **env}, text=True, timeout=300,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def build(source: Path, to: Path, kind: str) -> Path:
    """The program that checks the device, with kernels of a kind."""
    done = run(
        "cmake", "-G", "Ninja", "-DFLASHMOE_METAL=ON", f"-DFLASHMOE_METAL_KIND={kind}",
        "-S", str(source), "-B", str(to),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    done = run("cmake", "--build", str(to), "-j2", "--target", "device_check")
    assert done.returncode == 0, done.stdout[-4000:]
    return to / "device_check"


@pytest.fixture(scope="module", params=["plain", "watch", "address"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_verb_is_what_the_scalar_cpu_says(program: Path, schedule: str) -> None:
    what = "quick" if "address" in program.parent.name else "selftest"
    # the fake keeps what was released, so that late uses are seen, and counts leaks itself
    done = run(str(program), what, FAKE_METAL=schedule, ASAN_OPTIONS="detect_leaks=0")
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("what", ["life", "failures"])
def test_the_device_lives_and_fails_well(
    program: Path, what: str, schedule: str, tmp_path: Path
) -> None:
    done = run(
        str(program), what, str(tmp_path), FAKE_METAL=schedule, ASAN_OPTIONS="detect_leaks=0"
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_compiled_kernels_are_kept(program: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert (
            run(str(program), "life", str(tmp_path), ASAN_OPTIONS="detect_leaks=0").returncode == 0
        )
    assert [p.suffix for p in tmp_path.iterdir()] == [".archive"]


# ---- mistakes ------------------------------------------------------------------------------

MISTAKES = tomllib.loads((Path(__file__).parent / "metal/mistakes.toml").read_text())["mistake"]


class Patient:
    """A copy of the sources in which one mistake at a time is made."""

    def __init__(self, folder: Path) -> None:
        self.source, self.to = folder / "source", folder / "build"
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.source / name)
            else:
                self.source.mkdir(exist_ok=True)
                shutil.copy(ROOT / name, self.source / name)
        self.program = build(self.source, self.to, "watch")

    def with_mistake(self, file: Path, right: str, wrong: str) -> str:
        """What the checks say of it; "" if nothing."""
        text = file.read_text()
        assert right in text, f"{file.name} has no {right!r}: the list of mistakes is out of date"
        file.write_text(text.replace(right, wrong))
        try:
            done = run("cmake", "--build", str(self.to), "-j2", "--target", "device_check")
            assert done.returncode == 0, done.stdout[-3000:]
            return self.complaint()
        finally:
            file.write_text(text)

    def complaint(self) -> str:
        quick = [("quick", ""), ("quick", "lazy,order=1,threads=2")]
        for what, schedule in (*quick, ("life", "lazy"), ("life", ""), ("selftest", "")):
            done = run(str(self.program), what, FAKE_METAL=schedule)
            if done.returncode:
                return done.stdout[:300] or f"ended with {done.returncode}"
        return ""


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Patient:
    return Patient(tmp_path_factory.mktemp("patient"))


def test_there_are_enough_mistakes() -> None:
    assert len(MISTAKES) >= 40


@pytest.mark.parametrize(
    "mistake", MISTAKES, ids=lambda m: f"{Path(m['file']).name}: {m['wrong'].strip()[:60]}"
)
def test_a_mistake_is_found(patient: Patient, mistake: dict[str, str]) -> None:
    file = patient.source / mistake["file"]
    assert patient.with_mistake(file, mistake["right"], mistake["wrong"])
