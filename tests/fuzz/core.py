"""The fuzzers of the C core: built with clang's libFuzzer and the sanitizers, and their line coverage with gcc."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CORPUS = Path(__file__).parent / "corpus"
NAMES = ("manifest", "text", "snapshot")

PARSERS = (
    "base/text.c",
    "quant/quant.c",
    "model/manifest.c",
    "model/manifest_tensors.c",
    "model/spec.c",
    "model/weights.c",
    "session/snapshot.c",
)
"""What reads bytes that come from outside."""


def _run(*command: str | Path, cwd: Path | None = None, quiet: bool = True) -> int:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # cmake and ninja
    out = subprocess.PIPE if quiet else None
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**os.environ, "PATH": tools}, text=True,
        stdout=out, stderr=subprocess.STDOUT if quiet else None,
    )  # fmt: skip
    if quiet and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{(done.stdout or '')[-4000:]}")
    return done.returncode


def _clang() -> str:
    for name in ("clang", "clang-19", "clang-18", "clang-17", "clang-16", "clang-15", "clang-14"):
        if shutil.which(name):
            return name
    raise RuntimeError("libFuzzer comes with clang: apt install clang libclang-rt-dev")


def fuzz(name: str, cases: int, seed: int, build: Path, out: Path) -> int:
    """Run one fuzzer; 1 if it found something.

    The new inputs that it makes stay in ``build``, those of ``corpus/`` are its seeds.
    """
    clang = _clang()
    _run(
        "cmake", "-G", "Ninja", "-DFLASHMOE_TESTS=ON", "-DFLASHMOE_FUZZ=ON",
        "-DFLASHMOE_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_C_COMPILER={clang}", f"-DCMAKE_CXX_COMPILER={clang.replace('clang', 'clang++')}",
        "-DCMAKE_C_FLAGS=-fsanitize=fuzzer-no-link", "-S", ROOT, "-B", build / "core",
    )  # fmt: skip
    _run("cmake", "--build", build / "core", "-j1", "--target", f"fuzz_{name}")
    grown = build / "grown" / name
    grown.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    print(f"c:{name}: {cases:,} cases", flush=True)
    return _run(
        build / "core" / "fuzz" / f"fuzz_{name}", f"-runs={cases}", f"-seed={seed}",
        "-max_len=8192", "-timeout=5", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0",
        f"-artifact_prefix={out}/c-{name}-", grown, CORPUS / name, quiet=False,
    )  # fmt: skip


def coverage(build: Path, sources: tuple[str, ...] = PARSERS) -> dict[str, tuple[int, int]]:
    """Lines of each parser that the kept inputs run, and lines that it has.

    Args:
        build: Where to compile, with gcc.
        sources: Files of ``csrc``.
    """
    shutil.rmtree(build, ignore_errors=True)
    build.mkdir(parents=True)
    _run(
        "cmake", "-G", "Ninja", "-DFLASHMOE_TESTS=ON", "-DFLASHMOE_WERROR=OFF",
        "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_C_COMPILER=gcc", "-DCMAKE_CXX_COMPILER=g++",
        "-DCMAKE_C_FLAGS=--coverage -O0", "-S", ROOT, "-B", build,
    )  # fmt: skip
    _run("cmake", "--build", build, "-j1", "--target", *(f"fuzz_{name}" for name in NAMES))
    for name in NAMES:
        _run(build / "fuzz" / f"fuzz_{name}", CORPUS / name)
    found = {}
    for source in sources:
        data = next(build.rglob(f"{source}.gcda"))
        _run("gcov", "--json-format", data.resolve(), cwd=build)
        report = next(build.glob(f"{Path(source).name}*.gcov.json.gz"))
        files = json.loads(gzip.decompress(report.read_bytes()))["files"]
        lines = next(f["lines"] for f in files if f["file"].endswith(source))
        counts: dict[int, int] = {}
        for line in lines:
            number = line["line_number"]
            counts[number] = max(counts.get(number, 0), line["count"])
        found[source] = (sum(c > 0 for c in counts.values()), len(counts))
        missed = [n for n, count in sorted(counts.items()) if not count]
        if missed:
            print(f"    {source}: not reached: {missed}")
        report.unlink()
    return found


def print_coverage(build: Path) -> int:
    """Show it; 1 if less than 95 % of all lines are reached."""
    found = coverage(build)
    for source, (run, lines) in found.items():
        print(f"{source:28} {run:4} of {lines:4} lines, {100 * run / lines:5.1f} %")
    run, lines = (sum(n[i] for n in found.values()) for i in (0, 1))
    print(f"{'all':28} {run:4} of {lines:4} lines, {100 * run / lines:5.1f} %")
    return 0 if run >= 0.95 * lines else 1
