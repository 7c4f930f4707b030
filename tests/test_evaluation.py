"""``evaluate`` and ``flashmoe eval``: against NumPy, against known answers, and in sweeps."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import flashmoe
from conftest import tokens
from flashmoe.cli.eval import command
from flashmoe.errors import ArgumentError, NumericalError
from flashmoe.evaluation import plots, sweep
from flashmoe.evaluation.calls import Prompt, judge, read_prompts
from flashmoe.evaluation.scores import Tally, log_softmax
from flashmoe.evaluation.windows import Window, windows

DEMO = flashmoe.demo_model_path()
DATA = Path(sweep.__file__).parent / "demo"
IDS = tokens(150, seed=8)


# ----------------------------------------------------------------------------------- the arithmetic


def plain_log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Row by row in extended precision, without the tricks of the library."""
    rows = [np.longdouble(row) - np.log(np.exp(np.longdouble(row)).sum()) for row in logits]
    return np.array(rows, np.float64)


def test_uniform_logits_have_the_vocabulary_as_perplexity() -> None:
    tally = Tally(vocab=50)
    logits = np.full((7, 64), 3.25, np.float32)
    logits[:, 50:] = 1e4  # rows that pad the matrix count for nothing
    tally.add(logits, np.arange(7, dtype=np.int32), logits + np.float32(2))
    assert tally.text().perplexity == pytest.approx(50, rel=1e-14)
    assert tally.text().nll_stderr == pytest.approx(0, abs=1e-15)
    seen = tally.divergence()
    assert seen is not None
    assert (seen.kl_mean, seen.kl_max, seen.agreement) == (0, 0, 1)
    assert seen.reference_perplexity == pytest.approx(50, rel=1e-14)


def test_two_coins() -> None:
    """KL of a fair coin from one that falls heads three times in four, by hand."""
    fair, bent = np.log(np.float32([[0.5, 0.5]])), np.log(np.float32([[0.75, 0.25]]))
    tally = Tally(vocab=2)
    tally.add(bent, np.int32([1]), fair)
    seen = tally.divergence()
    assert seen is not None
    assert seen.kl_mean == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2), rel=1e-6)
    assert tally.text().perplexity == pytest.approx(4, rel=1e-6)


def test_figures_are_numpys() -> None:
    rng = np.random.default_rng(2)
    ours, theirs = rng.normal(0, 4, (2, 100, 33)).astype(np.float32)
    targets = rng.integers(0, 30, 100).astype(np.int32)
    tally = Tally(vocab=30)
    for rows in (slice(0, 37), slice(37, 100)):
        tally.add(ours[rows], targets[rows], theirs[rows])
    p, q = (plain_log_probabilities(x[:, :30]) for x in (theirs, ours))
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    seen, text = tally.divergence(), tally.text()
    assert seen is not None
    assert seen.kl_mean == pytest.approx(kl.mean(), rel=1e-12)
    assert seen.kl_p99 == pytest.approx(np.percentile(kl, 99), rel=1e-12)
    assert seen.kl_max == pytest.approx(kl.max(), rel=1e-12)
    assert seen.kl_stderr == pytest.approx(kl.std(ddof=1) / 10, rel=1e-12)
    assert seen.agreement == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    nll = -q[np.arange(100), targets]
    assert text.nll == pytest.approx(nll.mean(), rel=1e-12)
    assert text.perplexity_stderr == pytest.approx(
        np.exp(nll.mean()) * nll.std(ddof=1) / 10, rel=1e-12
    )


def test_extreme_logits_stay_finite_and_broken_ones_are_refused() -> None:
    rows = log_softmax(np.float32([[3e38, -3e38, 0]]))
    assert np.isfinite(rows).all() and rows[0, 0] == 0
    with pytest.raises(NumericalError, match="not finite"):
        log_softmax(np.float32([[0, np.nan]]))


@pytest.mark.parametrize("n", [2, 9, 10, 11, 57, 100])
@pytest.mark.parametrize(("length", "context"), [(10, 1), (10, 5), (10, 9), (64, 20)])
def test_every_token_but_the_first_is_scored_once(n: int, length: int, context: int) -> None:
    seen: list[int] = []
    for w in windows(n, length, context):
        assert w.last - w.first <= length
        assert w.scored - w.first >= min(context, w.scored)
        seen += range(w.scored, w.last)
    assert seen == list(range(1, n))


def test_windows_that_score_nothing_are_refused() -> None:
    for context in (0, 8, 9):
        with pytest.raises(ArgumentError, match="scores nothing"):
            list(windows(20, 8, context))
    assert list(windows(3, 8, 4)) == [Window(0, 1, 3)]


# --------------------------------------------------------------------------------------- the models


def by_hand(model: flashmoe.Model, ids: np.ndarray, length: int, context: int) -> np.ndarray:
    """Log probabilities that follow each token but the last, window by window."""
    out, scored = [], 1
    while scored < len(ids):
        first = max(0, scored - context)
        last = min(len(ids), first + length)
        rows = plain_log_probabilities(model.logits(ids[first:last]))
        out.append(rows[scored - 1 - first : last - 1 - first])
        scored = last
    return np.concatenate(out)


@pytest.mark.parametrize(("window", "context"), [(None, None), (80, 15), (70, 66), (200, 100)])
def test_a_model_against_numpy(checkpoint: Any, window: int | None, context: int | None) -> None:
    with (
        flashmoe.Model(checkpoint(seed=4), experts_per_token=1) as model,
        flashmoe.Model(checkpoint(seed=4)) as reference,
    ):
        seen = flashmoe.evaluate(
            model, text=IDS, reference=reference, window=window, context=context
        )
        length = window or 1024
        q = by_hand(model, IDS, length, context or length // 2)
        p = by_hand(reference, IDS, length, context or length // 2)
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    assert seen.text is not None and seen.divergence is not None
    assert seen.text.tokens == seen.divergence.tokens == len(IDS) - 1
    assert seen.text.nll == pytest.approx(-q[np.arange(len(q)), IDS[1:]].mean(), rel=1e-9)
    assert seen.divergence.kl_mean == pytest.approx(kl.mean(), rel=1e-9)
    assert seen.divergence.kl_max == pytest.approx(kl.max(), rel=1e-9)
    assert seen.divergence.kl_mean > 0
    assert seen.experts_per_token == 1 and seen.calls is None


def test_a_model_is_itself_in_any_budget(checkpoint: Any) -> None:
    path = checkpoint(seed=4)
    with flashmoe.Model(path) as one, flashmoe.Model(path, threads=1) as other:
        seen = flashmoe.evaluate(one, text=IDS, reference=other).divergence
    assert seen is not None
    assert (seen.kl_mean, seen.kl_p99, seen.kl_max, seen.agreement) == (0, 0, 0, 1)


def test_what_cannot_be_measured_is_refused(checkpoint: Any) -> None:
    path = checkpoint(seed=4)
    with pytest.raises(ArgumentError, match="nothing to measure"):
        flashmoe.evaluate(path)
    with pytest.raises(ArgumentError, match="at least 2"):
        flashmoe.evaluate(path, text=[5])
    with pytest.raises(ArgumentError, match="longer than the context"):
        flashmoe.evaluate(path, text=IDS, window=5000)
    with pytest.raises(ArgumentError, match="another tokenizer"):
        flashmoe.evaluate(path, text=IDS, reference=DEMO)
    with pytest.raises(ArgumentError, match="compared on a text"):
        flashmoe.evaluate(path, prompts=[], reference=DEMO)


def test_the_text_of_the_demo(tmp_path: Path) -> None:
    text = (DATA / "text.txt").read_text()[:4000]
    (tmp_path / "x.txt").write_text(text)
    told: list[tuple[str, int, int]] = []
    seen = flashmoe.evaluate(
        DEMO, text=tmp_path / "x.txt", progress=lambda *now: told.append(now)
    ).text
    assert seen is not None and seen == flashmoe.evaluate(DEMO, text=text).text
    assert 1.1 < seen.perplexity < 1.8
    assert told[-1] == ("text", seen.tokens, seen.tokens)
    assert [n for _, n, _ in told] == sorted({n for _, n, _ in told})


# ---------------------------------------------------------------------------------------- the calls

TOOL = {
    "type": "function",
    "function": {
        "name": "roll",
        "parameters": {
            "type": "object",
            "properties": {"sides": {"type": "integer"}, "by": {"enum": ["hand", "cup"]}},
            "required": ["sides"],
        },
    },
}


def wrapped(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (wrapped('{"name": "roll", "arguments": {"sides": 6}}'), (True, True, True)),
        ("Sure.\n" + wrapped('{"name": "roll", "arguments": {"sides": 6}}'), (True, True, True)),
        (wrapped('{"name": "roll", "arguments": {"sides": 7}}'), (True, True, False)),
        (wrapped('{"name": "roll", "arguments": {"sides": "6"}}'), (True, False, False)),
        (wrapped('{"name": "roll", "arguments": {}}'), (True, False, False)),
        (
            wrapped('{"name": "roll", "arguments": {"sides": 6, "by": "foot"}}'),
            (True, False, False),
        ),
        (wrapped('{"name": "roll", "arguments": {"sides": 6, "x": 1}}'), (True, False, False)),
        (wrapped('{"name": "toss", "arguments": {"sides": 6}}'), (True, False, False)),
        (wrapped('{"name": "roll", "arguments": {"sides": 6}'), (False, False, False)),
        (wrapped('{"name": "roll", "arguments": "6"}'), (False, False, False)),
        ('<tool_call>\n{"name": "roll", "arguments": {"sides": ', (False, False, False)),
        ("Six.", (False, False, False)),
    ],
)
def test_a_call_is_judged(text: str, want: tuple[bool, bool, bool]) -> None:
    expected = [{"name": "roll", "arguments": {"sides": 6}}]
    assert judge(Prompt([], [TOOL], expected), text) == want


def test_one_broken_call_spoils_the_answer() -> None:
    good = wrapped('{"name": "roll", "arguments": {"sides": 6}}')
    asked = Prompt([], [TOOL], [{"name": "roll", "arguments": {"sides": 6}}])
    assert judge(asked, good + good) == (True, True, False)
    assert judge(asked, good + wrapped("{}")) == (False, False, False)
    thought = wrapped("?") + "</think>\n\n" + good
    assert judge(asked, "<think>" + thought) == (True, True, True)
    assert judge(asked, thought, in_reasoning=True) == (True, True, True)


def test_calls_in_xml_are_judged_too() -> None:
    text = wrapped("<function=roll>\n<parameter=sides>\n6\n</parameter>\n</function>")
    asked = Prompt([], [TOOL], [{"name": "roll", "arguments": {"sides": 6}}])
    assert judge(asked, text, style="xml") == (True, True, True)
    assert judge(asked, text.replace("6", "six"), style="xml") == (True, False, False)


@pytest.mark.parametrize(
    ("text", "valid"), [('{"a": 1}', True), ("```json\n[1]\n```", True), ("{'a': 1}", False)]
)
def test_without_tools_the_answer_is_json(text: str, valid: bool) -> None:
    assert judge(Prompt([]), text) == (valid, valid, False)


def test_prompts_are_read_and_wrong_lines_named(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"messages": [], "expected": {"name": "f", "arguments": {}}}\n\n')
    (read,) = read_prompts(file)
    assert read == Prompt([], (), [{"name": "f", "arguments": {}}])
    for line in ("{", "[]", "{}", '{"messages": 3}', '{"messages": [], "expected": [{}]}'):
        file.write_text('{"messages": []}\n' + line)
        with pytest.raises(ArgumentError, match=r"p\.jsonl, line 2"):
            read_prompts(file)
    file.write_text("\n")
    with pytest.raises(ArgumentError, match="no prompts"):
        read_prompts(file)


def test_the_demo_makes_its_held_out_calls() -> None:
    prompts = read_prompts(DATA / "prompts.jsonl")
    assert len(prompts) == 60
    calls = flashmoe.evaluate(DEMO, prompts=prompts[:12]).calls
    assert calls is not None and len(calls.answers) == 12
    assert (calls.prompts, calls.valid, calls.fits, calls.exact) == (12, 12, 12, 12)


# ------------------------------------------------------------------------------------------- sweeps


def test_every_combination_once_with_the_same_weights_together() -> None:
    got = sweep.settings([None, 2], [None, 1], ["f16"], {"group_size": [32, 64]})
    assert [(s.weights.name, s.experts_per_token) for s in got] == [
        (name, k)
        for name in ("as it is", "2 bits group_size=32", "2 bits group_size=64")
        for k in (None, 1)
    ]


@pytest.fixture
def with_text(tmp_path: Path, checkpoint: Any) -> tuple[Path, Path]:
    """A tiny unquantised model with a tokenizer of fewer tokens than rows, and a text."""
    import shutil

    import tiny

    path = tmp_path / "source"
    shutil.copytree(checkpoint(seed=4, vocab_size=320), path)
    tiny.tokenizer(path, 300)
    text = tmp_path / "text.txt"
    text.write_text("hello world " * 30)
    return path, text


def test_a_sweep_on_the_command_line(with_text: tuple[Path, Path], tmp_path: Path) -> None:
    path, text = with_text
    out, work = tmp_path / "out.json", tmp_path / "work"
    words = [str(path), "--text", str(text), "--bits", "native,8,2", "--experts-per-token",
             "native,1", "--convert-option", "group_size=32", "--work", str(work),
             "--window", "64", "--json", str(out)]  # fmt: skip
    ran = CliRunner().invoke(command, words)
    assert ran.exit_code == 0, ran.output
    got = json.loads(out.read_text())
    lines = [line["result"]["divergence"]["kl_mean"] for line in got["lines"]]
    assert len(lines) == 6
    native, eight, two = lines[0], lines[2], lines[4]
    assert native == 0 < eight < two
    assert "2 bits group_size=32, K=1" in ran.output and "tokens of text scored" in ran.output
    assert list(work.iterdir()) == []
    pytest.importorskip("matplotlib")
    assert plots.draw(got, tmp_path / "a.svg").read_text().count("<svg") == 1
    assert plots.draw(got, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_converted_models_are_kept_and_taken_again(
    with_text: tuple[Path, Path], tmp_path: Path
) -> None:
    path, _ = with_text
    work = sweep.Work(path, tmp_path / "work", keep=True)
    weights = sweep.Weights(4, (("group_size", 32),))
    with work.model(weights) as made:
        before = os.stat(made / "manifest.fm").st_mtime_ns
    with dataclasses.replace(work, keep=False).model(weights) as again:
        assert again == made and os.stat(again / "manifest.fm").st_mtime_ns == before
    assert made.is_dir()
    made.with_name(made.name + ".json").write_text("{}")
    with pytest.raises(ArgumentError, match="another model"), work.model(weights):
        pass
    with pytest.raises(ArgumentError, match="name a directory"):
        sweep.Work(path, None, keep=True)


def test_a_model_of_that_width_is_taken_as_it_is() -> None:
    with sweep.Work(DEMO).model(sweep.Weights(4)) as path:
        assert path == DEMO


def test_a_setting_that_fails_says_so_and_others_go_on() -> None:
    task = sweep.Task(text="Hello, who are you?", options={"memory": "60MB"})
    seen = sweep.sweep(sweep.Work(DEMO), sweep.settings([2, None], [9, 1]), task)
    assert [line.error is None for line in seen] == [False, False, False, True]
    assert "quantised already" in (seen[0].error or "")
    assert seen[3].result is not None and seen[3].result.experts_per_token == 1


def drawn(k: int, bits: int | None, perplexity: float) -> dict[str, Any]:
    return {
        "settings": {"bits": bits, "convert": {}, "experts_per_token": k, "kv_dtype": None},
        "result": {
            "experts_per_token": k,
            "kv_dtype": "f16",
            "text": {"perplexity": perplexity},
            "divergence": None,
            "calls": {"prompts": 4, "fits": k},
        },
        "error": None,
    }


def test_a_figure_has_a_line_for_what_varies_besides(monkeypatch: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figures: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self))
    lines = [drawn(k, bits, 10 * k + (bits or 0)) for bits in (None, 2) for k in (4, 1)]
    plots.draw({"schema": 1, "lines": lines}, tmp_path / "x.svg")
    perplexity, calls = figures[0].axes
    assert [line.get_label() for line in perplexity.lines] == ["as it is", "2 bits"]
    assert [list(line.get_ydata()) for line in perplexity.lines] == [[40, 10], [42, 12]]
    assert list(calls.lines[0].get_ydata()) == [1, 0.25]
    assert [tick.get_text() for tick in calls.get_xticklabels()] == ["4", "1"]
    with pytest.raises(ArgumentError, match="no setting ended"):
        plots.draw({"schema": 1, "lines": []}, tmp_path / "x.svg")
    with pytest.raises(ArgumentError, match="schema 2"):
        plots.draw({"schema": 2, "lines": []}, tmp_path / "x.svg")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "give --text FILE"),
        (["--text", __file__, "--bits", "7"], "neither native nor one of"),
        (["--text", __file__, "--experts-per-token", "0"], "nor a number from 1"),
        (["--text", __file__, "--kv-dtype", "f8"], "not one of f32"),
        (["--text", __file__, "--convert-option", "x"], "NAME=VALUES"),
        (["--text", __file__, "--keep"], "--keep needs --work"),
        (["--prompts", __file__, "--reference", "demo"], "compared on a text"),
    ],
)
def test_wrong_values_are_named(given: list[str], words: str) -> None:
    ran = CliRunner().invoke(command, [str(DEMO), *given])
    assert ran.exit_code == 2 and words in ran.output


def test_unknown_options_of_conversion_are_named() -> None:
    with pytest.raises(ArgumentError, match=r"no option .magic..*group_size"):
        sweep.check_options({"magic": [1]})


def test_ctrl_c_leaves_nothing_behind(with_text: tuple[Path, Path], tmp_path: Path) -> None:
    path, text = with_text
    text.write_text("hello world " * 40_000)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    words = ["eval", str(path), "--text", str(text), "--bits", "4", "--convert-option",
             "group_size=32"]  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-c", "from flashmoe.cli import main; main()", *words],  # as the script
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )  # fmt: skip
    end = time.monotonic() + 60
    while not list(temporary.glob("*/*/manifest.fm")):
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130 and out == ""
    assert err.endswith("interrupted\n") and "Traceback" not in err
    assert list(temporary.iterdir()) == []


def test_the_demo_s_text_and_prompts_are_what_the_script_writes(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "training" / "heldout.py"
    if not script.is_file():
        pytest.skip("the training scripts are not beside these tests")
    subprocess.run([sys.executable, str(script), str(tmp_path)], check=True)
    for name in ("text.txt", "prompts.jsonl"):
        assert (tmp_path / name).read_bytes() == (DATA / name).read_bytes(), name
