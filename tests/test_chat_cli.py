"""The chat in the terminal: what it says, keeps, obeys and never lets through."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flashmoe
from flashmoe import Generator, Model, PrefixCache, Sampler, errors
from flashmoe.cli.chat import sessions
from flashmoe.cli.chat.commands import Commands
from flashmoe.cli.chat.conversation import Conversation
from flashmoe.cli.chat.functions import Approval, load_functions
from flashmoe.cli.chat.screen import PlainScreen
from flashmoe.cli.chat.text import finished_blocks, printable

PROGRAM = [sys.executable, "-m", "flashmoe"]
WEATHER = '''
"""Weather."""
import json as _json

def get_weather(city: str, days: int) -> dict:
    """Get the weather forecast for a city.

    Args:
        city: Name of the city.
        days: Number of days.
    """
    return {"city": city, "days": days, "condition": "sunny", "low": 14, "high": 21}

def _hidden(): ...
'''


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model(flashmoe.demo_model_path()) as model:
        yield model


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "flashmoe"


@pytest.fixture
def talk(model: Model) -> Conversation:
    return Conversation(Generator(model, Sampler(temperature=0)), max_tokens=60)


@pytest.fixture
def screen() -> PlainScreen:
    return PlainScreen(interactive=False)


@pytest.fixture
def commands(talk: Conversation, screen: PlainScreen) -> Commands:
    return Commands(talk, screen, "demo")


# ---- text ------------------------------------------------------------------------------


def test_nothing_that_a_terminal_obeys_gets_through() -> None:
    every = "".join(map(chr, range(0x110))) + "\u202e\u2066\u2069x"
    left = printable(every)
    assert all(c in "\n\t\xa0\xad" or c.isprintable() for c in left), left
    assert printable("a\x1b[31mred\x1b]0;title\x07\x9b2J\r\b\x7f") == "a[31mred]0;title2J"
    assert printable("Grüße, 世界 🙂\n\tb") == "Grüße, 世界 🙂\n\tb"


@pytest.mark.parametrize(
    ("text", "done"),
    [
        ("", ""),
        ("one", ""),
        ("one\n", ""),
        ("one\n\ntwo", "one\n\n"),
        ("one\n  \ntwo\n\nthree", "one\n  \ntwo\n\n"),
        ("```\na\n\nb", ""),
        ("x\n\n```py\na\n\nb\n```\n\nc", "x\n\n```py\na\n\nb\n```\n\n"),
        ("~~~\n```\n\n~~~\n\nrest", "~~~\n```\n\n~~~\n\n"),
    ],
)
def test_blocks_that_are_finished(text: str, done: str) -> None:
    assert text[: finished_blocks(text)] == done


# ---- conversations ---------------------------------------------------------------------


def test_an_answer_is_that_of_the_library(
    talk: Conversation, screen: PlainScreen, capsys: pytest.CaptureFixture[str]
) -> None:
    want = talk.generator.chat([{"role": "user", "content": "Hello!"}], max_tokens=60)
    talk.say("Hello!", screen)
    assert capsys.readouterr().out == want.content + "\n"
    assert talk.messages == [{"role": "user", "content": "Hello!"}, want.message]


def test_undo_and_retry(talk: Conversation, screen: PlainScreen, commands: Commands) -> None:
    talk.say("Hello!", screen)
    first = list(talk.messages)
    talk.say("What is an expert?", screen)
    both = list(talk.messages)
    assert len(both) == 4
    commands.obey("/retry")
    assert talk.messages == both  # greedy
    commands.obey("/undo")
    assert talk.messages == first
    commands.obey("/clear")
    assert talk.messages == []
    assert not talk.undo()
    assert not talk.retry()


def test_what_fails_was_never_said(talk: Conversation, screen: PlainScreen) -> None:
    talk.say("Hello!", screen)
    before = list(talk.messages)
    with pytest.raises(errors.ContextLengthError):
        talk.say("word " * 5000, screen)
    assert talk.messages == before


def test_what_was_cut_off_stays(talk: Conversation, model: Model) -> None:
    class Stopping(PlainScreen):
        seen = 0

        def show(self, chunk: Any) -> None:
            super().show(chunk)
            self.seen += 1
            if self.seen == 5:
                raise KeyboardInterrupt

    talk.say("Tell me a story.", Stopping(interactive=False))
    assert [m["role"] for m in talk.messages] == ["user", "assistant"]
    assert talk.messages[1]["content"]
    talk.say("Hello!", PlainScreen(interactive=False))
    assert len(talk.messages) == 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_that_a_finaliser_drops(talk: Conversation) -> None:
    """Python only prints a KeyboardInterrupt in ``__del__``; the answer stops all the same."""

    class Dropping:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)
            for _ in range(1000):  # the handler runs in here
                pass

    class Collecting(PlainScreen):
        seen = 0

        def show(self, chunk: Any) -> None:
            self.seen += 1
            if self.seen == 3:
                Dropping()

    screen = Collecting(interactive=False)
    with talk.interrupts:
        talk.say("Tell me a story.", screen)
    assert screen.seen == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_does_not_cut_what_is_drawn(talk: Conversation) -> None:
    class Drawing(PlainScreen):
        drawn = 0

        def show(self, chunk: Any) -> None:
            signal.raise_signal(signal.SIGINT)
            self.drawn += 1

    screen = Drawing(interactive=False)
    with talk.interrupts:
        talk.say("Tell me a story.", screen)
    assert screen.drawn == 1
    assert [m["role"] for m in talk.messages] == ["user", "assistant"]


def test_ctrl_c_while_the_end_is_drawn_calls_no_function(model: Model, weather: Path) -> None:
    class Ending(PlainScreen):
        ends: tuple[bool, ...] = ()

        def end(self, stopped: bool) -> None:
            if not self.ends:
                signal.raise_signal(signal.SIGINT)
            self.ends = (*self.ends, stopped)

    screen = Ending(interactive=False)
    talk = Conversation(Generator(model, Sampler(temperature=0)), functions=load_functions(weather))
    talk.approve = lambda _: pytest.fail("it was called")
    with talk.interrupts:
        talk.say("Weather forecast for Oslo, 3 days", screen)
    assert screen.ends == (False, True)
    assert [m["role"] for m in talk.messages] == ["user", "assistant"]


def test_a_follow_up_evaluates_what_is_new(model: Model, screen: PlainScreen) -> None:
    cache = PrefixCache(model, memory=50_000_000)
    talk = Conversation(Generator(model, Sampler(temperature=0), prefix_cache=cache), max_tokens=20)
    talk.say("The expert loader reads what it needs. " * 40, screen)
    talk.say("Hello!", screen)
    stats = talk.generator.stats
    assert stats.cached_tokens > 0.8 * stats.prompt_tokens


def test_settings(talk: Conversation, commands: Commands, capsys: Any) -> None:
    for line in ("/set temperature 0.5", "/set top_k=7", "/set max_tokens 9", "/set seed default"):
        assert commands.obey(line)
    assert talk.generator.sampler == Sampler(temperature=0.5, top_k=7)
    assert talk.max_tokens == 9
    for line, words in (
        ("/set seed x", "'x' is not a value for seed"),
        ("/set max_tokens 0", "'0' is not a value"),
        ("/set warmth 1", "there is no setting 'warmth'"),
        ("/set temperature -1", "temperature"),
        ("/think maybe", "/think takes on"),
        ("/frob", "there is no /frob"),
        ("/load nowhere", "there is no conversation"),
        ("/tools", "begin with --tools"),
    ):
        commands.obey(line)
        assert words in capsys.readouterr().err, line
    commands.obey("/think off")
    assert talk.think is False
    commands.obey("/system Be kind.")
    assert (talk.system, talk.messages) == ("Be kind.", [])
    assert not commands.obey("/quit")
    assert set(commands.names) >= {"/save", "/load", "/retry", "/undo", "/tools", "/stats"}


# ---- sessions --------------------------------------------------------------------------


def test_a_conversation_is_kept_and_goes_on(
    talk: Conversation, screen: PlainScreen, commands: Commands, state: Path, capsys: Any
) -> None:
    talk.system = "Be kind."
    talk.say("Hello!", screen)
    commands.keep()
    (file,) = (state / "sessions").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    other = Commands(Conversation(talk.generator), screen, "another model")
    capsys.readouterr()
    other.obey("/load")
    shown = capsys.readouterr()
    assert "another model, demo" in shown.err
    assert talk.messages[1]["content"] in shown.out
    assert (other.conversation.system, other.conversation.messages) == ("Be kind.", talk.messages)


def test_ctrl_c_just_after_a_conversation_was_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def late(old: str, new: Path) -> None:
        replace(old, new)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", late)
    with pytest.raises(KeyboardInterrupt):
        sessions.save(tmp_path / "a.json", {"messages": []})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_by_name_and_by_path(commands: Commands, talk: Conversation, tmp_path: Path) -> None:
    talk.messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    commands.obey("/save mine")
    commands.obey(f"/save {tmp_path}/else.json")
    talk.clear()
    commands.obey("/load mine")
    assert len(talk.messages) == 2
    talk.clear()
    commands.obey(f"/load {tmp_path}/else.json")
    assert len(talk.messages) == 2


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"messages": 1}', '{"messages": [{"role": "root", "content": "x"}]}',
     '{"messages": [{"role": "user", "content": 1}]}', '{"messages": ["x"]}', "\x00"],
)  # fmt: skip
def test_what_is_no_conversation(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(errors.ModelFormatError, match="is no conversation"):
        sessions.load(tmp_path / "x.json")


def test_a_failed_write_leaves_the_old_one(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "x.json"
    sessions.save(path, {"messages": []})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        sessions.save(path, {"messages": [1]})
    assert json.loads(path.read_text()) == {"messages": []}
    assert list(tmp_path.glob(".*")) == []


# ---- tools -----------------------------------------------------------------------------


@pytest.fixture
def weather(tmp_path: Path) -> Path:
    path = tmp_path / "weather.py"
    path.write_text(WEATHER)
    return path


@pytest.mark.parametrize(("typed", "called"), [("y", True), ("n", False), ("x a", True)])
def test_functions_are_called_when_allowed(
    typed: str, called: bool, talk: Conversation, screen: PlainScreen, weather: Path
) -> None:
    talk.functions = load_functions(weather)
    assert list(talk.functions) == ["get_weather"]
    answers = iter(typed.split())
    talk.approve = approval = Approval(always=False, ask=lambda _: next(answers))
    talk.say("Weather forecast for Oslo, 3 days", screen)
    roles = [m["role"] for m in talk.messages]
    assert roles[:3] == ["user", "assistant", "tool"]
    assert ("sunny" in talk.messages[2]["content"]) == called
    assert ("refused" in talk.messages[2]["content"]) != called
    assert roles[-1] == "assistant"
    assert approval.trusted == ({"get_weather"} if "a" in typed.split() else set())


def test_nobody_to_ask_is_a_no(talk: Conversation, screen: PlainScreen, weather: Path) -> None:
    talk.functions = load_functions(weather)
    talk.approve = Approval(always=False, ask=None)
    talk.say("Weather forecast for Oslo, 3 days", screen)
    assert "refused" in talk.messages[2]["content"]


def test_functions_can_be_switched_off(
    talk: Conversation, screen: PlainScreen, commands: Commands, weather: Path, capsys: Any
) -> None:
    talk.functions = load_functions(weather)
    commands.obey("/tools off")
    assert "get_weather: Get the weather" in capsys.readouterr().out
    talk.say("Weather forecast for Oslo, 3 days", screen)
    assert "tool" not in [m["role"] for m in talk.messages]


def test_a_file_without_functions(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(errors.ArgumentError, match="no public function"):
        load_functions(tmp_path / "empty.py")


# ---- the program -----------------------------------------------------------------------


def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, "chat", *words], input=stdin, capture_output=True, text=True, timeout=60
    )


def test_one_question(weather: Path) -> None:
    asked = run("--demo", "-t", "0", "-p", "Hello!")
    piped = run("--demo", "-t", "0", stdin="Hello!\n")
    assert asked.returncode == piped.returncode == 0
    assert asked.stdout == piped.stdout != ""
    words = "Weather forecast for Oslo, 3 days"
    with_tool = run("--demo", "-t", "0", "--tools", str(weather), "--yes", "-p", words)
    assert "get_weather(city='Oslo', days=3) → " in with_tool.stderr
    assert "sunny" in with_tool.stdout
    assert run("-p", "Hello!").returncode == 2


class Terminal:
    """The program in a pseudo-terminal, as a person has it."""

    def __init__(self, *words: str, kind: str = "xterm-256color") -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM=kind, PROMPT_TOOLKIT_NO_CPR="1", COLUMNS="80", LINES="24")
            os.execv(sys.executable, [*PROGRAM, "chat", *words])
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, text: str) -> str:
        self.until_any(text)
        before, _, self.seen = self.seen.partition(text)
        return before

    def until_any(self, *texts: str, seconds: float = 40) -> str:
        """Read on until one of them is there; which."""
        end = time.monotonic() + seconds
        while not (there := [text for text in texts if text in self.seen]):
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.monotonic()))
            assert ready, f"{texts!r} did not come; the terminal shows {self.seen[-2000:]!r}"
            try:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")
            except OSError as error:
                raise AssertionError(f"the program has ended: {self.seen[-2000:]!r}") from error
        return there[0]

    def ready(self) -> None:
        """Wait until the line editor listens."""
        self.until("\x1b[?2004h")  # bracketed paste is on
        self.until("\x1b[?25h")  # the cursor is there

    def close(self) -> int:
        for _ in range(40):
            self.type("\x04")
            time.sleep(0.1)
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("Ctrl-D does not end the chat")


def test_in_a_terminal(state: Path) -> None:
    """Two lines, an answer as Markdown with its cost, and the next day."""
    pytest.importorskip("prompt_toolkit")
    pytest.importorskip("rich")
    terminal = Terminal("--demo", "-t", "0")
    terminal.until("/help for commands")
    terminal.ready()
    terminal.type("Hello,\x1b\rare you there?\r")
    terminal.until("tok/s")
    terminal.ready()
    assert terminal.close() == 0
    (file,) = (state / "sessions").iterdir()
    first, second = json.loads(file.read_text())["messages"]
    assert first["content"] == "Hello,\nare you there?"
    assert stat.S_IMODE((state / "chat_history").stat().st_mode) == 0o600

    terminal = Terminal("--demo", "--resume")
    terminal.until("2 messages of ")
    terminal.until(second["content"].split("\n")[0][:20])
    terminal.ready()
    terminal.type("/undo\r")
    terminal.until("undone")
    assert terminal.close() == 0


def test_ctrl_c_twice_leaves() -> None:
    pytest.importorskip("prompt_toolkit")
    terminal = Terminal("--demo")
    terminal.until("/help for commands")
    terminal.ready()
    terminal.type("\x03")
    terminal.until("once more leaves")
    terminal.ready()
    terminal.type("\x03")
    for _ in range(100):
        ended, status = os.waitpid(terminal.pid, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    assert ended
    assert os.waitstatus_to_exitcode(status) == 0
    os.close(terminal.fd)
