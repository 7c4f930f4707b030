"""The examples run as they are written, on the model inside the package."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.skipif(not EXAMPLES.is_dir(), reason="no examples beside the tests")
DEFINITION = re.compile(r"experts.*(router|token)")  # the answer is drawn: wordings differ


def run(name: str, *arguments: str, cwd: Path) -> str:
    """What an example prints; it must not warn."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `flashmoe serve --demo` listens."""
    for name in ("starlette", "uvicorn", "prometheus_client", "llguidance"):
        pytest.importorskip(name)
    command = [sys.executable, "-m", "flashmoe", "serve", "--demo", "--port", "0"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=tmp_path_factory.mktemp("server")
    ) as server:
        try:
            line = server.stderr.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found, line + server.stderr.read()
            yield found[0]
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=30)


def test_embed(tmp_path: Path) -> None:
    out = run("embed.py", cwd=tmp_path)
    assert DEFINITION.search(out)
    assert re.search(r"\[stop; \d+ tokens, \d+ a second, \d+% of the experts were in memory\]", out)
    assert out.count("[cancelled]") == 1
    held, memory = map(float, re.findall(r"([\d.]+) MB", out))
    assert 0 < held <= memory == 500


def test_embed_in_too_little_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "embed.py"), "--memory", "5MB"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("the model needs 0.006 GB and memory is 0.005 GB: ")


@pytest.mark.parametrize("name", ["openai", "anthropic", "langchain_openai"])
def test_clients(name: str, url: str, tmp_path: Path) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")
    script = f"{name.split('_')[0]}_client.py"
    out = run(script, "--url", url if name == "anthropic" else f"{url}/v1", cwd=tmp_path)
    definition, call, forecast, trip = out.splitlines()
    assert DEFINITION.search(definition)
    assert call.startswith("get_weather(") and "Oslo" in call and "3" in call
    assert "sunny" in forecast and "14" in forecast and "21" in forecast
    assert re.fullmatch(r"\{'city': 'Oslo', 'days': 3\}|Trip\(city='Oslo', days=3\)", trip)


def test_notebook() -> None:
    """Its cells run in one namespace, in order."""
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text())
    if importlib.util.find_spec("nbformat"):
        import nbformat

        nbformat.validate(notebook)
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    names: dict[str, object] = {}
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                assert not cell["outputs"] and cell["execution_count"] is None
                code = compile("".join(cell["source"]), cell["id"], "exec")
                exec(code, names)
    text = out.getvalue()
    assert DEFINITION.search(text)
    assert re.search(r"\(8, 32\) the busiest quarter of layer 0 did \d+%", text)


def test_llm_tool(url: str, tmp_path: Path) -> None:
    """Simon Willison's `llm` with our lines in its file of models."""
    pytest.importorskip("llm", reason="llm is not installed")
    lines = (EXAMPLES / "llm" / "extra-openai-models.yaml").read_text()
    assert "http://127.0.0.1:8080/v1" in lines
    (tmp_path / "extra-openai-models.yaml").write_text(lines.replace("http://127.0.0.1:8080", url))
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "flashmoe", "What is a mixture of experts?"],
        capture_output=True,
        text=True,
        env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert DEFINITION.search(done.stdout)
