"""Takes one check, bound, lock or sync away at a time and runs the test that must miss it.

    python tests/reliability/mutants.py               all of mutants.toml, in a copy of the sources
    python tests/reliability/mutants.py --only write  those whose file or test has this in its name

What is unchanged passes first. A mutant that passes too is a missing test: the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_suffix(".toml")
COPIED = ("CMakeLists.txt", "csrc", "python", "pyproject.toml", "tests", "third_party", "shaders")
SANITIZERS = {"c": "address,undefined", "race": "thread"}
LONGEST = 300.0
"""Seconds after which a test counts as failed: it hangs."""


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        file: Below the sources.
        right: Its text, which is there once.
        wrong: What it becomes.
        test: Fails then.
    """

    file: str
    right: str
    wrong: str
    test: str

    def __str__(self) -> str:
        line = next(line.strip() for line in self.right.splitlines() if line.strip())
        return f"{self.file}: {line[:60]}"


def table() -> list[Mutant]:
    """All of them."""
    return [Mutant(**row) for row in tomllib.loads(TABLE.read_text(encoding="utf-8"))["mutant"]]


class Copy:
    """The sources somewhere else, and what is built of them.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        import flashmoe

        self.folder, self.source = folder, folder / "source"
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, self.source / name)
            elif (ROOT / name).is_file():
                self.source.mkdir(exist_ok=True)
                shutil.copy(ROOT / name, self.source / name)
        for module in Path(flashmoe.__file__).parent.glob("_core*.so"):
            shutil.copy(module, self.source / "python" / "flashmoe")

    def passes(self, test: str) -> bool:
        """Whether a test passes on the sources as they are now.

        Raises:
            RuntimeError: It cannot be run: nothing of this name, or what is built does not build.
        """
        kind, _, name = test.partition(":")
        if kind in SANITIZERS and name:
            return self._passes_in_c(kind, name)
        done = self._run(
            sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider",
            "--import-mode=importlib", *test.split(), cwd=self.source / "tests",
        )  # fmt: skip
        if done in (2, 3, 4, 5):
            raise RuntimeError(f"{test} cannot be run: pytest ends with {done}")
        return done == 0

    def _passes_in_c(self, kind: str, name: str) -> bool:
        build = self.folder / kind
        if not build.is_dir():
            done = self._run(
                "cmake", "-G", "Ninja", "-DFLASHMOE_TESTS=ON", "-DFLASHMOE_WERROR=OFF",
                "-DCMAKE_BUILD_TYPE=RelWithDebInfo", f"-DFLASHMOE_SANITIZE={SANITIZERS[kind]}",
                "-S", self.source, "-B", build,
            )  # fmt: skip
            if done:
                raise RuntimeError(f"cmake ends with {done}")
        if self._run("cmake", "--build", build, "-j1", "--target", name, limit=None):
            raise RuntimeError(f"{name} does not build")
        return not self._run("ctest", "-R", f"^{name}$", "--no-tests=error", cwd=build)

    def _run(
        self, *command: str | Path, cwd: Path | None = None, limit: float | None = LONGEST
    ) -> int:
        paths = [self.source / "python", os.environ.get("PYTHONPATH", "")]
        tools = [Path(sys.executable).parent, os.environ["PATH"]]  # cmake, ctest and ninja
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)).rstrip(os.pathsep),
            "PYTHONDONTWRITEBYTECODE": "1",  # of two texts of one size and second the first's
            "PATH": os.pathsep.join(map(str, tools)),
        }
        try:
            return subprocess.run(
                [str(word) for word in command], cwd=cwd, env=env, timeout=limit,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return -1

    def missed(self, mutant: Mutant) -> bool:
        """Whether its test passes all the same."""
        file = self.source / mutant.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutant.right) != 1:
            raise RuntimeError(f"{mutant}: is there {text.count(mutant.right)} times")
        file.write_text(text.replace(mutant.right, mutant.wrong), encoding="utf-8")
        try:
            return self.passes(mutant.test)
        finally:
            file.write_text(text, encoding="utf-8")


def main() -> int:
    """Run what was asked for; 1 if a mutant was missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", default="", help="part of a file's or a test's name")
    args = parser.parse_args()
    mutants = [m for m in table() if args.only in m.file or args.only in m.test]
    with tempfile.TemporaryDirectory() as folder:
        copy = Copy(Path(folder))
        missed = 0
        sound: dict[str, bool] = {}
        for mutant in mutants:
            if mutant.test not in sound:
                sound[mutant.test] = copy.passes(mutant.test)
                if not sound[mutant.test]:
                    print(f"fails unchanged: {mutant.test}", flush=True)
            bad = not sound[mutant.test] or copy.missed(mutant)
            missed += bad
            print(f"{'MISSED' if bad else 'caught'}  {mutant}  by {mutant.test}", flush=True)
    print(f"{len(mutants) - missed} of {len(mutants)} are caught")
    return 1 if missed or not mutants else 0


if __name__ == "__main__":
    sys.exit(main())
