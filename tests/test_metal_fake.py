"""The fake Metal device: a right host passes, and each planted mistake is seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAKE = Path(__file__).parent / "metal" / "fake"
pytestmark = pytest.mark.skipif(
    not (FAKE.is_dir() and shutil.which("clang-19") and Path("/usr/include/Block.h").exists()),
    reason="needs Debian's clang-19, libobjc-12-dev and libblocksruntime-dev",
)

SCHEDULES = ["", "lazy", "order=1", "lazy,order=1", "order=2", "lazy,order=3"]

ALIVE = "alive: 1 FakeDevice, 1 FakeBuffer"
FREED = "was freed while a command buffer with unretained references uses it"
MISTAKES = {
    "argument index": "argument 31: the last one is 30",
    "bound before the pipeline": "scale: buffer(0) 'p' is not bound since the pipeline was set",
    "buffer freed in flight": f"a FakeBuffer {FREED}",
    "commit twice": "commit of a command buffer that is committed",
    "commit with an open encoder": "commit of a command buffer whose encoder is open",
    "constant elsewhere": "kernel scale: function constant 2 has no value",
    "contents of private": "contents of a private buffer",
    "empty grid": "scale: a dispatch of no threads",
    "encoder after commit": "a new encoder of a command buffer that is committed",
    "encoding after the end": "encoding after endEncoding",
    "ended twice": "encoding after endEncoding",
    "fast maths": "fast maths is on: infinities and NaN would be lost",
    "freed before commit": f"a FakeBuffer {FREED}",
    "grid one short": "WRONG",
    "half a page": "whole pages of 16384 bytes are wanted",
    "handler after commit": "a handler is added to a command buffer that is committed",
    "leak a buffer": ALIVE,
    "leak a function": "alive: 2 FakeFunction",
    "many and none committed": "64 command buffers were made and none of them is committed",
    "much threadgroup memory": "scale: 32784 bytes of threadgroup memory, there are 32768",
    "never ended": "commit of a command buffer whose encoder is open",
    "nil buffer": "setBuffer of nil at index 1",
    "no barrier": "WRONG",
    "no constant": "kernel scale: function constant 2 has no value",
    "no kernel": "no function scal in this library",
    "no pipeline": "a dispatch with no pipeline",
    "no pool": "autoreleased on a thread with no autorelease pool",
    "no wait": "WRONG",
    "odd threadgroup memory": "threadgroup memory of 40 bytes: a multiple of 16 is wanted",
    "offset past the end": "setBuffer at index 2: offset 4000 of a buffer of 4000 bytes",
    "pipeline freed in flight": f"a FakePipeline {FREED}",
    "release twice": "-release to a FakeDevice that was released for the last time before",
    "short argument": "scale: buffer(0) 'p': 4 bytes are bound, the argument takes 8",
    "short buffer": "scale: element 999 is out of range",
    "swapped": "WRONG",
    "too many set bytes": "setBytes of 4097 bytes at index 3: 1 to 4096 are possible",
    "too many threads": "scale: 2048 threads in a threadgroup, the pipeline takes 1024",
    "two encoders": "a new encoder of a command buffer whose encoder is open",
    "unbound": "scale: buffer(2) 'y' is not bound since the pipeline was set",
    "unknown message": "FakeDevice does not know -endEncoding",
    "use after release": "-newCommandQueue to a FakeDevice that was released",
    "wait before commit": "a wait for a command buffer that was never committed",
    "wait in a handler": "a completed handler waits for a command buffer",
    "wrong constant": "WRONG",
    "wrong offset": "scale: element 999 is out of range",
}

FAILURES = {
    "device": "no device",
    "source": "program_source:1:1: error: made to fail",
    "function": "no function scale in this library",
    "pipeline:2": "the compiler was made to fail",
    "buffer:3": "no buffer",
    "command_buffer": "no command buffer",
    "encoder": "no encoder",
    "run": "Caused GPU Timeout Error (made to)",
    "lost": "Device Removed (made to)",
}


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small host, the device and two kernels in C."""
    build = tmp_path_factory.mktemp("fake")
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in (
        ["cmake", "-G", "Ninja", "-S", str(FAKE), "-B", str(build)],
        ["cmake", "--build", str(build), "-j2"],
    ):
        done = subprocess.run(
            command,
            env={**os.environ, "PATH": tools, "CC": "clang-19", "OBJC": "clang-19"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return build / "test_fake"


def run(program: Path, case: str, options: str, *more: str) -> tuple[int, str]:
    """Exit status, and all that was said."""
    done = subprocess.run(
        [program, case, *more],
        env={**os.environ, "FAKE_METAL": options},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("options", SCHEDULES)
@pytest.mark.parametrize("case", ["", "serial", "retained", "polls", "no copy", "many"])
def test_a_right_host_passes(program: Path, case: str, options: str) -> None:
    assert run(program, case, options)[0] == 0


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_seen(program: Path, case: str) -> None:
    status, said = run(program, case, "lazy,order=1")
    assert status != 0 and MISTAKES[case] in said


def test_the_program_knows_every_mistake() -> None:
    text = (FAKE / "test_fake.m").read_text()
    assert [case for case in MISTAKES if f'bug("{case}")' not in text] == []


def test_a_serial_encoder_needs_no_barrier(program: Path) -> None:
    """Only what may run in any order is shuffled."""
    assert "barriers 1\n" in run(program, "serial", "order=1")[1]
    assert run(program, "no barrier", "order=0")[0] == 0


@pytest.mark.parametrize("options", ["", "lazy"])
@pytest.mark.parametrize("failure", FAILURES)
def test_what_is_made_to_fail_fails(program: Path, failure: str, options: str) -> None:
    status, said = run(program, "", f"{options},fail={failure}")
    assert status == 1 and said.startswith(FAILURES[failure])


def test_what_a_kernel_does_wrong_can_fail_its_command_buffer(program: Path) -> None:
    status, said = run(program, "short buffer", "soft")
    assert status == 1 and "Address Fault Error (scale: element 999 is out of range)" in said


def test_limits_can_be_set(program: Path) -> None:
    status, said = run(program, "", "max_threads=32")
    assert status != 0 and "64 threads in a threadgroup, the pipeline takes 32" in said
    assert run(program, "", "max_buffer=3999")[1].startswith("no buffer")


@pytest.mark.parametrize("options", ["eager", "fail=rain"])
def test_unknown_options_are_refused(program: Path, options: str) -> None:
    status, said = run(program, "", options)
    assert status != 0 and "fake Metal: FAKE_METAL" in said


def test_counts(program: Path) -> None:
    said = run(program, "", "")[1].split("\n")
    assert said[:9] == [
        "commits 1", "encoders 1", "dispatches 2", "barriers 1", "waits 1",
        "compiled 2", "archived 0", "buffers 3", "bytes of set 16",
    ]  # fmt: skip


def test_an_archive_is_read_again(program: Path, tmp_path: Path) -> None:
    file = tmp_path / "kept.archive"
    assert "from archive 0\n" in run(program, "", "", str(file))[1]
    assert "from archive 1\n" in run(program, "", "", str(file))[1]
    file.write_text("made by another driver\n")
    status, said = run(program, "", "", str(file))
    assert status == 1 and "is no archive of this device" in said
