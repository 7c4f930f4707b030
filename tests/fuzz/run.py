"""Fuzzes the parsers for as long as one likes.

    python tests/fuzz/run.py                              every parser in Python, 20,000 cases each
    python tests/fuzz/run.py --full                       1,000,000 each in Python, 10,000,000 each in C
    python tests/fuzz/run.py --only config http --cases 1e6 --seed 7
    python tests/fuzz/run.py --only c:manifest --cases 1e8  coverage-guided, with clang's libFuzzer
    python tests/fuzz/run.py --coverage                   lines of the parsers that the kept inputs reach
    python tests/fuzz/run.py --coverage python            of those in Python alone, or of those in C (c)
    python tests/fuzz/run.py --grow --only config         keep inputs that reach lines which none did yet

The lines of Python are counted with coverage.py, which the extra ``test`` has (pip install coverage); those
of C with gcc and gcov.

What is found is written to ``--out``; copy it to ``tests/fuzz/corpus/NAME`` once it is fixed, and every
test run has it from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzz import core, lines
from fuzz.directories import TARGETS as DIRECTORIES
from fuzz.files import TARGETS as FILES
from fuzz.harness import CORPUS, Report, Target, replay, run
from fuzz.texts import TARGETS as TEXTS

TARGETS = (*FILES, *TEXTS, *DIRECTORIES)


def keep(report: Report, out: Path) -> None:
    """Write the findings, each once, and say what they are."""
    seen = set()
    for finding in report.findings:
        if finding.what in seen:
            continue
        seen.add(finding.what)
        name = f"{report.name}-{hashlib.sha256(finding.data).hexdigest()[:12]}"
        out.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(finding.data)
        print(f"    {finding.what[:160]}\n      in {out / name}", flush=True)


def grow(targets: Sequence[Target], cases: int, seed: int, out: Path) -> int:
    """Add inputs to the kept ones that reach lines which none did; how many findings there were."""
    watch = lines.Watch()
    with watch:
        replay(TARGETS)
    watch.news()
    bad = 0
    for target in targets:
        report, found = lines.grow(target, watch, cases, seed)
        folder = CORPUS / target.name
        folder.mkdir(exist_ok=True)
        for data in found:
            (folder / f"lines-{hashlib.sha256(data).hexdigest()[:12]}").write_bytes(data)
        print(f"{report}\n    {len(found)} kept, {sum(map(len, found)):,} bytes", flush=True)
        keep(report, out)
        bad += len(report.findings)
    return bad


def coverage(targets: Sequence[Target], language: str, build: Path) -> int:
    """Show which lines are reached; 1 if they are too few."""
    few = 0
    if language != "c":
        few |= lines.print_coverage(targets)
    if language != "python":
        few |= core.print_coverage(build / "coverage")
    return few


def main() -> int:
    """Run what was asked for; 1 if something was found."""
    names = [target.name for target in TARGETS] + [f"c:{name}" for name in core.NAMES]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--cases", type=float, help="for each parser")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="the figures of docs/reliability.md")
    parser.add_argument(
        "--coverage", nargs="?", const="all", choices=("all", "python", "c"), metavar="LANGUAGE",
        help="of the parsers' lines by the kept inputs",
    )  # fmt: skip
    parser.add_argument("--grow", action="store_true", help="keep inputs that reach new lines")
    parser.add_argument("--build", type=Path, default=Path("build/fuzz"), help="where C is built")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz/found"))
    args = parser.parse_args()
    python = [target.name for target in TARGETS]
    wanted = args.only or (names if args.full or args.coverage else python)
    targets = [target for target in TARGETS if target.name in wanted]
    if args.coverage:
        return coverage(targets, args.coverage, args.build)
    cases = int(args.cases or (1e6 if args.full else 2e4))
    if args.grow:
        return 1 if grow(targets, cases, args.seed, args.out) else 0
    bad = 0
    for target in targets:
        report = run(target, cases=cases, seed=args.seed)
        print(report, flush=True)
        keep(report, args.out)
        bad += len(report.findings)
    for name in core.NAMES:
        if f"c:{name}" in wanted:
            bad += core.fuzz(name, int(args.cases or 1e7), args.seed, args.build, args.out)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
