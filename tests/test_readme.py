"""The README says what is true: its examples run, its commands exist, CI runs its test command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="README.md is not beside the tests")
TEXT = README.read_text(encoding="utf-8") if README.is_file() else ""
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run_as_written(example: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3


def test_commands_exist() -> None:
    shell = "".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL))
    verbs = set(re.findall(r"^flashmoe (\w+)", shell, re.MULTILINE))
    assert {"demo", "chat", "convert"} <= verbs
    for verb in sorted(verbs):
        done = subprocess.run(
            [sys.executable, "-m", "flashmoe", verb, "--help"], capture_output=True, text=True
        )
        assert done.returncode == 0, (verb, done.stderr)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert links and not missing, missing


def test_ci_runs_the_test_command() -> None:
    block = re.search(r"<!-- test command -->\n```sh\n(.*?)\n```", TEXT, re.DOTALL)
    assert block and block[1].endswith("pytest")
    script = (ROOT / ".ci" / "run").read_text()
    found = subprocess.run(
        ["sed", "-n", "/<!-- test command -->/,/^```$/p", str(README)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert block[1] in found
    assert "/<!-- test command -->/,/^```$/p" in script
