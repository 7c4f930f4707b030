"""``flashmoe bench``: settings, turns, arithmetic, visits, and the words around them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

import flashmoe
from flashmoe.bench import cap, run
from flashmoe.bench.setting import Setting, in_turns, sweep
from flashmoe.bench.visit import Counted, Visit, drop_page_cache
from flashmoe.cli.bench import command

DEMO = flashmoe.demo_model_path()


def test_turns_go_there_and_back():
    assert list(in_turns("AB", 4)) == list("ABBAABBA")
    assert list(in_turns([1, 2, 3], 3)) == [1, 2, 3, 3, 2, 1, 1, 2, 3]


def test_a_sweep_varies_only_what_a_kind_uses():
    kinds = {
        "kind": ["decode", "prefill"],
        "prompt": [64, 128],
        "context": [0, 32],
        "batch": [1, 2],
    }
    got = sweep(Setting(), kinds)
    decode = [s for s in got if s.kind == "decode"]
    assert {(s.context, s.batch) for s in decode} == {(0, 1), (0, 2), (32, 1), (32, 2)}
    assert len(decode) == 4 and [s.prompt for s in got if s.kind == "prefill"] == [64, 128]


def test_a_setting_survives_json():
    setting = Setting(memory=5, options=(("read_threads", 3), ("overlap", False)))
    assert Setting.from_dict(json.loads(json.dumps(setting.as_dict()))) == setting


def test_the_arithmetic_is_numpys():
    rng = np.random.default_rng(3)
    rates = rng.uniform(1, 9, 11).tolist()
    visits = [
        {"samples": rates[:6], "hit_rate": 0.25, "peak_anon": 7, "bytes_read_per_token": 2.0},
        {"samples": rates[6:], "hit_rate": 0.75, "peak_anon": 9, "bytes_read_per_token": None},
    ]
    m = run.Measurement("flashmoe", Setting(), visits)
    assert m.median == pytest.approx(np.median(rates))
    assert m.quartiles == pytest.approx(np.quantile(rates, [0.25, 0.75]))
    assert (m.typical("hit_rate"), m.peak("peak_anon")) == (0.5, 9)
    assert m.typical("bytes_read_per_token") == 2.0 and m.typical("nothing") is None


def test_what_sessions_counted_is_added_up():
    counted = Counted()
    one = {"bytes_read": 100, "experts_used": 8, "experts_hit": 6, "read_wait_ns": 500_000_000}
    counted.add(one, 10, 1.0)
    counted.add({**one, "experts_hit": 2}, 10, 1.0)
    assert counted.summary() == {
        "bytes_read_per_token": 10,
        "hit_rate": 0.5,
        "read_wait_share": 0.5,
    }
    assert Counted().summary()["hit_rate"] is None


@pytest.mark.parametrize("kind", ["decode", "prefill"])
def test_a_visit_measures_and_counts(kind):
    info = flashmoe.Model(DEMO).info()
    setting = Setting(kind, memory=10_000_000, context=16, prompt=40, tokens=5, batch=2)
    visit = Visit(str(DEMO), setting)
    seen = visit.run(3)
    visit.close()
    assert len(seen["samples"]) == 3 and min(seen["samples"]) > 0
    assert 0 < seen["hit_rate"] < 1 and 0 <= seen["read_wait_share"] <= 1
    assert seen["bytes_read_per_token"] > 0
    assert seen["info"]["memory"] == 10_000_000
    assert seen["info"]["num_experts"] == info["num_experts"]
    tokens = 3 * (5 * 2 if kind == "decode" else 40)
    uses = np.array(seen["expert_uses"])
    assert uses.shape == (info["num_hidden_layers"], info["num_experts"])
    assert (uses.sum(axis=1) == tokens * info["experts_per_token"]).all()
    by_layer = sum(np.sum(ms) for ms in seen["layer_ms"].values())
    whole = 1e3 * np.mean([1 / rate for rate in seen["samples"]])
    assert set(seen["layer_ms"]) == {"mixer", "router", "read", "experts"}
    assert 0.3 * whole < by_layer < 1.1 * whole
    if kind == "decode":
        assert len(seen["step_seconds"]) == 15
        steps = np.reshape(seen["step_seconds"], (3, 5)).sum(axis=1)
        assert seen["samples"] == pytest.approx(5 * 2 / steps)
    else:
        assert seen["samples"] == pytest.approx(40 / np.array(seen["first_token_seconds"]))


def test_a_cold_visit_begins_without_experts(tmp_path):
    seen = Visit(str(DEMO), Setting(context=0, tokens=1, cold=True)).run(1)
    assert seen["hit_rate"] == 0
    assert seen["page_cache_dropped"] == hasattr(os, "posix_fadvise") == drop_page_cache(tmp_path)


def test_given_tokens_are_taken_again_and_again():
    visit = Visit(str(DEMO), Setting(), tokens=[5, 6, 7])
    assert visit._tokens(7).tolist() == [5, 6, 7, 5, 6, 7, 5]


class Canned:
    """An engine that answers at once, or fails when asked for a context."""

    name = "canned"

    def __init__(self):
        self.asked = []

    def visit(self, setting, samples, prefix):
        self.asked.append(setting.context)
        if setting.context == 13:
            raise run.BenchError("thirteen")
        return {"samples": [float(setting.context)] * samples}


def test_a_failure_is_kept_and_the_others_go_on():
    engine = Canned()
    settings = [Setting(context=c) for c in (1, 13, 2)]
    seen = run.measure([engine], settings, rounds=3, samples=2)
    assert engine.asked == [1, 13, 2, 2, 1, 1, 2]
    assert [m.median for m in seen] == [1, None, 2] and seen[1].error == "thirteen"
    assert [len(m.samples) for m in seen] == [6, 0, 6]


def test_the_document_has_every_sample(tmp_path):
    out = tmp_path / "out.json"
    ran = CliRunner().invoke(
        command,
        [str(DEMO), "--memory", "10MB,1GB", "--tokens", "3", "--context", "8", "--prompt", "20",
         "--option", "read_threads=2", "--samples", "2", "--json", str(out)],
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    got = json.loads(out.read_text())
    assert got["schema"] == 1 and len(got["measurements"]) == 4
    assert got["machine"]["cores"] >= 1 and got["machine"]["memory_bytes_per_second"] > 0
    for m in got["measurements"]:
        assert m["error"] is None and len(m["samples"]) == 4
        assert m["median"] == pytest.approx(np.median(m["samples"]))
        assert m["settings"]["options"] == {"read_threads": 2}
        assert m["info"]["read_threads"] == 2
        assert (m["first_token_seconds"] is not None) == (m["kind"] == "prefill")
    small, large = (m for m in got["measurements"] if m["kind"] == "decode")
    assert small["hit_rate"] < large["hit_rate"] == 1
    assert "memory=10MB" in ran.output and "memory=1GB" in ran.output


def test_floors_count_bytes():
    floors = run.measure_floors(DEMO)
    one, eight = (floors.decode(Setting(batch=b), 0) for b in (1, 8))
    assert 0 < one < eight
    slow = run.Floors(floors.manifest, 1e9, 1e6)
    assert slow.decode(Setting(), 5e5) == pytest.approx(2)
    assert run.Floors(floors.manifest, 1e9, None).decode(Setting(), 5e5) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--kind", "sleep"], "not one of decode, prefill"),
        (["--memory", "much"], "much"),
        (["--prompt", "0"], "at least 1"),
        (["--option", "overlap"], "NAME=VALUE"),
        (["--read", "floppy"], "not one of auto"),
    ],
)
def test_wrong_values_are_named(given, words):
    ran = CliRunner().invoke(command, [str(DEMO), *given])
    assert ran.exit_code == 2 and words in ran.output


def test_a_model_that_refuses_is_reported():
    ran = CliRunner().invoke(command, [str(DEMO), "--kind", "decode", "--memory", "1MB"])
    assert ran.exit_code == 1 and "BudgetError" in ran.output


def may_cap():
    try:
        with cap.capped(1 << 30):
            return True
    except cap.CapError:
        return False


@pytest.mark.skipif(not may_cap(), reason="control groups of memory are not ours to make")
def test_a_cap_holds():
    with cap.capped(64 << 20) as prefix:
        hog = [sys.executable, "-c", "x = b'1' * (256 << 20); print(len(x))"]
        done = subprocess.run([*prefix, *hog], capture_output=True, text=True, check=False)
        assert done.returncode != 0 and not done.stdout
        small = subprocess.run([*prefix, "/bin/echo", "a b"], capture_output=True, check=True)
        assert small.stdout == b"a b\n"


def test_without_control_groups_a_cap_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cap, "V1", tmp_path / "none")
    monkeypatch.setattr(cap, "V2", tmp_path / "none")
    with pytest.raises(cap.CapError, match="leave --cap out"), cap.capped(1 << 30):
        pass
    with cap.capped(None) as prefix:
        assert prefix == []
