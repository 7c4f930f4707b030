"""The selftest in Python and on the command line, and which device a model takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import flashmoe
from flashmoe import _core, devices, kept
from flashmoe.cli.app import app
from flashmoe.errors import ArgumentError, DeviceError

VERBS = {
    "embed", "norm", "matmul", "matmul_exact", "project", "add", "swiglu", "gate", "append_kv",
    "attend", "conv", "delta_gates", "delta", "gated_norm", "experts", "combine",
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache directory of this test's own."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    return kept.directory()


def row(ok: bool = True, message: str = "") -> dict[str, Any]:
    error = 0.0 if ok else 0.5
    return {
        "verb": "conv", "case": "7 rows", "error": error, "bound": 1e-10, "ok": ok,
        "message": message,
    }  # fmt: skip


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Pretend that there is a Metal device whose selftest tells these rows, or raises."""

    def pretend(rows: list[dict[str, Any]] | Exception) -> list[str]:
        asked: list[str] = []

        def selftest(name: str, *, cache: str, quick: bool) -> list[dict[str, Any]]:
            asked.append(name)
            assert quick
            if isinstance(rows, Exception):
                raise rows
            return rows

        monkeypatch.setattr(_core, "devices", lambda: ["metal", "cpu"])
        monkeypatch.setattr(_core, "selftest", selftest)
        return asked

    return pretend


# ---- the selftest -----------------------------------------------------------------


def test_the_cpu_passes_with_every_verb() -> None:
    report = flashmoe.selftest("cpu", quick=True)
    assert report.ok, report.line
    (cpu,) = report.devices
    assert {check.verb for check in cpu.checks} == VERBS
    assert cpu.text and cpu.tokens_per_second > 0 and cpu.kernels
    assert "\n" not in report.line
    for word in (flashmoe.__version__, "cpu (", "tok/s", "worst error"):
        assert word in report.line


def test_the_command_tells_a_table_and_a_line() -> None:
    done = CliRunner().invoke(app, ["selftest", "--device", "cpu", "--quick"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.strip().splitlines()
    assert {line.split()[0] for line in lines if line.startswith("  ")} >= VERBS
    assert lines[-1].startswith("flashmoe ") and lines[-1].endswith("| ok")


def test_a_wrong_verb_is_told_and_the_exit_code_is_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "selftest", lambda *_, **__: [row(), row(False)])
    done = CliRunner().invoke(app, ["selftest", "--device", "cpu", "--quick"])
    assert done.exit_code == 1
    assert "1 WRONG" in done.stdout and "conv, 7 rows: error 5.0e-01" in done.stdout
    assert done.stdout.strip().endswith("FAILED") and "1 of 2 checks" in done.stdout
    done = CliRunner().invoke(app, ["selftest", "--device", "cpu", "--quick", "--json"])
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert not told["ok"] and [c["ok"] for c in told["devices"][0]["checks"]] == [True, False]


def test_texts_that_differ_are_a_failure() -> None:
    from flashmoe.selftesting import DeviceReport, Report

    same = Report("here", [DeviceReport("cpu", text="a"), DeviceReport("metal", text="a")])
    differ = Report("here", [DeviceReport("cpu", text="a"), DeviceReport("metal", text="b")])
    assert same.ok and not differ.ok
    assert "texts differ" in differ.line


# ---- which device ------------------------------------------------------------------


@pytest.mark.skipif("metal" in _core.devices(), reason="this build has Metal")
def test_without_metal_auto_is_the_cpu_and_nothing_runs(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_core, "selftest", lambda *_, **__: pytest.fail("it ran"))
    with flashmoe.Model(flashmoe.demo_model_path(), memory="512MB") as model:
        info = model.info()
    assert info["device"] == "cpu" and "no other device" in info["device_reason"]
    assert not (cache / "devices.json").exists()


@pytest.mark.skipif("metal" in _core.devices(), reason="this build has Metal")
def test_metal_that_is_missing_is_an_error_that_helps() -> None:
    with pytest.raises(DeviceError, match=r"only cpu.*Apple silicon.*device=\"cpu\""):
        flashmoe.Model(flashmoe.demo_model_path(), device="metal")


def test_a_device_that_nobody_knows() -> None:
    with pytest.raises(ArgumentError, match="auto, cpu, metal"):
        devices.choose("abacus")


def test_auto_takes_what_passes_and_asks_once(metal: Callable[..., list[str]]) -> None:
    asked = metal([row()])
    assert devices.choose("auto").name == "metal"
    assert devices.choose("auto").name == "metal"
    assert asked == ["metal"]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([row(), row(False)], "error 5.0e-01 above 1e-10"),
        ([row(False, "the queue stood still")], "the queue stood still"),
        (DeviceError("no GPU here"), "no GPU here"),
    ],
)
def test_auto_leaves_what_fails_and_says_why(
    rows: list[dict[str, Any]] | Exception, why: str, metal: Callable[..., list[str]]
) -> None:
    asked = metal(rows)
    for _ in range(2):
        choice = devices.choose("auto")
        assert choice.name == "cpu" and why in choice.reason
        assert "flashmoe selftest" in choice.reason
    assert asked == ["metal"]


def test_another_build_is_asked_again(
    metal: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = metal([row()])
    devices.choose("auto")
    monkeypatch.setattr(flashmoe, "__version__", "99.0")
    devices.choose("auto")
    assert asked == ["metal", "metal"]
