"""The command line: what every verb prints, its exit codes, and what Ctrl-C does."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import flashmoe
from flashmoe import cli
from flashmoe.cli import app, footprint, known, show, tools

PROGRAM = [sys.executable, "-m", "flashmoe"]
ENDLESS = ["-n", "4000", "-t", "100", "--top-k", "0", "--top-p", "1", "--seed", "2"]
"""Every token is about equally likely; with this seed an end token is over a thousand away."""


def run(
    *words: str, code: int = 0, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command and check its exit code; without a terminal."""
    done = subprocess.run(
        [*PROGRAM, *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def run_json(*words: str) -> Any:
    return json.loads(run(*words, "--json").stdout)


@pytest.mark.parametrize("verb", app.VERBS)
def test_every_verb_teaches_by_example(verb: str) -> None:
    text = run(verb, "--help").stdout
    assert f"Usage: flashmoe {verb}" in text
    assert f"flashmoe {verb}" in text.split("Examples:")[1]


def test_help_lists_every_verb_and_is_quick() -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        text = run("--help").stdout
        times.append(time.perf_counter() - start)
    assert all(verb in text and line in text for verb, line in app.VERBS.items())
    assert statistics.median(times) < 0.3


def test_help_loads_neither_numpy_nor_the_engine() -> None:
    code = (
        "import sys\nfrom flashmoe.cli import run\nassert run(['--help']) == 0\n"
        "assert not {'numpy', 'flashmoe._core', 'tqdm', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_no_verb_shows_help_and_fails() -> None:
    assert "Commands:" in run(code=2).stdout


def test_version() -> None:
    assert run("--version").stdout == f"flashmoe {flashmoe.__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["frobnicate"],
        ["generate"],
        ["generate", "demo", "-p", "x", "--read", "funny"],
        ["generate", "demo", "-p", "x", "--experts-per-token", "0"],
        ["generate", "demo", "-p", "x", "--raw", "--system", "y"],
        ["convert", "demo", "there", "--bits", "7"],
        ["info", "demo", "--experts-per-token", "99"],
    ],
)
def test_wrong_calls_exit_with_2(words: list[str]) -> None:
    assert "Error:" in run(*words, code=2).stderr


def test_errors_are_one_clear_line(tmp_path: Path) -> None:
    empty = str(tmp_path)
    for words, said in [
        (["info", empty], "no config.json"),
        (["generate", empty, "-p", "x"], "no config.json"),
        (["verify", str(tmp_path / "absent")], "is not a directory"),
        (["demo", "--memory", "lots"], "write it as 6GB"),
        (["demo", "--memory", "100kB"], "give more with --memory"),
        (["generate", "demo", "-p", "x", "-t", "-1"], "temperature must be"),
        (["generate", "demo", "--raw", "-p", ""], "prompt is empty"),
    ]:
        done = run(*words, code=1)
        assert done.stdout == ""
        assert done.stderr.startswith("flashmoe: ")
        assert done.stderr.count("\n") == 1
        assert said in done.stderr


def test_generate_prints_the_answer_and_its_figures_apart() -> None:
    words = ["generate", "demo", "-p", "What is flashmoe?", "-t", "0", "-n", "40"]
    done = run(*words)
    with flashmoe.Model(flashmoe.demo_model_path()) as model:
        generator = flashmoe.Generator(model, flashmoe.Sampler(temperature=0))
        want = generator.chat([{"role": "user", "content": "What is flashmoe?"}], max_tokens=40)
    assert done.stdout == want.text + "\n"
    assert "tok/s" in done.stderr
    assert "peak memory" in done.stderr
    assert run(*words[:2], *words[4:], stdin="What is flashmoe?").stdout == done.stdout


def test_generate_json() -> None:
    made = run_json("generate", "demo", "-p", "Once upon a time", "--raw", "--seed", "3", "-n", "8")
    assert made == made | {"chat_template": False, "finish_reason": "length"}
    assert len(made["token_ids"]) == made["stats"]["completion_tokens"] == 8
    assert made["stats"]["seed"] == 3
    assert made["stats"]["expert_bytes_read"] > 0
    again = run_json(
        "generate", "demo", "-p", "Once upon a time", "--raw", "--seed", "3", "-n", "8"
    )
    assert again["text"] == made["text"]


def test_fewer_experts_are_always_shown() -> None:
    native = run_json("info", "demo")["native_experts_per_token"]
    fewer = ["--experts-per-token", str(native - 1)]
    said = f"{native - 1} experts per token; the model was made for {native}"
    assert said in run("generate", "demo", "-p", "Hello", "-n", "2", *fewer).stderr
    assert said in run("info", "demo", *fewer).stdout
    assert said in run("demo", "Hello", "-n", "2", *fewer).stderr
    stats = run_json("generate", "demo", "-p", "Hello", "-n", "2", *fewer)["stats"]
    assert (stats["experts_per_token"], stats["native_experts_per_token"]) == (native - 1, native)


def test_demo_answers_and_calls_a_tool() -> None:
    done = run("demo", "-t", "0")
    assert "What is flashmoe?" in done.stdout
    assert "the model calls   calculator(" in done.stdout
    assert "Python returns    " in done.stdout
    assert "the model says    " in done.stdout
    assert done.stderr.count("tok/s") >= 2


def test_demo_with_a_prompt_only_answers_it() -> None:
    done = run("demo", "Hello!", "-n", "10")
    assert "> Hello!" in done.stdout
    assert "calculator" not in done.stdout


def test_info_agrees_with_the_engine() -> None:
    told = run_json("info", "demo")
    with flashmoe.Model(flashmoe.demo_model_path()) as model:
        info = model.info()
    for name in ("num_hidden_layers", "hidden_size", "vocab_size", "num_experts", "context_length"):
        assert told[name] == info[name]
    for name in ("resident_bytes", "kv_bytes_per_token", "state_bytes"):
        assert told[name] == pytest.approx(info[name], rel=0.02)
    assert told["expert_bytes"] == pytest.approx(info["expert_bytes"], abs=4096)
    assert told["budgets"][0]["fits"] is True
    assert told["reading"]["read"] == info["read"] and "experts" in told["reading"]["reason"]
    assert "tok/s at most" in run("info", "demo", "--disk", "3GB").stdout


def test_verify_finds_a_flipped_byte(tmp_path: Path) -> None:
    import shutil

    assert run_json("verify", "demo")["ok"] is True
    copy = tmp_path / "copy"
    shutil.copytree(flashmoe.demo_model_path(), copy)
    records = sorted(copy.glob("experts-*.bin"))[-1]
    data = bytearray(records.read_bytes())
    data[5000] ^= 1
    records.write_bytes(data)
    assert records.name in run("verify", str(copy), code=1).stderr


def test_doctor_names_the_next_command() -> None:
    told = run_json("doctor")
    assert told["available_memory"] <= min(told["memory_limits"].values())
    assert "ref" in told["kernels"]
    assert told["disk_bytes_per_second"] > 0
    assert len(told["models"]) == len(known.KNOWN)
    verb = told["next"].split()[1]
    assert verb in app.VERBS
    text = run("doctor", "--memory", "1GB").stdout
    assert "of memory" in text
    assert text.splitlines()[-1] == "Next: flashmoe demo"


def test_chat_talks_and_obeys() -> None:
    lines = (
        "/set temperature 0\n/set seed x\nHello!\n/stats\n/frob\n/system Be kind.\n/clear\n/quit\n"
    )
    done = run("chat", "demo", stdin=lines + "never read\n")
    assert "tok/s" in done.stdout
    assert "there is no /frob" in done.stderr
    assert "'x' is not a value for seed" in done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_convert_then_use(tmp_path: Path, checkpoint: Any) -> None:
    source = checkpoint(seed=1)
    done = run("convert", str(source), str(tmp_path / "packed"))
    assert "is ready. Next: flashmoe chat" in done.stdout
    assert run_json("info", str(tmp_path / "packed"))["kind"] == "packed"
    again = run("convert", str(source), str(tmp_path / "packed"), code=1)
    assert again.stderr.startswith("flashmoe: ")


def interrupted(words: list[str]) -> tuple[int, str, str]:
    """Run a command, send Ctrl-C at its first output, and return exit code, stdout and stderr."""
    child = subprocess.Popen(
        [*PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    first = child.stdout.read(1)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    return child.returncode, first + out, err


def test_ctrl_c_ends_with_130() -> None:
    code, out, err = interrupted(["generate", "demo", "--raw", "-p", "One", *ENDLESS])
    assert code == 130
    assert out
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err


def test_a_closed_pipe_is_no_error() -> None:
    words = " ".join([*PROGRAM, "generate", "demo", "-p", "'Tell me a story.'"])
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -c 1"], capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


class Screen:
    """What a terminal shows; what was read past a text waits for the next one."""

    def __init__(self, terminal: int) -> None:
        self.terminal, self.seen = terminal, ""

    def until(self, text: str, seconds: float = 60) -> None:
        """Wait for a text and go past it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            self.read(end, text)
        self.seen = self.seen.partition(text)[2]

    def anything(self, beyond: str, seconds: float = 60) -> None:
        """Wait for a character that is not one of these."""
        end = time.monotonic() + seconds
        while not self.seen.strip(beyond):
            self.read(end, "anything")

    def read(self, end: float, awaited: str) -> None:
        ready, _, _ = select.select([self.terminal], [], [], max(0, end - time.monotonic()))
        assert ready, f"{awaited!r} did not come; the terminal shows {self.seen!r}"
        self.seen += os.read(self.terminal, 4096).decode(errors="replace")


def end_with_ctrl_d(pid: int, terminal: int) -> int:
    """Type Ctrl-D until the program ends: one typed before the line editor listens is lost."""
    for _ in range(30):
        os.write(terminal, b"\x04")
        time.sleep(0.3)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("Ctrl-D does not end the chat")


def test_ctrl_c_in_a_chat_stops_the_answer_not_the_program(tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(XDG_STATE_HOME=str(tmp_path), TERM="dumb", PROMPT_TOOLKIT_NO_CPR="1")
        os.execv(sys.executable, [*PROGRAM, "chat", "demo", *ENDLESS])
    screen = Screen(terminal)
    try:
        screen.until("> ")
        os.write(terminal, b"Tell me a story.\r")
        screen.until("story.")
        screen.anything(beyond="\r\nTell me a story.")
        os.write(terminal, b"\x03")
        screen.until("[stopped]")
        screen.until("> ")
        os.write(terminal, b"/stats\r")
        screen.until("peak memory")
        screen.until("> ")
        status = end_with_ctrl_d(pid, terminal)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    histories = (tmp_path / "flashmoe").glob("chat_history*")
    assert "Tell me a story." in "".join(p.read_text() for p in histories)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elapsed_time_shows_only_when_something_takes_long(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with show.elapsed("opening it"):
        pass
    assert "opening it" not in sys.stderr.getvalue()
    monkeypatch.setattr(show, "SHOW_AFTER_SECONDS", 0.1)
    deadline = time.monotonic() + 20
    with show.elapsed("opening it"):
        while "opening it: 00:" not in sys.stderr.getvalue():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (999, "999 B"), (5.86e9, "5.86 GB"), (2.5e14, "250 TB")]
)
def test_sizes_for_people(nbytes: float, text: str) -> None:
    assert show.size(nbytes) == text


def test_tool_calls_are_read_and_carried_out() -> None:
    call = '{"name": "calculator", "arguments": {"expression": "2*(3+4)/-7"}}'
    text = f"Let me see.\n<tool_call>\n{call}\n</tool_call>"
    assert tools.call_tool(tools.read_call(text)) == {"result": -2}


@pytest.mark.parametrize(
    "text",
    [
        "no call",
        "<tool_call>{nonsense}</tool_call>",
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "calculator", "arguments": {"sum": "1"}}</tool_call>',
        '<tool_call>{"name": "calculator", "arguments": {"expression": "1/0"}}</tool_call>',
        '<tool_call>{"name": "calculator", "arguments": {"expression": "9**9**9"}}</tool_call>',
        '<tool_call>{"name": "calculator", "arguments": {"expression": "open(1)"}}</tool_call>',
    ],
)
def test_bad_tool_calls_are_refused(text: str) -> None:
    with pytest.raises(tools.ToolCallError):
        tools.call_tool(tools.read_call(text))


def test_known_models_need_what_they_must() -> None:
    # 4-bit weights with a bf16 scale and bias for each 64 of them are 4.5 bits.
    for model, hidden, width in [
        ("Qwen3-30B-A3B", 2048, 768),
        ("Qwen3.6-35B-A3B", 2048, 512),
        ("Qwen3.5-397B-A17B", 4096, 1024),
    ]:
        (found,) = [k for k in known.KNOWN if k.name == model]
        assert found.footprint.expert_bytes == 3 * hidden * width * 9 // 16
        assert found.footprint.share_in_memory(found.footprint.least_memory - 1) is None
        assert found.footprint.share_in_memory(10**12) == 1.0


def test_a_faster_disk_or_more_memory_never_slows_down() -> None:
    cost = known.KNOWN[1].footprint
    rates = [cost.tokens_per_second(gb * 10**9, 1e9, 2e10) or 0 for gb in footprint.BUDGETS_GB]
    assert rates == sorted(rates)
    slow, fast = (cost.tokens_per_second(4 * 10**9, disk, 2e10) or 0 for disk in (1e9, 4e9))
    assert fast > 2 * slow


def test_run_returns_the_exit_code_in_process() -> None:
    assert cli.run(["--version"]) == 0
    assert cli.run(["frob"]) == 2
