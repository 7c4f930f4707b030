"""The table of mutants fits the sources; what tries them tells a caught one from a missed one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reliability.mutants import ROOT, SANITIZERS, Copy, Mutant, table

TESTS = Path(__file__).parent
MUTANTS = table()
pytestmark = pytest.mark.skipif(
    not (ROOT / "csrc").is_dir(), reason="the sources are not beside the tests"
)


def test_there_are_enough() -> None:
    assert len(MUTANTS) >= 30
    assert len(set(MUTANTS)) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_table_is_up_to_date(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.right) == 1
    assert mutant.right != mutant.wrong
    kind, _, name = mutant.test.partition(":")
    if kind in SANITIZERS:
        assert (TESTS / "c" / f"{name}.c").is_file() or (
            TESTS / "fuzz" / "c" / f"{name}.c"
        ).is_file()
        return
    file, _, function = mutant.test.split()[0].partition("::")
    assert re.search(
        rf"^def {function}\b" if function else "^def test", (TESTS / file).read_text(), re.M
    )


def test_one_is_caught_and_one_is_missed(tmp_path: Path) -> None:
    test = "test_chat_cli.py::test_a_failed_write_leaves_the_old_one"
    copy = Copy(tmp_path)
    assert copy.passes(test)
    assert not copy.missed(next(m for m in MUTANTS if m.test == test))
    harmless = Mutant("python/flashmoe/cli/chat/sessions.py", "indent=1)", "indent=2)", test)
    assert copy.missed(harmless)
    assert copy.passes(test)
