"""Fuzzes the parsers for as long as one likes.

    python tests/fuzz/run.py                              every parser in Python, 20,000 cases each
    python tests/fuzz/run.py --full                       1,000,000 each in Python, 10,000,000 each in C
    python tests/fuzz/run.py --only config http --cases 1e6 --seed 7
    python tests/fuzz/run.py --only c:manifest --cases 1e8  coverage-guided, with clang's libFuzzer
    python tests/fuzz/run.py --coverage                   lines of the C parsers that the kept inputs reach

What is found is written to ``--out``; copy it to ``tests/fuzz/corpus/NAME`` once it is fixed, and every
test run has it from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fuzz import core
from fuzz.files import TARGETS as FILES
from fuzz.harness import Report, run
from fuzz.texts import TARGETS as TEXTS

TARGETS = (*FILES, *TEXTS)


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
        "--coverage", action="store_true", help="of the C parsers by the kept inputs"
    )
    parser.add_argument("--build", type=Path, default=Path("build/fuzz"), help="where C is built")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz/found"))
    args = parser.parse_args()
    if args.coverage:
        return core.print_coverage(args.build / "coverage")
    wanted = args.only or (names if args.full else [target.name for target in TARGETS])
    bad = 0
    for target in TARGETS:
        if target.name in wanted:
            report = run(
                target, cases=int(args.cases or (1e6 if args.full else 2e4)), seed=args.seed
            )
            print(report, flush=True)
            keep(report, args.out)
            bad += len(report.findings)
    for name in core.NAMES:
        if f"c:{name}" in wanted:
            bad += core.fuzz(name, int(args.cases or 1e7), args.seed, args.build, args.out)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
